//! A service manager: receives the lineage's notifications with their senders, and keeps stored
//! descriptors.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::DEADLINE;

/// The manager's end of `NOTIFY_SOCKET`. A thread receives all notifications at once, because a
/// process that hands over waits until they are received (`BARRIER=1`).
#[derive(Debug)]
pub(crate) struct Manager {
    inbox: Arc<Inbox>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Inbox {
    socket: UnixDatagram,
    /// The notifications that no test has read yet.
    told: Mutex<VecDeque<Told>>,
    arrived: Condvar,
}

/// One notification.
#[derive(Debug)]
pub(crate) struct Told {
    /// The sender's process id, as reported by the kernel.
    pub(crate) pid: u32,
    /// The text of the notification, `NAME=VALUE` on each line.
    pub(crate) text: String,
    /// The file descriptors sent with the notification.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Told {
    /// Returns the value of a variable.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Inbox {
    /// Receives the notifications until the manager is dropped.
    fn receive(&self) {
        let mut poll = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        loop {
            // A poll may be interrupted when the process is stopped, signal(7).
            let _ = nix::poll::poll(&mut poll, PollTimeout::NONE);
            if poll[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
                return;
            }
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            self.take_all(&mut told);
            self.arrived.notify_all();
        }
    }

    /// Moves all notifications that have arrived to `told`, except barriers.
    fn take_all(&self, told: &mut VecDeque<Told>) {
        while let Ok(next) = self.take() {
            if next.text != "BARRIER=1\n" {
                told.push_back(next);
            }
        }
    }

    /// Receives one notification, if one has arrived.
    fn take(&self) -> io::Result<Told> {
        let mut text = vec![0; 8192];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut pid, mut descriptors) = (0, Vec::new());
        let heard = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        let length = heard?.bytes;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(sender) => {
                    pid = sender.pid.as_raw_nonzero().get().unsigned_abs()
                }
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                _ => {}
            }
        }
        // A socket that was shut down delivers empty packets without a sender.
        if pid == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.truncate(length);
        Ok(Told { pid, text: String::from_utf8(text).unwrap(), descriptors })
    }
}

impl Manager {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        setsockopt(&socket, sockopt::PassCred, &true).unwrap();
        let (told, arrived) = Default::default();
        let inbox = Arc::new(Inbox { socket, told, arrived });
        let receiver = Arc::clone(&inbox);
        std::thread::spawn(move || receiver.receive());
        Self { inbox, path, _folder: folder }
    }

    /// Returns the path for `NOTIFY_SOCKET`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives until a notification has a line that begins with `line`. Returns this notification
    /// and all earlier ones.
    pub(crate) fn hear_until(&self, line: &str) -> (Told, Vec<Told>) {
        let mut before = Vec::new();
        let mut told = self.inbox.told.lock().unwrap();
        let mut until = Instant::now() + DEADLINE;
        loop {
            if let Some(next) = told.pop_front() {
                if next.text.lines().any(|found| found.starts_with(line)) {
                    return (next, before);
                }
                before.push(next);
                until = Instant::now() + DEADLINE;
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {line} after {before:#?}");
            told = self.inbox.arrived.wait_timeout(told, left).unwrap().0;
        }
    }

    /// Returns the notifications that have arrived and were not received yet.
    pub(crate) fn rest(&self) -> Vec<Told> {
        let mut told = self.inbox.told.lock().unwrap();
        self.inbox.take_all(&mut told);
        told.drain(..).collect()
    }
}

impl Drop for Manager {
    /// Ends the thread that receives.
    fn drop(&mut self) {
        let _ = self.inbox.socket.shutdown(Shutdown::Both);
    }
}
