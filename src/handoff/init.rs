//! Stays as a small init while a line lives: reaps, passes signals on to the head, and ends with
//! its status.
//!
//! When process 1 of a container ends the kernel kills all others (pid_namespaces(7)), and a
//! supervisor that watches one process takes its end for the service's. So where there is no
//! systemd to be told of another main process, the first process must stay. It forks before
//! anything else, and the child is generation 1; every generation is born with the line's end of a
//! channel, on which the head says that it is. When nobody holds that end any more the line has
//! ended.
//!
//! It opens nothing, binds nothing, and knows nothing of what is served.

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
use crate::error::{Error, Exit};
use crate::sys::init::{Half, end, keep_only, split};
use crate::sys::signals::HANDOFF;
use crate::sys::socket::{channel_pair, pause, retry, send_packet, will_pass};

/// What is passed on to the head.
const PASSED_ON: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// Sent by the kernel, and so to the whole foreground of a terminal: the head has it already,
/// sigaction(2).
const FROM_THE_KERNEL: i32 = 0x80;

/// The line's end of the channel to its init.
#[derive(Debug)]
pub(crate) struct Init(OwnedFd);

impl Init {
    /// Leaves an init behind: returns in its child, and never in the process that calls it.
    pub(super) fn leave() -> Result<Self, Error> {
        let failed = || Error::system("stay as an init");
        let (ours, lines) = channel_pair().map_err(failed())?;
        match split().map_err(failed())? {
            Half::Line => Ok(Self(lines)),
            Half::Init { child } => {
                drop(lines);
                end(keep_only(ours)
                    .and_then(|channel| Keeper::new(child, channel)?.keep())
                    .unwrap_or_else(|error| {
                        complain(&error);
                        Exit::System as i32
                    }))
            }
        }
    }

    /// Takes the end that a predecessor passed.
    pub(super) const fn inherited(lines: OwnedFd) -> Self {
        Self(lines)
    }

    /// Says that `pid` is the head from now on.
    pub(crate) fn tell_head(&self, pid: u32) {
        let packet = Message::Head { pid }.encode();
        if let Err(error) = retry(|| send_packet(self.0.as_fd(), &packet)) {
            tracing::warn!(
                event = "init.unreachable", reason = %error,
                "the init does not hear who is the head: {error}"
            );
        }
    }
}

/// Writes why the init ends to standard error: this process has no log. A full pipe is not waited
/// for.
fn complain(error: &io::Error) {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if nix::poll::poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // If it fails, the exit code says it alone.
        let _ =
            (&stderr).write_all(format!("handoffd: the init cannot go on: {error}\n").as_bytes());
    }
}

impl AsFd for Init {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The half that stays.
struct Keeper {
    channel: OwnedFd,
    /// Whether somebody of the line lives.
    line: LineIs,
    signals: SignalFd,
    head: Pid,
    /// How the head ended: an exit code, or 128 and a signal.
    status: Option<i32>,
    /// What the line was told to stop by. Whoever becomes the head after that is told as well: it
    /// may have been on its way to be the head when it was.
    stop: Option<Signal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineIs {
    Alive,
    Over,
}

impl Keeper {
    fn new(child: Pid, channel: OwnedFd) -> io::Result<Self> {
        let mut signals: SigSet = PASSED_ON.into_iter().collect();
        signals.add(Signal::SIGCHLD);
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { channel, line: LineIs::Alive, signals, head: child, status: None, stop: None })
    }

    /// Until the line has ended: with what status its head did.
    fn keep(mut self) -> io::Result<i32> {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(status)) => return Ok(status),
                // The service ends with this process: it outlives every want that passes.
                Err(error) if will_pass(&error) => pause(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what there is to do, and waits for more; the status of the head when the line has
    /// ended.
    fn turn(&mut self) -> io::Result<Option<i32>> {
        // The channel first: it says which process is the head, and so gets the signal.
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

    /// Takes what the line has said.
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

    /// To the head, unless it has been reaped: until then its number is nobody else's.
    fn send(&self, signal: Signal) {
        if self.status.is_none() {
            // It may have ended; then its end is on the way.
            let _ = kill(self.head, signal);
        }
    }

    /// Reaps whatever has ended: the line's own, and orphans.
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
