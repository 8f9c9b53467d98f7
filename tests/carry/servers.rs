//! The servers of PostgreSQL and OpenSSH from Debian's packages, started for one test each, and
//! their clients.
//!
//! A server is the first process of its own namespaces, so all that it starts ends with it, however
//! the test ends. That includes its processes, its shared memory, and its files in `/run` and
//! `/var/log`, which are private. This needs root. A server does not use this machine's
//! configuration. A missing program fails the test with the name of its package.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::support::view::pause;
use crate::support::{DEADLINE, exit_code, free_port, signal};
use crate::talk::Talk;

/// Debian's folder with a subfolder for each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// The user that logs in.
const VISITOR: &str = "visitor";
/// The user id of Debian's `nobody`, which the visitor has.
const NOBODY: u32 = 65_534;

/// A running server.
#[derive(Debug)]
struct Server {
    folder: TempDir,
    /// The first process of the server's namespaces.
    first: Child,
}

impl Server {
    /// Starts a command in a folder, and waits until it logs that it is ready. Each of `mounts` is
    /// a path outside, and the path inside at which the server sees it.
    fn start(
        folder: TempDir,
        mut command: Command,
        mounts: &[(PathBuf, &str)],
        ready: &str,
    ) -> Self {
        let log = File::create(folder.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let first = thread::scope(|scope| {
            scope.spawn(|| start_apart(&mut command, mounts)).join().unwrap()
        });
        let mut server =
            Self { folder, first: first.unwrap_or_else(|error| panic!("{command:?}: {error}")) };
        let until = Instant::now() + DEADLINE;
        while !server.log().contains(ready) {
            assert!(Instant::now() < until, "the server is not ready in time:\n{}", server.log());
            assert_eq!(
                server.first.try_wait().unwrap(),
                None,
                "the server has ended:\n{}",
                server.log()
            );
            pause(1);
        }
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Stops the server with the signal `by`, and asserts that it exits with 0.
    fn stop(&self, by: Signal) {
        signal(self.first.id(), by);
        assert_eq!(exit_code(self.first.id()), 0, "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        if thread::panicking() {
            println!("the log of the server:\n{}", self.log());
        }
    }
}

/// Starts a command as the first process of new namespaces. The calling thread cannot be used for
/// anything else afterwards.
fn start_apart(command: &mut Command, mounts: &[(PathBuf, &str)]) -> io::Result<Child> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    for empty in ["/run", "/var/log"] {
        mount(
            Some("none"),
            empty,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=755"),
        )?;
    }
    // sshd confines its unprivileged process here.
    fs::create_dir("/run/sshd")?;
    for (source, target) in mounts {
        mount(Some(source), *target, NONE, MsFlags::MS_BIND, NONE)?;
    }
    command.spawn()
}

/// Creates a folder that every user may enter.
fn folder() -> TempDir {
    assert!(
        nix::unistd::geteuid().is_root(),
        "run this as root: the servers need namespaces and other users"
    );
    let folder = tempfile::Builder::new().prefix("handoffd-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Returns a command for a program with an empty environment.
fn program(path: impl AsRef<Path>, package: &str) -> Command {
    let path = path.as_ref();
    assert!(path.exists(), "{} is missing: apt-get install {package}", path.display());
    let mut command = Command::new(path);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Returns a user that a package creates.
fn user(name: &str, package: &str) -> User {
    User::from_name(name)
        .unwrap()
        .unwrap_or_else(|| panic!("no user {name}: apt-get install {package}"))
}

/// Runs a command, and asserts that it succeeds.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A PostgreSQL that listens only on a Unix socket, and trusts every user.
#[derive(Debug)]
pub(crate) struct Postgres {
    server: Server,
    programs: PathBuf,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let folder = folder();
        let versions = fs::read_dir(POSTGRESQL).into_iter().flatten();
        let version = versions
            .filter_map(|version| version.unwrap().file_name().to_str()?.parse::<u32>().ok())
            .max();
        let version = version
            .unwrap_or_else(|| panic!("{POSTGRESQL} is missing: apt-get install postgresql"));
        let programs = Path::new(POSTGRESQL).join(version.to_string()).join("bin");
        let user = user("postgres", "postgresql");
        // PostgreSQL refuses to run as root.
        chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        let (by_its_user, data) = (
            |name: &str| {
                let mut command = program(programs.join(name), "postgresql");
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir(folder.path());
                command
            },
            folder.path().join("data"),
        );
        run(by_its_user("initdb")
            .args(["-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data));
        let mut command = by_its_user("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(folder.path());
        // System V shared memory ends with its namespace. The default would create a file on this
        // machine.
        command.args([
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "dynamic_shared_memory_type=sysv",
        ]);
        let server = Server::start(folder, command, &[], "ready to accept connections");
        Self { server, programs }
    }

    /// Returns the path on which the server listens.
    pub(crate) fn socket(&self) -> String {
        self.server.folder.path().join(".s.PGSQL.5432").to_str().unwrap().to_owned()
    }

    /// Starts a psql session that prints only answers, through a listener at that address.
    pub(crate) fn session(&self, address: &str) -> Talk {
        let (host, port) = address.split_once(':').unwrap();
        self.psql(&format!("host={host} port={port}"))
    }

    /// Starts a psql session without a proxy.
    pub(crate) fn direct_session(&self) -> Talk {
        self.psql(&format!("host={}", self.server.folder.path().display()))
    }

    fn psql(&self, to: &str) -> Talk {
        let mut command = program(self.programs.join("psql"), "postgresql-client");
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
            "--set",
            "ON_ERROR_STOP=1",
        ]);
        command.arg(format!("{to} user=postgres dbname=postgres sslmode=disable"));
        Talk::start(&mut command)
    }

    /// Stops the server without waiting for its sessions.
    pub(crate) fn stop(&self) {
        self.server.stop(Signal::SIGINT);
    }
}

/// An sshd with its own host key, and a user who may log in.
#[derive(Debug)]
pub(crate) struct Sshd {
    server: Server,
    pub(crate) address: String,
}

impl Sshd {
    pub(crate) fn start() -> Self {
        let folder = folder();
        let at = folder.path().to_str().unwrap();
        for key in ["host", "client"] {
            let mut command = program("/usr/bin/ssh-keygen", "openssh-client");
            run(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path().join(key)));
        }
        let known =
            format!("server {}", fs::read_to_string(folder.path().join("host.pub")).unwrap());
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        let separated = user("sshd", "openssh-server");
        let users = format!(
            "root:x:0:0::/root:/bin/sh\nsshd:x:{}:{}::/run/sshd:/bin/false\n{VISITOR}:*:{NOBODY}:{NOBODY}::{at}/home:/bin/sh\n",
            separated.uid, separated.gid
        );
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, free_port());
        // StrictModes is off because sshd rejects keys in a folder that every user may write to.
        let config = format!(
            "ListenAddress {address}\nHostKey {at}/host\nAuthorizedKeysFile {at}/client.pub\nStrictModes no\n\
             AuthenticationMethods publickey\nAllowUsers {VISITOR}\nUsePAM no\n\
             PidFile none\nPrintMotd no\n\
             Subsystem sftp internal-sftp\n"
        );
        for (name, text) in [("known", &known), ("users", &users), ("config", &config)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let mut command = program("/usr/sbin/sshd", "openssh-server");
        command.args(["-D", "-e", "-f"]).arg(folder.path().join("config"));
        let mounts = [(folder.path().join("users"), "/etc/passwd")];
        let server = Server::start(folder, command, &mounts, "Server listening on");
        Self { server, address }
    }

    /// Returns the path of a file in the visitor's home on the server.
    pub(crate) fn at_home(&self, name: &str) -> PathBuf {
        self.server.folder.path().join("home").join(name)
    }

    /// Returns the path of a file on the client's side.
    pub(crate) fn here(&self, name: &str) -> PathBuf {
        self.server.folder.path().join(name)
    }

    /// Starts an ssh session that runs a command on the server, through a listener at that address.
    pub(crate) fn session(&self, address: &str, options: &[&str], command: &str) -> Talk {
        let mut ssh = self.client("/usr/bin/ssh", address);
        Talk::start(
            ssh.args(options).args([&format!("{VISITOR}@{}", Ipv4Addr::LOCALHOST), command]),
        )
    }

    /// Starts an sftp session that copies files on request.
    pub(crate) fn files(&self, address: &str) -> Talk {
        let mut sftp = self.client("/usr/bin/sftp", address);
        Talk::start(sftp.args(["-q", "-b", "-", &format!("{VISITOR}@{}", Ipv4Addr::LOCALHOST)]))
    }

    fn client(&self, path: &str, address: &str) -> Command {
        let mut command = program(path, "openssh-client");
        let (_, port) = address.split_once(':').unwrap();
        command.args(["-F", "none", "-i", self.here("client").to_str().unwrap()]);
        let known = format!("UserKnownHostsFile={}", self.here("known").display());
        let port = format!("Port={port}");
        for option in [
            &known,
            &port,
            "HostKeyAlias=server",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    pub(crate) fn stop(&self) {
        self.server.stop(Signal::SIGTERM);
    }
}
