//! Starts servers of Debian's packages, PostgreSQL and OpenSSH, for one test each, and makes their
//! clients ready.
//!
//! A server is the first process of namespaces of its own. So all that it starts ends when it does,
//! however the test ends: its processes, its shared memory, and what it leaves in `/run` and
//! `/var/log`, which are empty in there. It needs root for that. A server knows nothing of this
//! machine's configuration. What is missing fails the test, with the name of the package.

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

use crate::support::{DEADLINE, exit_code, free_port, signal};
use crate::talk::Talk;

/// Where Debian has a folder for each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// Who logs in.
const VISITOR: &str = "visitor";
/// Debian's `nobody`, which the visitor is by number.
const NOBODY: u32 = 65_534;

/// A server.
#[derive(Debug)]
struct Server {
    folder: TempDir,
    /// The first process of its namespaces.
    first: Child,
}

impl Server {
    /// Starts a command in a folder, and waits until it says that it is ready. There are more
    /// things to see in there: each of `mounts` is seen as the second.
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
            assert!(Instant::now() < until, "it does not say that it is ready:\n{}", server.log());
            assert_eq!(server.first.try_wait().unwrap(), None, "it has ended:\n{}", server.log());
            thread::yield_now();
        }
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Ends it in order.
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

/// Starts a command as the first process of new namespaces. The thread that calls is of no use
/// afterwards.
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
    // Where sshd confines its process without rights.
    fs::create_dir("/run/sshd")?;
    for (source, target) in mounts {
        mount(Some(source), *target, NONE, MsFlags::MS_BIND, NONE)?;
    }
    command.spawn()
}

/// A folder that every user may look into.
fn folder() -> TempDir {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the servers need namespaces and users of their own: run this as root"
    );
    let folder = tempfile::Builder::new().prefix("handoffd-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// A program, without anything that this environment says to it.
fn program(path: impl AsRef<Path>, package: &str) -> Command {
    let path = path.as_ref();
    assert!(path.exists(), "{} is missing: apt-get install {package}", path.display());
    let mut command = Command::new(path);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// A user whom a package makes.
fn user(name: &str, package: &str) -> User {
    User::from_name(name)
        .unwrap()
        .unwrap_or_else(|| panic!("there is no user {name}: apt-get install {package}"))
}

/// Runs a command to its end, which must be a good one.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A PostgreSQL that listens on a Unix socket only, and trusts everybody.
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
        // It refuses to be root.
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
        // Shared memory that ends with its namespace, and not a file of this machine's.
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

    /// Where it listens.
    pub(crate) fn socket(&self) -> String {
        self.server.folder.path().join(".s.PGSQL.5432").to_str().unwrap().to_owned()
    }

    /// A session that prints answers and nothing else, through a listener at that address.
    pub(crate) fn session(&self, address: &str) -> Talk {
        let (host, port) = address.split_once(':').unwrap();
        self.psql(&format!("host={host} port={port}"))
    }

    /// One with nothing between.
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

    /// Ends it as an operator does who does not wait for sessions.
    pub(crate) fn stop(&self) {
        self.server.stop(Signal::SIGINT);
    }
}

/// An sshd with a key of its own, and a user who may log in.
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
        // A folder that everybody may write to, as the one for temporary files, is none for keys
        // otherwise.
        let config = format!(
            "ListenAddress {address}\nHostKey {at}/host\nAuthorizedKeysFile {at}/client.pub\nStrictModes no\n\
             AuthenticationMethods publickey\nAllowUsers {VISITOR}\nUsePAM no\nPidFile none\nPrintMotd no\n\
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

    /// A file there, where the visitor is at home.
    pub(crate) fn at_home(&self, name: &str) -> PathBuf {
        self.server.folder.path().join("home").join(name)
    }

    /// A file of the client's.
    pub(crate) fn here(&self, name: &str) -> PathBuf {
        self.server.folder.path().join(name)
    }

    /// A session that runs a command over there, through a listener at that address.
    pub(crate) fn session(&self, address: &str, options: &[&str], command: &str) -> Talk {
        let mut ssh = self.client("/usr/bin/ssh", address);
        Talk::start(
            ssh.args(options).args([&format!("{VISITOR}@{}", Ipv4Addr::LOCALHOST), command]),
        )
    }

    /// A session that copies files as it is told.
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
