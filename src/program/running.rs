//! This module manages the processes of a running program, and tracks which of them is the main
//! process.
//!
//! The main process is the one that was started, unless the program names another with `MAINPID=`
//! (see sd_notify(3)), as a wrapper does. The stop signal goes to the main process. When the main
//! process ends, the program counts as ended.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::notify::{Notification, NotifySocket};
use super::output::LastOutput;
use crate::sys::child::Child;
use crate::sys::fd::watch;
use crate::sys::process::{
    PidFd, has_group, has_variable, is_below, is_in_group, own_group, signal_group,
};

/// How long to wait for the last output of a program that has ended.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// The processes of a program, which are killed when this value is dropped.
pub(super) struct Running {
    child: Child,
    /// The main process that the program has named with `MAINPID=`. `None` if the child is the main
    /// process.
    named: Option<NamedProcess>,
    /// The process groups of named main processes, without groups that may contain strangers.
    groups: Vec<u32>,
    notify: NotifySocket,
    words: LastOutput,
    /// A channel that closes when the program's last output has been copied. `None` after that.
    written: Option<oneshot::Receiver<Infallible>>,
    /// Whether no process of the program is left. Then send no signal, because the kernel may reuse
    /// the id of the process group for an unrelated group.
    is_gone: bool,
}

/// What has followed from a message that names the main process (`MAINPID=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// The named process is the main process now.
    Changed,
    /// The named process was the main process already.
    Unchanged,
    /// The named process has ended or does not belong to the program.
    Ignored,
}

struct NamedProcess {
    pid: u32,
    process: AsyncFd<PidFd>,
}

impl Running {
    /// Takes over a child that was just started. `errors` is the read end of the child's standard
    /// error, and `notify` is its notification socket.
    ///
    /// # Errors
    /// Fails when the thread that reads standard error cannot be started. The child is then killed.
    pub(super) fn new(child: Child, errors: OwnedFd, notify: NotifySocket) -> io::Result<Self> {
        let words = LastOutput::default();
        match words.follow(errors) {
            Ok(written) => Ok(Self {
                child,
                named: None,
                groups: Vec::new(),
                notify,
                words,
                written: Some(written),
                is_gone: false,
            }),
            Err(error) => {
                child.signal_group(Signal::SIGKILL);
                Err(error)
            }
        }
    }

    /// Returns the pid of the main process.
    pub(super) fn pid(&self) -> u32 {
        self.named.as_ref().map_or(self.child.pid(), |named| named.pid)
    }

    /// Returns whether a process belongs to the program. Such a process is in a process group of
    /// the program, or is its descendant. A daemon is neither, but was started with the variable
    /// that names the notification socket of this start.
    fn owns(&self, pid: u32) -> bool {
        let mut leaders = self.groups.iter().copied().chain([self.child.pid(), self.pid()]);
        leaders.any(|leader| is_in_group(pid, leader) || is_below(pid, leader))
            || has_variable(pid, "NOTIFY_SOCKET", self.notify.path().as_os_str())
    }

    /// Waits for the next message from a process of the program. Cancel safe.
    pub(super) async fn notification(&self) -> Notification {
        self.notify.next(|pid| self.owns(pid)).await
    }

    /// Makes the process `pid` the main process. Ignores a process that has ended or does not
    /// belong to the program.
    pub(super) fn name_main(&mut self, pid: u32) -> Naming {
        if pid == self.pid() {
            return Naming::Unchanged;
        }
        if pid == self.child.pid() {
            self.named = None;
            return Naming::Changed;
        }
        let process = PidFd::open(pid).ok().filter(|_| self.owns(pid));
        let process = process.and_then(|process| watch(process, Interest::READABLE).ok());
        match process {
            Some(process) => {
                self.named = Some(NamedProcess { pid, process });
                // Forget groups that have ended, because the kernel may reuse their ids.
                self.groups.retain(|group| has_group(*group));
                self.groups.extend(own_group(pid));
                Naming::Changed
            }
            None => Naming::Ignored,
        }
    }

