//! A lineage of generations that runs in its own folder, observed through its log.
//!
//! All generations write to the same standard error, a pipe that the test reads. The log therefore
//! shows the actions of every generation, and the pipe closes when all of them have ended. Every
//! process that holds the pipe belongs to the lineage.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::line_log::Log;
use super::process::{adopt_orphans, exit_code, kill_if_alive, reap_if_ours, signal};
use super::{Client, DEADLINE, Event, REAL, Record};

/// A lineage of generations that the test started.
#[derive(Debug)]
pub(crate) struct Line {
    folder: TempDir,
    pid: u32,
    /// The target of the `/proc` links to their standard error: `pipe:[INODE]`.
    stderr: PathBuf,
    pub(super) log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

impl Line {
    /// Starts the daemon on `127.0.0.1:0` with these arguments, and waits until it serves.
    pub(crate) fn serve(arguments: &[&str]) -> Self {
        let line = Self::start_with(|command, _| {
            command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        });
        line.wait_for(1, Event::GenerationServing);
        line
    }

    /// Starts the daemon. `prepare` receives the command and the lineage's folder, and completes
    /// the command.
    ///
    /// The program is `FOLDER/handoffd`, a link to the real binary, so that a test can replace it.
    pub(crate) fn start_with(prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        Self::start_under(&[], prepare)
    }

    /// Starts the daemon through a launcher: a program with arguments that executes the command
    /// after them.
    ///
    /// Connections drain unless the test passes `--carry` or a configuration file, because most
    /// tests keep a generation alive with its connections.
    pub(crate) fn start_under(
        launcher: &[&str],
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        Self::start_program_under(launcher, Path::new(REAL), |command, folder| {
            command.args(["--log", "debug"]);
            prepare(command, folder);
            if !command.get_args().any(|argument| argument == "--carry" || argument == "--config") {
                command.arg("--no-carry");
            }
        })
    }

    /// Starts the daemon with the test's own command, which must execute it and log at debug level.
    pub(crate) fn start_by(command: impl FnOnce(&Path) -> Command) -> Self {
        Self::start(Path::new(REAL), command, |_, _| {})
    }

    /// Starts another program that uses the library, through a launcher and a link to it.
    pub(crate) fn start_program_under(
        launcher: &[&str],
        real: &Path,
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let words = |folder: &Path| {
            let program = folder.join("handoffd");
            let mut words = launcher.iter().map(OsStr::new).chain([program.as_os_str()]);
            let mut command = Command::new(words.next().unwrap());
            command.args(words);
            command
        };
        Self::start(real, words, prepare)
    }

    /// Starts another program that uses the library, through a link to it.
    pub(crate) fn start_program(real: &Path, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        Self::start_program_under(&[], real, prepare)
    }

    fn start(
        real: &Path,
        command: impl FnOnce(&Path) -> Command,
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        adopt_orphans();
        assert!(real.exists(), "{} is missing: `cargo test` builds it", real.display());
        let folder = tempfile::Builder::new()
            .prefix("handoffd-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        symlink(real, folder.path().join("handoffd")).unwrap();
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let stderr = fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).unwrap();
        let mut command = command(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(write);
        // What a killed generation leaves behind goes with the folder.
        command.env("TMPDIR", folder.path());
        prepare(&mut command, folder.path());
        let pid = command.spawn().unwrap().id();
        drop(command);
        let log = Arc::new(Log::new(File::from(read)));
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow()
        });
        Self { folder, pid, stderr, log, reader: Some(reader) }
    }

    /// Returns the lineage's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path that the lineage was started from.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder().join("handoffd")
    }

    /// Returns the process id of the first generation.
    pub(crate) const fn first_pid(&self) -> u32 {
        self.pid
    }

    /// Waits until `generation` is the active generation, and returns its process id.
    pub(crate) fn pid_of(&self, generation: u64) -> u32 {
        self.wait_for(generation, Event::GenerationAccepting).pid
    }

    /// Returns the address of the listener with this name. All generations of a lineage share it.
    pub(crate) fn address_of(&self, listener: &str) -> String {
        let record = self.wait("accepting", |record| record.is_event(Event::GenerationAccepting));
        let listeners = record.field("listeners").unwrap();
        let mut named = listeners.split(' ').filter_map(|one| one.split_once('='));
        named
            .find(|(name, _)| *name == listener)
            .unwrap_or_else(|| panic!("no {listener} in {listeners}"))
            .1
            .to_owned()
    }

    /// Returns the address of the first listener.
    pub(crate) fn address(&self) -> String {
        let record = self.wait("accepting", |record| record.is_event(Event::GenerationAccepting));
        record
            .field("listeners")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .split_once('=')
            .unwrap()
            .1
            .to_owned()
    }

    /// Sends a signal to `generation`.
    pub(crate) fn signal(&self, generation: u64, number: Signal) {
        signal(self.pid_of(generation), number);
    }

    /// Triggers a handoff from `generation`, and waits until its successor is the active
    /// generation.
    pub(crate) fn hand_over_from(&self, generation: u64) {
        self.signal(generation, Signal::SIGHUP);
        self.wait_for(generation + 1, Event::GenerationServing);
    }

    /// Waits until `generation` has ended. Returns its exit code, or 128 plus the number of the
    /// signal that killed it.
    pub(crate) fn exit_code(&self, generation: u64) -> i32 {
        let pid = if generation == 1 { self.pid } else { self.pid_of(generation) };
        exit_code(pid)
    }

    /// Asserts that one short connection to the first listener is served.
    pub(crate) fn assert_serves(&self) {
        Client::once(&self.address(), b"are you there?").unwrap();
    }

    /// Waits until every process of the lineage has ended, and returns the whole log.
    pub(crate) fn wait_for_end(&self) -> Vec<Record> {
        let until = Instant::now() + DEADLINE;
        let mut lines = self.log.lines();
        while !lines.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let log = lines.text.join("\n");
                drop(lines);
                panic!("processes are still running: {:?}\n{log}", self.processes());
            }
            lines =
                self.log.grown.wait_timeout(lines, left.min(Duration::from_millis(100))).unwrap().0;
        }
        drop(lines);
        self.records()
    }

    /// Returns every running process of the lineage: those with its pipe as standard output or
    /// standard error.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let holds = |path| fs::read_link(path).is_ok_and(|held| held == self.stderr);
        pids.filter(|pid| (1..=2).any(|stream| holds(format!("/proc/{pid}/fd/{stream}")))).collect()
    }

    /// Returns whether every process of the lineage is idle. Bytes that are still unread then will
    /// stay unread.
    pub(crate) fn is_asleep(&self) -> bool {
        self.processes().into_iter().all(|pid| super::view::is_asleep(pid).unwrap_or(false))
    }
}

impl Drop for Line {
    /// Kills and reaps the remaining processes of the lineage.
    fn drop(&mut self) {
        let mut pids: Vec<u32> =
            self.records().iter().map(|record| record.pid).filter(|pid| *pid > 0).collect();
        pids.push(self.pid);
        loop {
            let living = self.processes();
            if living.is_empty() {
                break;
            }
            for pid in &living {
                kill_if_alive(*pid);
            }
            pids.extend(living);
        }
        let _ = self.reader.take().map(JoinHandle::join);
        pids.sort_unstable();
        pids.dedup();
        for pid in pids {
            reap_if_ours(pid);
        }
    }
}
