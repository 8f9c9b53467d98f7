//! This module tells the service manager, such as systemd, the state of the service (see
//! sd_notify(3)). Without a service manager it sends nothing.
//!
//! The `sd-notify` crate formats the messages, and this module sends them. The crate cannot send
//! them, because it reads `NOTIFY_SOCKET` from the environment, and handoffd has already removed
//! that variable. The crate also lacks support for abstract sockets.
//!
//! With `NotifyAccess=main` systemd accepts messages only from the main process. With
//! `NotifyAccess=all` a message from another process may stop the whole unit. The lifecycle decides
//! which process may send messages; this module does not check that.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::Error;
use crate::sys::socket::send_with_descriptors;

/// How long to wait for room in the notification socket before an important message counts as lost.
/// One second is enough, because systemd reads all pending messages between any two of its own
/// actions.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to the service manager. It does nothing if there is no service manager.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<SocketAddr>,
    main_process: MainProcess,
}

/// The process that the service manager treats as the main process of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MainProcess {
    /// The active generation is the main process. At each handoff the service manager learns the
    /// pid of the new main process.
    #[default]
    ActiveGeneration,
    /// The process that the service manager started stays the main process. This is the case if
    /// that process is our init. It is also the case if the generations run in another pid
    /// namespace, because the service manager then cannot use their pids.
    First,
}

/// What to do with a message while the notification socket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// Wait up to [`SEND_TIMEOUT`] until the message can be sent, because the unit's state depends
    /// on it.
    Reliable,
    /// Drop the message, because a newer one will follow soon.
    Dropped,
}

impl Notifier {
    /// Creates a notifier for the socket that `NOTIFY_SOCKET` names. The variable contains a path,
    /// or `@` followed by the name of an abstract socket.
    ///
    /// # Errors
    /// [`Error::Environment`] if the value is not a valid socket name.
    pub(crate) fn new(
        notify_socket: Option<&OsStr>,
        main_process: MainProcess,
    ) -> Result<Self, Error> {
        let Some(name) = notify_socket.filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let bytes = name.as_bytes();
        let socket = match bytes.split_first() {
            Some((b'@', abstract_name)) => SocketAddr::from_abstract_name(abstract_name),
            Some((b'/', _)) => SocketAddr::from_pathname(name),
            _ => Err(io::Error::other("expected an absolute path or an abstract name")),
        };
        socket.map(|socket| Self { socket: Some(socket), main_process }).map_err(|source| {
            Error::Environment {
                variable: "NOTIFY_SOCKET",
                value: name.to_string_lossy().into_owned(),
                why: source.to_string(),
            }
        })
    }

    /// Returns whether a service manager supervises this process.
    #[must_use]
    pub(crate) const fn is_supervised(&self) -> bool {
        self.socket.is_some()
    }

    /// Returns whether the service manager treats the active generation as the main process. If so,
    /// the service manager notices when the active generation dies.
    #[must_use]
    pub(crate) fn watches_active_generation(&self) -> bool {
        self.is_supervised() && self.main_process == MainProcess::ActiveGeneration
    }

    /// Reports that this process, which is the main process, serves clients. This message also ends
    /// a reload that [`Notifier::reloading`] has reported.
    pub(crate) fn ready(&self, status: &str) {
        self.send(Delivery::Reliable, &[NotifyState::Ready, NotifyState::Status(status)], &[]);
    }

