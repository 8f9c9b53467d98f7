//! A server of `examples/servers`, and its clients.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::Signal;

use crate::support::process::{kill_if_alive, reap_if_ours};
use crate::support::{DEADLINE, REAL, adopt_orphans, assert_becomes, exit_code, signal};

/// Returns how many times each server is replaced.
#[expect(clippy::disallowed_methods, reason = "the caller of the tests chooses it")]
pub(crate) fn handoffs() -> u64 {
    std::env::var("HANDOFFS").map_or(20, |count| count.parse().unwrap())
}

/// Returns the folder of the compiled servers, and compiles them first.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("examples/servers"))
}

/// Returns the compiled server of `examples/template`, and compiles it first.
pub(crate) fn template() -> PathBuf {
    compile("examples/template").join("my-server")
}

/// Compiles a package of this repository, and returns the folder of its programs. It has the target
/// directory and the profile of the main package, so that it shares compiled dependencies.
fn compile(package: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--bins", "--examples", "--manifest-path"]);
    cargo.arg(manifest).arg("--target-dir").arg(target);
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    cargo.env("CARGO_PROFILE_DEV_LTO", "off");
    assert!(cargo.status().unwrap().success(), "{package} does not compile");
    target.join("debug")
}

/// A running server, with the sockets that its parent has passed.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    addresses: Vec<(String, String)>,
    first: u32,
}

impl Server {
    /// Starts a server with TCP listeners of these names.
    pub(crate) fn start(name: &str, listeners: &[&str]) -> Self {
        let program = built().join(name);
        Self::start_program(&program, listeners, &[])
    }

    /// Starts a server with a Unix listener.
    pub(crate) fn start_unix(name: &str, listener: &str) -> Self {
        let program = built().join(name);
        Self::start_program(&program, &[], &[listener])
    }

    /// Starts a server that passes the arguments of its name on, see [`Server::start`].
    pub(crate) fn start_program(program: &Path, tcp: &[&str], unix: &[&str]) -> Self {
        adopt_orphans();
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers");
        for file in ["certificate.pem", "key.pem"] {
            fs::copy(here.join(file), folder.path().join(file)).unwrap();
        }
        let (mut sockets, mut addresses) = (Vec::<(String, OwnedFd)>::new(), Vec::new());
        for name in tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            addresses.push(((*name).to_owned(), listener.local_addr().unwrap().to_string()));
            sockets.push(((*name).to_owned(), listener.into()));
        }
        for name in unix {
            let path = folder.path().join(name);
            sockets.push(((*name).to_owned(), UnixListener::bind(&path).unwrap().into()));
            addresses.push(((*name).to_owned(), path.display().to_string()));
        }
        let control = UnixListener::bind(folder.path().join("control")).unwrap();
        sockets.push(("control".to_owned(), control.into()));
        let mut command = Command::new("bash");
        let link = folder.path().join("server");
        std::os::unix::fs::symlink(program, &link).unwrap();
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\""]).arg(link);
        let names: Vec<_> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(folder.path().join("errors")).unwrap());
        let numbers = sockets.into_iter().zip(3..);
        let mappings =
            numbers.map(|((_, socket), child_fd)| FdMapping { parent_fd: socket, child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
        let server = Self { first: command.spawn().unwrap().id(), folder, addresses };
        // The clients wait in the backlog until the server accepts.
        assert_becomes(&0, || server.handoffd(&["status"]).0);
        server
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn address(&self, listener: &str) -> String {
        self.addresses.iter().find(|(name, _)| name == listener).unwrap().1.clone()
    }

    /// Returns what the server has written to standard error.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(self.folder().join("errors")).unwrap()
    }

    /// Replaces the program by one that ends at once.
    pub(crate) fn break_program(&self) {
        let (link, new) = (self.folder().join("server"), self.folder().join("server.new"));
        std::os::unix::fs::symlink("/bin/false", &new).unwrap();
        fs::rename(new, link).unwrap();
    }

    /// Runs a command of the operator. Returns its exit code and what it said.
    pub(crate) fn handoffd(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(REAL);
        command.args(words).arg("--control").arg(self.folder().join("control"));
        let said = command.output().unwrap();
        let text = [said.stdout, said.stderr].concat();
        (said.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    /// Replaces the server once.
    pub(crate) fn reload(&self) {
        let (code, said) = self.handoffd(&["reload"]);
        assert_eq!(code, 0, "{said}\n{}", self.errors());
    }

    /// Replaces the server [`handoffs`] times. No connection may be cut.
    pub(crate) fn replace(&self) {
        for _ in 0..handoffs() {
            self.reload();
        }
    }

    /// Returns a counter of a listener, over all generations.
    pub(crate) fn counter(&self, listener: &str, name: &str) -> u64 {
        let (code, said) = self.handoffd(&["status", "--json"]);
        assert_eq!(code, 0, "{said}");
        let status: serde_json::Value = serde_json::from_str(&said).unwrap();
        status["counters"]["listeners"][listener][name].as_u64().unwrap_or(0)
    }

    /// Returns the pids of all generations.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let (code, said) = self.handoffd(&["status", "--json"]);
        assert_eq!(code, 0, "{said}");
        pids(&said)
    }

    /// Returns the pid of the active generation.
    pub(crate) fn pid(&self) -> u32 {
        self.pids()[0]
    }

    /// Stops the service, and checks that every process of it ends well.
    pub(crate) fn stop(self) {
        let pids = self.pids();
        signal(pids[0], Signal::SIGTERM);
        for pid in pids {
            assert_eq!(exit_code(pid), 0, "{}", self.errors());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            kill_if_alive(self.first);
            let (code, said) = self.handoffd(&["status", "--json"]);
            if code == 0 {
                pids(&said).into_iter().for_each(kill_if_alive);
            }
        }
        reap_if_ours(self.first);
    }
}

/// Returns the pids of all generations in a status report.
fn pids(status: &str) -> Vec<u32> {
    let status: serde_json::Value = serde_json::from_str(status).unwrap();
    let generations = status["generations"].as_array().unwrap().iter();
    generations.map(|one| one["pid"].as_u64().unwrap().try_into().unwrap()).collect()
}

/// Clients of the package of the recipes, for protocols beyond HTTP/1.1.
pub(crate) struct Clients {
    child: Child,
    kind: String,
}

impl Clients {
    pub(crate) fn start(kind: &str, address: &str, folder: &Path) -> Self {
        let mut command = Command::new(built().join("examples/client"));
        command.args([kind, address]).current_dir(folder);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { child, kind: kind.to_owned() }
    }

    /// Stops the clients. No exchange may have failed.
    pub(crate) fn lose_nothing(mut self) {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        println!("{}: {said}", self.kind);
        let count = |name: &str| -> usize {
            let word = said.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.unwrap().parse().unwrap()
        };
        assert!(count("served=") > 50 && count("failed=") == 0, "{}: {said}", self.kind);
    }
}

/// Replaces a server that answers one line of each client.
pub(crate) fn answers_lines(name: &str) {
    let server = Server::start(name, &["lines"]);
    let address = server.address("lines");
    let exchange = || -> std::io::Result<()> {
        let mut client = TcpStream::connect(&address)?;
        client.set_read_timeout(Some(DEADLINE))?;
        client.write_all(b"hello\n")?;
        let mut reply = String::new();
        client.read_to_string(&mut reply)?;
        if reply == "HELLO\n" { Ok(()) } else { Err(std::io::Error::other(reply)) }
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        exchange().unwrap();
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        server.replace();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(served > 100, "{served}");
    });
    server.stop();
}
