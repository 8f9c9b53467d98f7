//! A small init process that stays for the life of the service: it reaps children, forwards signals
//! to the active generation, and exits with its status.
//!
//! When process 1 of a container ends, the kernel kills all other processes (pid_namespaces(7)). A
//! supervisor that watches one process takes its end for the end of the service. systemd can be
//! told of a new main process; without systemd the first process must stay. It forks before
//! anything else, and the child becomes generation 1. Every generation inherits its end of a
//! channel to the init, and the active generation announces itself on it. When no process holds
//! that end any more, all generations have ended.
//!
//! The init opens nothing, binds nothing, and does not know what is served.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::channel::{Received, receive};
use super::message::Message;
use crate::error::{Error, ExitStatus};
use crate::sys::init::{Fork, end, fork_off, keep_only};
use crate::sys::signals::HANDOFF;
use crate::sys::socket::{channel_pair, pause, retry, send_packet, will_pass};

/// The signals that the init forwards to the active generation.
const PASSED_ON: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// The bit that marks a signal from the kernel, sigaction(2). The kernel sends such a signal to all
/// foreground processes of a terminal, so the active generation already has it.
const FROM_THE_KERNEL: i32 = 0x80;

/// The generations' end of the channel to the init.
#[derive(Debug)]
pub(crate) struct Init(OwnedFd);

impl Init {
    /// Forks off an init. Returns in the child, and never in the calling process.
    pub(super) fn leave() -> Result<Self, Error> {
        let failed = || Error::system("stay as an init");
        let (ours, lines) = channel_pair().map_err(failed())?;
        match fork_off().map_err(failed())? {
            Fork::Line => Ok(Self(lines)),
            Fork::Init { child } => {
                drop(lines);
                end(keep_only(ours)
                    .and_then(|channel| InitProcess::new(child, channel)?.keep())
                    .unwrap_or_else(|error| {
                        complain(&error);
                        ExitStatus::System as i32
                    }))
            }
        }
    }

    /// Wraps the end that a predecessor passed.
    pub(super) const fn inherited(lines: OwnedFd) -> Self {
        Self(lines)
    }

    /// Tells the init that `pid` is now the active generation.
    pub(crate) fn tell_head(&self, pid: u32) {
        let packet = Message::Head { pid }.encode();
        if let Err(error) = retry(|| send_packet(self.0.as_fd(), &packet)) {
            tracing::warn!(
                event = "init.unreachable", reason = %error,
                "cannot report the new main process to the init: {error}"
            );
        }
    }
}

/// Writes the reason why the init ends to standard error, because the init has no log. Does not
/// wait for a full pipe.
fn complain(error: &io::Error) {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if nix::poll::poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // If the write fails, the exit code alone reports the error.
        let _ =
            (&stderr).write_all(format!("handoffd: the init cannot go on: {error}\n").as_bytes());
    }
}

impl AsFd for Init {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The process that stays as the init.
struct InitProcess {
    channel: OwnedFd,
    /// Whether any generation still lives.
    line: LineIs,
    signals: SignalFd,
    head: Pid,
    /// How the active generation ended: its exit code, or 128 plus the signal number.
    status: Option<i32>,
    /// The signal that told the service to stop. A generation that becomes active later is sent it
    /// too: the signal may have arrived while that generation was taking over.
    stop: Option<Signal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineIs {
    Alive,
    Over,
}

impl InitProcess {
    fn new(child: Pid, channel: OwnedFd) -> io::Result<Self> {
        let mut signals: SigSet = PASSED_ON.into_iter().collect();
        signals.add(Signal::SIGCHLD);
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { channel, line: LineIs::Alive, signals, head: child, status: None, stop: None })
    }

    /// Runs until all generations have ended. Returns the exit status of the last active
    /// generation.
    fn keep(mut self) -> io::Result<i32> {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(status)) => return Ok(status),
                // The service ends with this process, so wait for any temporary shortage to pass.
                Err(error) if will_pass(&error) => pause(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Handles everything that is pending, then waits for more. Returns the status of the active
    /// generation once all generations have ended.
    fn turn(&mut self) -> io::Result<Option<i32>> {
        // Read the channel first: it says which process is the active generation and gets the
        // signal.
        self.hear()?;
        while let Some(signal) = self.signals.read_signal()? {
            self.pass_on(&signal);
        }
        self.reap()?;
        if let (LineIs::Over, Some(status)) = (self.line, self.status) {
            return Ok(Some(status));
        }
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.line == LineIs::Alive {
            watched.push(PollFd::new(self.channel.as_fd(), PollFlags::POLLIN));
        }
        nix::poll::poll(&mut watched, PollTimeout::NONE)?;
        Ok(None)
    }

    /// Reads the messages of the generations.
    fn hear(&mut self) -> io::Result<()> {
        while self.line == LineIs::Alive {
            match receive(self.channel.as_fd(), &mut Vec::new()) {
                Ok(Received::Message(Message::Head { pid })) => self.take_head(pid),
                Ok(Received::Message(_) | Received::Passed(..) | Received::Garbage(_)) => {}
                Ok(Received::End) => self.line = LineIs::Over,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_head(&mut self, pid: u32) {
        let Ok(pid) = i32::try_from(pid) else { return };
        let pid = Pid::from_raw(pid);
        if pid != self.head {
            (self.head, self.status) = (pid, None);
            if let Some(stop) = self.stop {
                self.send(stop);
            }
        }
    }

    fn pass_on(&mut self, signal: &siginfo) {
        let number =
            i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        let Some(number) = number.filter(|number| PASSED_ON.contains(number)) else { return };
        if !HANDOFF.contains(&number) {
            self.stop = Some(number);
        }
        if signal.ssi_code != FROM_THE_KERNEL {
            self.send(number);
        }
    }

    /// Sends a signal to the active generation, unless it has been reaped. Until it is reaped, its
    /// pid cannot be reused.
    fn send(&self, signal: Signal) {
        if self.status.is_none() {
            // If the process has already ended, its exit status follows.
            let _ = kill(self.head, signal);
        }
    }

    /// Reaps every child that has ended: generations and orphans.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if pid == self.head {
                self.status = Some(status);
            }
        }
    }
}
