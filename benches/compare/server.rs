//! PostgreSQL and Redis as upstreams, measured by the benchmark programs of their packages.
//!
//! Each server has its own folder and port, and uses none of the machine's configuration.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use crate::proxy::unused_address;

/// Debian's folder with a subfolder for each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";
pub(crate) const PGBENCH_CLIENTS: u32 = 16;
pub(crate) const REDIS_CLIENTS: usize = 64;
/// The longest wait until a server serves.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server, which ends when it is dropped.
pub(crate) struct Server {
    product: Product,
    child: Child,
    address: SocketAddr,
    /// Removed with the server.
    _folder: TempDir,
}

enum Product {
    /// PostgreSQL, with the folder of its programs.
    PostgreSql(PathBuf),
    Redis,
}

/// The result of a benchmark program.
pub(crate) struct Outcome {
    /// The number of transactions or commands.
    pub(crate) count: f64,
    /// The rate and the latencies, in the order of the scenario's measures.
    pub(crate) values: Vec<f64>,
}

impl Server {
    /// Starts PostgreSQL with pgbench's tables. The error says how to install it.
    pub(crate) fn postgresql() -> Result<Self, &'static str> {
        let programs = newest_postgresql().ok_or("apt-get install postgresql")?;
        let folder = TempDir::new().expect("create a folder");
        // PostgreSQL refuses to run as root.
        let user = if geteuid().is_root() {
            let user = User::from_name("postgres").expect("look up the user postgres");
            Some(user.ok_or("apt-get install postgresql, which creates its user")?)
        } else {
            None
        };
        if let Some(user) = &user {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            chown(folder.path(), Some(uid), Some(gid)).expect("give the folder to postgres");
        }
        let program = |name: &str| {
            let mut command = quiet(programs.join(name));
            command.current_dir(folder.path());
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command
        };
        let data = folder.path().join("data");
        let mut create = program("initdb");
        create.args(["-A", "trust", "-U", "postgres", "--no-locale", "--no-sync", "-D"]);
        output(create.arg(&data)).ok_or("its initdb fails")?;
        let address = unused_address();
        let mut command = program("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(folder.path());
        command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
        // The default creates files in /dev/shm, which stay if the bench is killed.
        command.args(["-c", "fsync=off", "-c", "dynamic_shared_memory_type=sysv"]);
        let child = command.spawn().expect("start PostgreSQL");
        let mut fill = pgbench(&programs, address, &["-i", "-q"]);
        let server =
            Self { product: Product::PostgreSql(programs), child, address, _folder: folder };
        server.await_success(|| output(&mut fill).is_some());
        Ok(server)
    }

    /// Starts Redis. The error says how to install it.
    pub(crate) fn redis() -> Result<Self, &'static str> {
        const REMEDY: &str = "apt-get install redis-server redis-tools";
        for program in ["redis-server", "redis-benchmark"] {
            output(quiet(program.into()).arg("--version")).ok_or(REMEDY)?;
        }
        let (folder, address) = (TempDir::new().expect("create a folder"), unused_address());
        let mut command = quiet("redis-server".into());
        command.args(["--bind", &address.ip().to_string()]);
        command.args(["--port", &address.port().to_string(), "--save", ""]);
        let child = command.current_dir(folder.path()).spawn().expect("start Redis");
        let server = Self { product: Product::Redis, child, address, _folder: folder };
        // redis-benchmark does not end if it finds no server.
        server.await_success(|| TcpStream::connect(address).is_ok());
        Ok(server)
    }

    /// Returns the address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the first process of the server.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("convert the process id"))
    }

    /// Runs the benchmark program at an address, for `count` transactions or commands.
    pub(crate) fn measure(&self, address: SocketAddr, count: f64) -> Outcome {
        match &self.product {
            Product::PostgreSql(programs) => {
                let each = (count / f64::from(PGBENCH_CLIENTS)).ceil().to_string();
                let clients = PGBENCH_CLIENTS.to_string();
                let select = ["-n", "-S", "-c", &clients, "-t", &each];
                let report = output(&mut pgbench(programs, address, &select)).expect("run pgbench");
                let value = |name: &str| {
                    let rest = report.lines().find_map(|line| line.strip_prefix(name));
                    let word = rest.and_then(|rest| rest.split([' ', '/']).next());
                    word.and_then(|word| word.parse().ok()).expect("find a value of pgbench")
                };
                let milliseconds: f64 = value("latency average = ");
                Outcome {
                    count: value("number of transactions actually processed: "),
                    values: vec![value("tps = "), milliseconds * 1e3],
                }
            }
            Product::Redis => {
                let count = count.ceil();
                let command = &mut redis_benchmark(address, count);
                let report = output(command).expect("run redis-benchmark");
                let line = report.lines().find_map(|line| line.strip_prefix("\"SET\","));
                let figures = line.expect("find the values of redis-benchmark").split(',');
                // Commands a second, and average, least, p50, p95, p99 and largest latency in ms.
                let value = |text: &str| text.trim_matches('"').parse().expect("parse a value");
                let figures: Vec<f64> = figures.map(value).collect();
                Outcome { count, values: vec![figures[0], figures[3] * 1e3, figures[5] * 1e3] }
            }
        }
    }

    /// Repeats an attempt until it succeeds.
    fn await_success(&self, mut attempt: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !attempt() {
            assert!(Instant::now() < deadline, "the server at {} does not serve", self.address);
            // The servers have no common event that tells when they serve.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    /// Stops the server without waiting for its clients, and waits for its end.
    fn drop(&mut self) {
        let signal = match self.product {
            Product::PostgreSql(_) => Signal::SIGINT,
            Product::Redis => Signal::SIGTERM,
        };
        let _ = kill(self.pid(), signal);
        let _ = self.child.wait();
    }
}

fn newest_postgresql() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRESQL).ok()?.flatten();
    let numbers = versions.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
    let programs = Path::new(POSTGRESQL).join(numbers.max()?.to_string()).join("bin");
    ["initdb", "postgres", "pgbench"]
        .iter()
        .all(|name| programs.join(name).exists())
        .then_some(programs)
}

/// Returns a command that runs pgbench with these arguments, for a server without encryption.
fn pgbench(programs: &Path, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = quiet(programs.join("pgbench"));
    let (host, port) = (address.ip(), address.port());
    let server = format!("host={host} port={port} user=postgres dbname=postgres");
    command.args(arguments).arg(format!("{server} sslmode=disable gssencmode=disable"));
    command
}

/// Returns a command that sets values of 64 bytes.
fn redis_benchmark(address: SocketAddr, requests: f64) -> Command {
    let mut command = quiet("redis-benchmark".into());
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["-n", &requests.to_string(), "-c", &REDIS_CLIENTS.to_string()]);
    command.args(["-t", "set", "-d", "64", "--csv"]);
    command
}

/// Returns a command with an empty environment, whose output is not shown.
fn quiet(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command, and returns its standard output if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stdout(Stdio::piped()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
