//! A service manager: receives the lineage's notifications with their senders, and keeps stored
//! descriptors.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::DEADLINE;

/// The manager's end of `NOTIFY_SOCKET`.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: tempfile::TempDir,
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

impl Manager {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        setsockopt(&socket, sockopt::PassCred, &true).unwrap();
        Self { socket, path, _folder: folder }
    }

    /// Returns the path for `NOTIFY_SOCKET`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the next notification.
    fn try_hear(&self) -> io::Result<Told> {
        let mut text = vec![0; 8192];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut pid, mut descriptors) = (0, Vec::new());
        let heard = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
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
        text.truncate(length);
        Ok(Told { pid, text: String::from_utf8(text).unwrap(), descriptors })
    }

    /// Receives until a notification has a line that begins with `line`. Returns this notification
    /// and all earlier ones.
    pub(crate) fn hear_until(&self, line: &str) -> (Told, Vec<Told>) {
        let mut before = Vec::new();
        loop {
            let told = match self.try_hear() {
                // A receive with a timeout is not restarted after the process was stopped,
                // signal(7).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                heard => {
                    heard.unwrap_or_else(|error| panic!("no {line}: {error}, after {before:#?}"))
                }
            };
            if told.text.lines().any(|found| found.starts_with(line)) {
                return (told, before);
            }
            before.push(told);
        }
    }

    /// Returns the notifications that have arrived and were not received yet.
    pub(crate) fn rest(&self) -> Vec<Told> {
        let mut rest = Vec::new();
        let mut poll = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        while nix::poll::poll(&mut poll, PollTimeout::ZERO).unwrap() > 0 {
            rest.push(self.try_hear().unwrap());
        }
        rest
    }
}
