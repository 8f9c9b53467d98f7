//! The notification socket of a program (see sd_notify(3)).
//!
//! Only messages from the program's own processes count: those in its process group, and its
//! descendants. A sender that ends before its message is read also counts, because a short command
//! such as systemd-notify(1) may end at once. The socket is in a private folder, so that only
//! processes of the same user can send to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;
use crate::sys::ancillary::{Sender, SenderProcess, receive_with_attachments, report_senders};
use crate::sys::socket::Packet;

/// The maximum size of a message in bytes, as in systemd.
const LONGEST: usize = 4096;

/// The socket to which a program sends its notifications.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

/// The reports in one message from a program. A message may contain several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notification {
    pub(super) ready: bool,
    pub(super) status: Option<String>,
    pub(super) extend: Option<Duration>,
}

impl NotifySocket {
    /// Creates a socket at `path`, which must not exist. Must be called within a tokio runtime.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM.nonblocking().cloexec(), None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        report_senders(socket.as_fd())?;
        let socket = sys::fd::watch(OwnedFd::from(socket), Interest::READABLE)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Returns the path of the socket, for the variable `NOTIFY_SOCKET`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next message from a process that belongs to the program `pid`. Cancel safe.
    pub(super) async fn next(&self, pid: u32) -> Notification {
        let mut buffer = [0; LONGEST];
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| {
                receive_with_attachments(socket.as_fd(), &mut buffer)
            });
            match received.await {
                // Descriptors that came with the message are closed here. A sender that calls
                // sd_notify_barrier(3) waits until its descriptor is closed.
                Ok((Packet::Whole(length), attached)) => {
                    let is_ours = attached.sender.is_some_and(|sender| is_of(&sender, pid));
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    if is_ours {
                        return Notification::parse(&text);
                    }
                    tracing::debug!(
                        event = "program.notification_ignored",
                        program_pid = pid,
                        "ignored a notification of a process that does not belong to the program"
                    );
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Returns whether the sender of a message belongs to the program `pid`.
fn is_of(sender: &Sender, pid: u32) -> bool {
    let Some(from) = sender.pid else { return false };
    if from == pid || sys::process::is_in_group(from, pid) {
        return true;
    }
    match sender.process {
        SenderProcess::Ended => true,
        SenderProcess::Held(_) | SenderProcess::Unknown => sys::process::is_below(from, pid),
    }
}

impl Notification {
    fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => all.ready = true,
                Some(("STATUS", status)) => all.status = Some(crate::text::one_line(status)),
                Some(("EXTEND_TIMEOUT_USEC", time)) => {
                    all.extend = time.parse().ok().map(Duration::from_micros);
                }
                Some(_) | None => {}
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_may_report_several_things() {
        let text = "READY=1\nSTATUS=up\u{7}\nMAINPID=7\nX=y\nEXTEND_TIMEOUT_USEC=5000000\nnothing";
        let expected = Notification {
            ready: true,
            status: Some("up\\u{7}".to_owned()),
            extend: Some(Duration::from_secs(5)),
        };
        assert_eq!(Notification::parse(text), expected);
    }

    #[tokio::test]
    async fn only_processes_of_the_program_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        // Run another program. This process is its parent, not its descendant, so the message must
        // not count as one from that program.
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        sender.send_to(b"READY=1", socket.path()).unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(200), socket.next(other.id())).await;
        assert!(heard.is_err(), "a stranger was heard");
        sender.send_to(b"READY=1", socket.path()).unwrap();
        assert!(socket.next(std::process::id()).await.ready);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
