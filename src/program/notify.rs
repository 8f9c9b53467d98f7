//! The notification socket of a program (see sd_notify(3)).
//!
//! Only messages from the program's own processes count (see `running`). A sender that ends before
//! its message is read also counts, because a short command such as systemd-notify(1) may end at
//! once, and its ancestors are then unknown. This is safe, because the socket is in a private
//! folder: only processes of the same user can send to it, and they could also signal this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;
use crate::sys::ancillary::{Sender, SenderProcess, receive_with_attachments, report_senders};
use crate::sys::process::has_ended;
use crate::sys::socket::Packet;

/// The maximum size of a message in bytes, as in systemd.
const LONGEST: usize = 4096;

/// The socket to which a program sends its notifications. Each start of the program has a socket of
/// its own, so that a message of an earlier start never counts for a later one.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

/// The content of one message from a program, which may report several things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notification {
    pub(super) ready: bool,
    pub(super) status: Option<String>,
    pub(super) extend: Option<Duration>,
    /// The pid that the program names as its main process (`MAINPID=`).
    pub(super) main: Option<u32>,
    /// Whether the message answers the watchdog (`WATCHDOG=1`).
    pub(super) alive: bool,
    pub(super) stopping: bool,
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

    /// Waits for the next message from a process of the program. `owns` returns whether the process
    /// with a given pid belongs to the program. Cancel safe.
    pub(super) async fn next(&self, owns: impl Fn(u32) -> bool) -> Notification {
        let mut buffer = [0; LONGEST];
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| {
                receive_with_attachments(socket.as_fd(), &mut buffer)
            });
            match received.await {
                // Descriptors that came with the message are closed here. A caller of
                // sd_notify_barrier(3) sends a descriptor, and waits until it is closed.
                Ok((Packet::Whole(length), attached)) => {
                    let is_ours = attached.sender.is_some_and(|sender| is_of(&sender, &owns));
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    if is_ours {
                        return Notification::parse(&text);
                    }
                    tracing::debug!(
                        event = "program.notification_ignored",
                        "ignored a notification from a process that does not belong to the program"
                    );
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Returns whether the sender of a message belongs to the program or has ended.
fn is_of(sender: &Sender, owns: impl Fn(u32) -> bool) -> bool {
    let Some(from) = sender.pid else { return false };
    // Call `owns` first, because the sender may end at any moment.
    owns(from)
        || match &sender.process {
            SenderProcess::Ended => true,
            SenderProcess::Held(process) => process.has_ended(),
            SenderProcess::Unknown => has_ended(from),
        }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // Ignore an error, because the folder is removed too when this process ends.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Notification {
    fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => all.ready = true,
                Some(("STOPPING", "1")) => all.stopping = true,
                Some(("WATCHDOG", "1")) => all.alive = true,
                Some(("MAINPID", pid)) => all.main = pid.parse().ok(),
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
        let text = "READY=1\nSTATUS=up\u{7}\nMAINPID=7\nX=y\nWATCHDOG=1\n\
                    EXTEND_TIMEOUT_USEC=5000000\nnothing\nSTOPPING=1";
        let expected = Notification {
            ready: true,
            status: Some("up\\u{7}".to_owned()),
            extend: Some(Duration::from_secs(5)),
            main: Some(7),
            alive: true,
            stopping: true,
        };
        assert_eq!(Notification::parse(text), expected);
    }

    #[tokio::test]
    async fn only_processes_of_the_program_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let strangers = tokio::time::timeout(Duration::from_millis(200), socket.next(|_| false));
        sender.send_to(b"READY=1", socket.path()).unwrap();
        assert!(strangers.await.is_err(), "a stranger was heard");
        sender.send_to(b"READY=1", socket.path()).unwrap();
        assert!(socket.next(|pid| pid == std::process::id()).await.ready);
    }

    /// Sends `READY=1` from a process that ends at once.
    fn send_from_a_short_process(socket: &NotifySocket) {
        let send = "socket(S, 1, 2, 0) and connect(S, pack('Sa*', 1, $ARGV[0])) or die;
                    send(S, 'READY=1', 0) or die";
        let mut sender = std::process::Command::new("perl");
        assert!(sender.args(["-e", send]).arg(socket.path()).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_sender_that_has_ended_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        send_from_a_short_process(&socket);
        let heard = tokio::time::timeout(Duration::from_secs(60), socket.next(|_| false));
        assert!(heard.await.unwrap().ready);
    }

    #[test]
    fn only_a_process_that_exists_has_not_ended() {
        let ended = |process| {
            let sender = Sender { pid: Some(std::process::id()), process };
            is_of(&sender, |_| false)
        };
        assert!(ended(SenderProcess::Ended) && !ended(SenderProcess::Unknown));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let sender = Sender { pid: Some(child.id()), process: SenderProcess::Unknown };
        assert!(is_of(&sender, |_| false));
    }
}
