//! Tells the service manager how the service fares, sd_notify(3); silent where there is none.
//!
//! The words are the `sd-notify` crate's. The sending is ours, because that crate reads `NOTIFY_SOCKET` from the
//! environment, from which we have removed it by then, and cannot reach an abstract socket. Only the main process of a
//! unit may speak under `NotifyAccess=main`; who that is, the lifecycle knows, not this file.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::Error;

/// How long a full notification socket may hold us up. systemd empties it between any two of its own actions.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to the service manager, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<SocketAddr>,
}

impl Notifier {
    /// Speaks to the socket that `NOTIFY_SOCKET` names: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// [`Error::Environment`] when it can name no socket.
    pub(crate) fn new(notify_socket: Option<&OsStr>) -> Result<Self, Error> {
        let Some(name) = notify_socket.filter(|name| !name.is_empty()) else { return Ok(Self::default()) };
        let bytes = name.as_bytes();
        let socket = match bytes.split_first() {
            Some((b'@', abstract_name)) => SocketAddr::from_abstract_name(abstract_name),
            Some((b'/', _)) => SocketAddr::from_pathname(name),
            _ => Err(io::Error::other("expected an absolute path or an abstract name")),
        };
        socket.map(|socket| Self { socket: Some(socket) }).map_err(|source| Error::Environment {
            variable: "NOTIFY_SOCKET",
            value: name.to_string_lossy().into_owned(),
            why: source.to_string(),
        })
    }

    /// Whether a service manager listens: it restarts what dies, so nobody else has to.
    #[must_use]
    pub(crate) const fn is_supervised(&self) -> bool {
        self.socket.is_some()
    }

    /// This process accepts, and is the main one.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// From here on the main process is `pid`. The last word of this one: it is not heard afterwards.
    pub(crate) fn handed_over(&self, pid: u32, status: &str) {
        self.send(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The service as a whole is stopping. Never said by a generation that drains for a successor.
    pub(crate) fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// Sends all of `states` as one datagram, so that they are taken together.
    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let sent = UnixDatagram::unbound().and_then(|from| {
            from.set_write_timeout(Some(SEND_TIMEOUT))?;
            from.send_to_addr(text.as_bytes(), socket)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot notify the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_service_manager_nothing_is_sent_and_nothing_is_wrong() {
        let silent = Notifier::new(None).unwrap();
        assert!(!silent.is_supervised());
        silent.ready("serving");
    }

    #[test]
    fn an_abstract_socket_hears_main_pid_ready_and_status_in_one_datagram() {
        let name = format!("handoffd-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(OsStr::new(&format!("@{name}")))).unwrap().handed_over(7, "generation 2 serving");
        let mut heard = [0; 256];
        let length = manager.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"MAINPID=7\nREADY=1\nSTATUS=generation 2 serving\n");
    }

    #[test]
    fn a_socket_that_can_be_none_is_named() {
        let error = Notifier::new(Some(OsStr::new("relative"))).unwrap_err().to_string();
        assert!(error.contains("NOTIFY_SOCKET") && error.contains("relative"), "{error}");
    }
}