    /// Waits until the main process has ended. The status is `None` if the main process is not the
    /// child and the kernel no longer has its status. Cancel safe.
    ///
    /// # Errors
    /// Fails when the tokio runtime is shutting down.
    pub(super) async fn ended(&self) -> io::Result<Option<ExitStatus>> {
        match &self.named {
            None => self.child.wait().await.map(Some),
            Some(NamedProcess { pid, process }) => {
                process.readable().await?.retain_ready();
                Ok(process.get_ref().exit_status(*pid))
            }
        }
    }

    /// Sends a signal to the main process.
    pub(super) fn signal(&self, signal: Signal) {
        match &self.named {
            None => self.child.signal(signal),
            // An error means that the process has ended.
            Some(named) => drop(named.process.get_ref().signal(signal)),
        }
    }

    /// Sends a signal to all processes of the program.
    pub(super) fn signal_all(&self, signal: Signal) {
        self.child.signal_group(signal);
        self.groups.iter().for_each(|group| signal_group(*group, signal));
        if self.named.is_some() {
            self.signal(signal);
        }
    }

    /// Returns whether a process of the program is left. Reaps the child if it has ended.
    pub(super) async fn is_left(&mut self) -> bool {
        let _ = timeout(Duration::ZERO, self.child.wait()).await;
        let is_named_left =
            || self.named.as_ref().is_some_and(|named| !named.process.get_ref().has_ended());
        self.groups.retain(|group| has_group(*group));
        let has_group = self.child.has_group() || !self.groups.is_empty();
        self.is_gone = !has_group && !is_named_left();
        !self.is_gone
    }

    /// Kills all processes of the program, and reaps the child. Returns the status of the main
    /// process, or `None` if the kernel no longer has it. Also waits a short time for the last
    /// output.
    pub(super) async fn kill(&mut self) -> Option<ExitStatus> {
        self.signal_all(Signal::SIGKILL);
        self.is_gone = true;
        let mut status = self.child.wait().await.ok();
        if self.named.is_some() {
            status = self.ended().await.ok().flatten();
        }
        self.last_output().await;
        status
    }

    /// Waits a short time until the program's last output has been copied. Without this wait, the
    /// output would be lost if this process ends at once.
    pub(super) async fn last_output(&mut self) {
        let Some(written) = &mut self.written else { return };
        if timeout(LAST_WORDS_TIMEOUT, written).await.is_ok() {
            self.written = None;
        }
    }

    /// Returns how the program ended and what it wrote last, as a part of a sentence.
    pub(super) async fn described(&mut self, status: Option<ExitStatus>) -> String {
        self.last_output().await;
        format!("with {}{}", describe(status), self.words.quoted())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_gone {
            self.signal_all(Signal::SIGKILL);
        }
    }
}

/// Returns how a process ended, as a part of a sentence.
fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "an unknown exit code".to_owned() };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => signal.to_string(),
            Err(_) => format!("signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

/// Returns the exit code that a shell would report: the code itself, or 128 plus the signal number.
pub(super) fn exit_code(status: ExitStatus) -> Option<u8> {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::child::{ChildProgram, start};

    #[tokio::test]
    async fn the_last_output_of_a_killed_program_is_awaited() {
        let program = c"/bin/sleep".to_owned();
        let arguments = [program.clone(), c"1000".to_owned()];
        let child = start(&ChildProgram {
            program: &program,
            arguments: &arguments,
            environment: &[],
            listen_pid: false,
            descriptors: &[],
            directory: None,
            umask: None,
            on_our_death: Signal::SIGKILL,
        });
        let folder = tempfile::tempdir().unwrap();
        let (copies, written) = oneshot::channel();
        let mut running = Running {
            child: child.unwrap(),
            named: None,
            groups: Vec::new(),
            notify: NotifySocket::bind(&folder.path().join("notify")).unwrap(),
            words: LastOutput::default(),
            written: Some(written),
            is_gone: false,
        };
        drop(copies);
        assert_eq!(running.kill().await.unwrap().signal(), Some(9));
        assert!(running.written.is_none(), "the end of the output was not noticed");
    }
}