    /// Reports that a signal has started a handoff. Afterwards the caller must call
    /// [`Notifier::ready`] or [`Notifier::handed_over`].
    ///
    /// The message contains a timestamp (see sd_notify(3)). The timestamp tells systemd that the
    /// message answers the latest signal, not an earlier one.
    pub(crate) fn reloading(&self, status: &str) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(
                Delivery::Reliable,
                &[NotifyState::Reloading, now, NotifyState::Status(status)],
                &[],
            ),
            Err(error) => {
                tracing::warn!(
                    event = "notify.failed", reason = %error,
                    "cannot report the reload to the service manager: {error}"
                )
            }
        }
    }

    /// Reports that the process `pid` is now the active generation. This must be the last message
    /// from this process, because the service manager ignores later messages from it.
    pub(crate) fn handed_over(&self, pid: u32, status: &str) {
        let states = [NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status(status)];
        let states = match self.main_process {
            MainProcess::ActiveGeneration => &states[..],
            MainProcess::First => &states[1..],
        };
        self.send(Delivery::Reliable, states, &[]);
    }

    /// Reports that the whole service is stopping. A generation that only drains after a handoff
    /// must not call this function.
    pub(crate) fn stopping(&self, status: &str) {
        self.send(Delivery::Reliable, &[NotifyState::Stopping, NotifyState::Status(status)], &[]);
    }

    /// Reports a status text for the operator.
    pub(crate) fn status(&self, status: &str) {
        self.send(Delivery::Dropped, &[NotifyState::Status(status)], &[]);
    }

    /// Asks the service manager for more time to start or stop: `by`, counted from now. The total
    /// may exceed the start or stop timeout of the unit.
    pub(crate) fn extend(&self, by: Duration) {
        let by = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(Delivery::Dropped, &[NotifyState::ExtendTimeoutUsec(by)], &[]);
    }

    /// Reports to the watchdog of the service manager that this process is alive (`WATCHDOG=1`).
    pub(crate) fn alive(&self) {
        self.send(Delivery::Dropped, &[NotifyState::Watchdog], &[]);
    }

    /// Stores a copy of a socket in the service manager. If all our processes exit, the service
    /// manager passes the socket to the next process that it starts.
    ///
    /// Storing the same socket a second time has no effect. Without `FileDescriptorStoreMax=` in
    /// the unit, systemd does not store the socket and reports no error.
    pub(crate) fn store(&self, name: &str, socket: impl AsFd) {
        let states = [NotifyState::FdStore, NotifyState::FdName(name)];
        self.send(Delivery::Reliable, &states, &[socket.as_fd()]);
    }

    /// Removes the socket with the given name from the service manager's store.
    pub(crate) fn unstore(&self, name: &str) {
        self.send(
            Delivery::Reliable,
            &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
            &[],
        );
    }

    /// Sends all `states` in one datagram, so that the service manager applies them together.
    fn send(&self, delivery: Delivery, states: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let sent = UnixDatagram::unbound().and_then(|from| {
            from.set_write_timeout(Some(SEND_TIMEOUT))?;
            from.set_nonblocking(delivery == Delivery::Dropped)?;
            from.connect_addr(socket)?;
            send_with_descriptors(from.as_fd(), text.as_bytes(), descriptors)
        });
        match sent {
            Err(error) if delivery == Delivery::Dropped => {
                tracing::debug!(
                    event = "notify.unheard", %error, text,
                    "dropped a notification to the service manager: {error}"
                )
            }
            Err(error) => {
                tracing::warn!(
                    event = "notify.failed", reason = %error, text,
                    "cannot notify the service manager: {error}"
                )
            }
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("handoffd-{name}-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        (
            manager,
            Notifier::new(Some(OsStr::new(&format!("@{name}"))), MainProcess::ActiveGeneration)
                .unwrap(),
        )
    }

    fn heard(manager: &UnixDatagram) -> String {
        let mut heard = [0; 256];
        let length = manager.recv(&mut heard).unwrap();
        String::from_utf8(heard[..length].to_vec()).unwrap()
    }

    #[test]
    fn without_a_service_manager_nothing_is_sent() {
        let silent = Notifier::new(None, MainProcess::ActiveGeneration).unwrap();
        assert!(!silent.is_supervised());
        silent.ready("serving");
    }

    /// A handover sends a single datagram to the service manager. In this test the service manager
    /// listens on an abstract socket.
    #[test]
    fn a_handover_sends_pid_ready_and_status_in_one_datagram() {
        let (manager, notifier) = listening("handed-over");
        notifier.handed_over(7, "generation 2 serving");
        assert_eq!(heard(&manager), "MAINPID=7\nREADY=1\nSTATUS=generation 2 serving\n");
    }

    #[test]
    fn an_unchanged_main_process_is_not_named() {
        let (manager, notifier) = listening("stays");
        let notifier = Notifier { main_process: MainProcess::First, ..notifier };
        notifier.handed_over(7, "generation 2 serving");
        assert_eq!(heard(&manager), "READY=1\nSTATUS=generation 2 serving\n");
        assert!(!notifier.watches_active_generation());
    }

    #[test]
    fn a_reload_is_sent_with_its_time_in_one_datagram() {
        let (manager, notifier) = listening("reloading");
        notifier.reloading("handing off");
        let heard = heard(&manager);
        let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.split_once('\n').unwrap().0.parse::<u64>().unwrap() > 0, "{heard}");
    }

    #[test]
    fn a_full_socket_does_not_delay_optional_messages() {
        let (manager, notifier) = listening("full");
        let flood = UnixDatagram::unbound().unwrap();
        flood.connect_addr(&manager.local_addr().unwrap()).unwrap();
        flood.set_nonblocking(true).unwrap();
        while flood.send(b"x").is_ok() {}
        // Send only messages that may be dropped, because the notifier would wait a second for each
        // important message.
        (0..1000).for_each(|_| notifier.alive());
    }

    #[test]
    fn an_impossible_notify_socket_is_named_in_the_error() {
        let error = Notifier::new(Some(OsStr::new("relative")), MainProcess::ActiveGeneration)
            .unwrap_err()
            .to_string();
        assert!(error.contains("NOTIFY_SOCKET") && error.contains("relative"), "{error}");
    }
}
