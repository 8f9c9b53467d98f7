//! A small init process that stays alive as long as the service runs. It reaps child processes,
//! forwards signals to the active generation, and exits with the status of that generation.
//!
//! The init process exists because some environments end the service when its first process ends.
//! The kernel kills all processes of a container when its process 1 ends (see pid_namespaces(7)). A
//! supervisor that watches only one process treats the end of that process as the end of the
//! service. systemd can follow a new main process, but other supervisors cannot.
//!
//! The first process forks before it does anything else. The parent stays as the init process, and
//! the child becomes generation 1. All generations inherit one end of a channel to the init
//! process. On this channel, the init process learns the pid of the active generation. End of file
//! on the channel means that all generations have ended.
//!
//! The init process opens no files and binds no sockets. It does not know what the service does.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::message::Message;
use super::packet::{Received, receive};
use crate::error::{Error, ExitStatus};
use crate::sys::init::{Fork, end, fork_off, keep_only};
use crate::sys::signals::{HANDOFF, keep_exit_statuses};
use crate::sys::socket::{channel_pair, pause, retry, send_packet, will_pass};

/// The signals that the init process forwards to the active generation.
const PASSED_ON: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// The value of `si_code` for a signal from the kernel, `SI_KERNEL` (see sigaction(2)). The init
/// process does not forward such a signal, because the kernel sends it to every foreground process
/// of a terminal anyway.
const FROM_THE_KERNEL: i32 = 0x80;

/// A generation's end of the channel to the init process.
#[derive(Debug)]
pub(crate) struct Init(OwnedFd);

impl Init {
    /// Forks this process. The parent becomes the init process, and this function returns only in
    /// the child.
    pub(super) fn leave() -> Result<Self, Error> {
        let failed = || Error::system("start the init process");
        let (ours, theirs) = channel_pair().map_err(failed())?;
        // Do this before the fork, because the child may end before the parent continues.
        keep_exit_statuses().map_err(io::Error::from).map_err(failed())?;
        match fork_off().map_err(failed())? {
            Fork::Child => Ok(Self(theirs)),
            Fork::Init { child } => {
                drop(theirs);
                end(keep_only(ours)
                    .and_then(|channel| InitProcess::new(child, channel)?.keep())
                    .unwrap_or_else(|error| {
                        complain(&error);
                        ExitStatus::System as i32
                    }))
            }
        }
    }

    /// Wraps the end of the channel to the init process that this process received from its
    /// predecessor.
    pub(super) const fn inherited(channel: OwnedFd) -> Self {
        Self(channel)
    }

    /// Tells the init process that the process `pid` is now the active generation.
    pub(crate) fn tell_active(&self, pid: u32) {
        let packet = Message::Active { pid }.encode();
        if let Err(error) = retry(|| send_packet(self.0.as_fd(), &packet)) {
            tracing::warn!(
                event = "init.unreachable", reason = %error,
                "cannot tell the init process which process serves now, so it may send signals to \
                an old one: {error}"
            );
        }
    }
}

/// Writes an error to standard error, because the init process has no log. Called when this error
/// ends the init process. Does not block if standard error is a full pipe.
fn complain(error: &io::Error) {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if nix::poll::poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // Ignore a failure to write, because the exit code reports the error too.
        let _ = (&stderr)
            .write_all(format!("handoffd: the init process cannot continue: {error}\n").as_bytes());
    }
}

