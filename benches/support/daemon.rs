//! The measured daemon: starts it, follows its generations in the log, and ends all its processes.
//!
//! All generations write to one pipe. A record counts from the moment at which the bench reads it.
//! So the figures are those of an observer, and include the wait for a processor.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::event::Event;

/// The longest wait for anything that the daemon does. It is far longer than needed, so that a
/// bench that cannot continue ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// The size of the pipe for the log: the largest that an unprivileged user may set (pipe(7)).
const PIPE: i32 = 1024 * 1024;

/// A line of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When the line was read.
    pub(crate) at: Instant,
    /// The generation that wrote the line.
    pub(crate) generation: u64,
    /// The process that wrote the line.
    pub(crate) pid: Pid,
    /// The event of the record.
    event: Option<Event>,
    /// The whole line.
    pub(crate) text: String,
}

/// A daemon and its generations.
pub(crate) struct Daemon {
    records: Receiver<Record>,
    /// Processes that have written to the log and were not reaped yet. The kernel does not reuse
    /// their process ids meanwhile, so a signal cannot reach a foreign process.
    unreaped: Arc<Mutex<BTreeSet<Pid>>>,
    first: Pid,
    addresses: Vec<SocketAddr>,
}

impl Daemon {
    /// Starts a daemon with `listeners` listeners on loopback and these flags, and waits until it
    /// serves.
    pub(crate) fn start(listeners: usize, flags: &[&str]) -> Self {
        Self::start_as(&[], listeners, flags)
    }

    /// Starts a daemon like [`Daemon::start`] by another command, such as `proxy --to ADDRESS`.
    pub(crate) fn start_as(command_words: &[&str], listeners: usize, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.args(command_words).args(["--listen", "127.0.0.1:0"].repeat(listeners)).args(flags);
        Self::start_by(command)
    }

    /// Starts a daemon by a command that listens on loopback, and waits until it serves.
    pub(crate) fn start_by(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Reaped by its process id, like every later generation.
        #[allow(clippy::zombie_processes)]
        let mut child = command.spawn().expect("start the daemon");
        let first = Pid::from_raw(i32::try_from(child.id()).expect("parse a process id"));
        let stderr = child.stderr.take().expect("take the daemon's standard error");
        // The pipe must hold the longest record, which names 10,000 listeners. In pieces, the
        // records of two generations would mix.
        fcntl(&stderr, FcntlArg::F_SETPIPE_SZ(PIPE)).expect("enlarge the pipe");
        let unreaped = Arc::new(Mutex::new(BTreeSet::from([first])));
        let (sender, records) = channel();
        let seen = Arc::clone(&unreaped);
        std::thread::spawn(move || follow(stderr, &sender, &seen));
        let mut daemon = Self { records, unreaped, first, addresses: Vec::new() };
        daemon.addresses = addresses(&daemon.await_record(1, Event::GenerationAccepting).text);
        daemon.await_record(1, Event::GenerationServing);
        daemon
    }

    /// Returns the process of the first generation.
    pub(crate) fn first(&self) -> Pid {
        self.first
    }

    /// Returns the address of the first listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns the next record of `generation` about `event`, and skips the records before it.
    pub(crate) fn await_record(&self, generation: u64, event: Event) -> Record {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            match self.records.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(record) if record.generation == generation && record.event == Some(event) => {
                    return record;
                }
                Ok(record) => last = Some(record.text),
                Err(_) => panic!(
                    "no record {event:?} of generation {generation}; the last one was {last:?}"
                ),
            }
        }
    }

    /// Sends a signal, and returns the time.
    pub(crate) fn signal(pid: Pid, signal: Signal) -> Instant {
        let at = Instant::now();
        kill(pid, signal).expect("signal a process that is not reaped yet");
        at
    }

    /// Waits until a process has ended, without reaping it, so that its processor time can still be
    /// read.
    pub(crate) fn await_end(pid: Pid) -> Instant {
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            .expect("wait for a process of the daemon");
        Instant::now()
    }

    /// Waits until a process has ended, and reaps it.
    pub(crate) fn reap(&self, pid: Pid) -> Instant {
        waitpid(pid, None).expect("reap a process of the daemon");
        let at = Instant::now();
        self.unreaped().remove(&pid);
        at
    }

    /// Reaps all processes that have ended.
    pub(crate) fn reap_ended(&self) {
        self.unreaped().retain(|pid| {
            matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        });
    }

    fn unreaped(&self) -> std::sync::MutexGuard<'_, BTreeSet<Pid>> {
        self.unreaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill_all(&self) {
        for pid in self.unreaped().iter() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Daemon {
    /// The log ends when no process can write to it. Until then a generation that is just starting
    /// may still appear in it.
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.kill_all();
        while Instant::now() < deadline {
            match self.records.recv_timeout(Duration::from_millis(100)) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => self.kill_all(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for pid in self.unreaped().iter() {
            let _ = waitpid(*pid, None);
        }
    }
}

impl Record {
    /// Returns the process that a field of the record names.
    pub(crate) fn process(&self, field: &str) -> Pid {
        let value = self
            .text
            .split_whitespace()
            .find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        Pid::from_raw(value.and_then(|pid| pid.parse().ok()).expect("parse a process id"))
    }

    /// Parses `TIME generation=N pid=N LEVEL message`.
    fn parse(at: Instant, text: String) -> Option<Self> {
        let field = |name| text.split_whitespace().find_map(|word| word.strip_prefix(name));
        let (generation, pid) = (field("generation=")?.parse().ok()?, field("pid=")?.parse().ok()?);
        let event = Event::of(&text);
        Some(Self { at, generation, pid: Pid::from_raw(pid), event, text })
    }
}

/// Reads the log to its end.
fn follow(stderr: ChildStderr, records: &Sender<Record>, unreaped: &Mutex<BTreeSet<Pid>>) {
    let mut known = BTreeSet::new();
    for line in BufReader::new(stderr).lines() {
        let at = Instant::now();
        let Some(record) = line.ok().and_then(|line| Record::parse(at, line)) else { continue };
        if known.insert(record.pid) {
            unreaped.lock().unwrap_or_else(PoisonError::into_inner).insert(record.pid);
        }
        let _ = records.send(record);
    }
}

/// Returns the addresses in `listeners="NAME=ADDRESS NAME=ADDRESS"`.
fn addresses(text: &str) -> Vec<SocketAddr> {
    let list = text.split_once(" listeners=\"").and_then(|(_, list)| list.split('"').next());
    let list = list.expect("find the list of listeners");
    let address = |one: &str| one.split_once('=').and_then(|(_, address)| address.parse().ok());
    list.split(' ').map(|one| address(one).expect("parse NAME=ADDRESS")).collect()
}