impl AsFd for Init {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The state of the init process.
struct InitProcess {
    channel: OwnedFd,
    /// Whether any generation is still alive.
    lineage: LineageState,
    signals: SignalFd,
    active: Pid,
    /// How the active generation ended: its exit code, or 128 plus the number of the signal that
    /// killed it.
    status: Option<i32>,
    /// The child that was reaped last while it was not the active generation, and how it ended.
    other: Option<(Pid, i32)>,
    /// The signal that told the service to stop. It may have arrived while one generation took over
    /// from another. So the init process also sends this signal to each generation that becomes
    /// active later.
    stop: Option<Signal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineageState {
    Alive,
    Over,
}

/// Whether the init process has any child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Children {
    Some,
    None,
}

impl InitProcess {
    fn new(child: Pid, channel: OwnedFd) -> io::Result<Self> {
        let mut signals: SigSet = PASSED_ON.into_iter().collect();
        signals.add(Signal::SIGCHLD);
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            channel,
            lineage: LineageState::Alive,
            signals,
            active: child,
            status: None,
            other: None,
            stop: None,
        })
    }

    /// Runs the init process until all generations have ended. Returns the exit status of the last
    /// active generation.
    fn keep(mut self) -> io::Result<i32> {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(status)) => return Ok(status),
                // Wait until a temporary shortage of memory has passed. The init process must not
                // exit, because the service would end with it.
                Err(error) if will_pass(&error) => pause(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Handles all pending messages, signals and ended children, then waits for more. Returns the
    /// exit status of the active generation once all generations have ended.
    fn turn(&mut self) -> io::Result<Option<i32>> {
        // Read the messages before the signals. A message may name a new active generation, and
        // then the signals must go to that generation.
        self.hear()?;
        while let Some(signal) = self.signals.read_signal()? {
            self.pass_on(&signal);
        }
        let children = self.reap()?;
        if self.lineage == LineageState::Over {
            // Without children, the status of the active generation will never arrive.
            let lost = (children == Children::None).then_some(ExitStatus::System as i32);
            if let Some(status) = self.status.or(lost) {
                return Ok(Some(status));
            }
        }
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.lineage == LineageState::Alive {
            watched.push(PollFd::new(self.channel.as_fd(), PollFlags::POLLIN));
        }
        nix::poll::poll(&mut watched, PollTimeout::NONE)?;
        Ok(None)
    }

    /// Reads the messages that the generations have sent to the init process.
    fn hear(&mut self) -> io::Result<()> {
        while self.lineage == LineageState::Alive {
            match receive(self.channel.as_fd(), &mut Vec::new()) {
                Ok(Received::Message(Message::Active { pid })) => self.take_active(pid),
                Ok(Received::Message(_) | Received::Passed(..) | Received::Garbage(_)) => {}
                Ok(Received::End) => self.lineage = LineageState::Over,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_active(&mut self, pid: u32) {
        let Ok(pid) = i32::try_from(pid) else { return };
        let pid = Pid::from_raw(pid);
        if pid != self.active {
            // The process may have been reaped before this message arrived.
            let early = self.other.filter(|(ended, _)| *ended == pid);
            (self.active, self.status) = (pid, early.map(|(_, status)| status));
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

    /// Sends a signal to the active generation. Does nothing if the init process has already reaped
    /// that generation, because its pid may now belong to another process.
    fn send(&self, signal: Signal) {
        if self.status.is_none() {
            // Ignore an error, which means that the process has ended. The init process then reads
            // its exit status.
            let _ = kill(self.active, signal);
        }
    }

    /// Reaps every child process that has ended, including orphans that the init process has
    /// adopted.
    fn reap(&mut self) -> io::Result<Children> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) => return Ok(Children::Some),
                Err(Errno::ECHILD) => return Ok(Children::None),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if pid == self.active {
                self.status = Some(status);
            } else {
                self.other = Some((pid, status));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::channel_pair;

    /// If its status were lost, the init process would wait for it, and signal a reaped process.
    #[test]
    fn a_generation_reaped_before_it_is_named_has_ended() {
        let (_generations, channel) = channel_pair().unwrap();
        let [first, second] = [i32::MAX - 1, i32::MAX].map(Pid::from_raw);
        let mut init = InitProcess::new(first, channel).unwrap();
        init.other = Some((second, 3));
        init.take_active(second.as_raw().unsigned_abs());
        assert_eq!((init.active, init.status), (second, Some(3)));
    }
}
