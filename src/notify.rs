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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use sd_notify::NotifyState;

use crate::error::Error;
use crate::sys::socket::{retry, send_with_descriptors, wait_for_room};

/// How long to wait for room in the notification socket before an important message counts as lost.
/// One second is enough, because systemd reads all pending messages between any two of its own
/// actions.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to the service manager. It does nothing if there is no service manager.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    manager: Option<Arc<ManagerSocket>>,
    main_process: MainProcess,
}

/// The service manager's notification socket.
#[derive(Debug)]
struct ManagerSocket {
    address: SocketAddr,
    /// The socket from which this process sends. It is opened at the start, because no file
    /// descriptor may be free later.
    from: UnixDatagram,
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
    /// Wait until the message can be sent, but only until the given time, because the unit's state
    /// depends on it.
    Until(Instant),
    /// Drop the message, because a newer one will follow soon.
    Dropped,
}

impl Delivery {
    /// Returns the delivery of a message that may wait up to [`SEND_TIMEOUT`].
    fn reliable() -> Self {
        Self::Until(Notifier::deadline())
    }
}

impl ManagerSocket {
    /// Sends one message. While the kernel lacks memory, an important message is retried up to 100
    /// times.
    fn send(
        &self,
        delivery: Delivery,
        text: &str,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        loop {
            let send = || {
                self.from.connect_addr(&self.address)?;
                send_with_descriptors(self.from.as_fd(), text.as_bytes(), descriptors)
            };
            let sent = if delivery == Delivery::Dropped { send() } else { retry(send) };
            let is_full = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            match delivery {
                Delivery::Until(until) if is_full && Instant::now() < until => {
                    wait_for_room(self.from.as_fd(), until - Instant::now());
                }
                Delivery::Until(_) | Delivery::Dropped => return sent,
            }
        }
    }
}

impl Notifier {
    /// Creates a notifier for the socket that `NOTIFY_SOCKET` names. The variable contains a path,
    /// or `@` followed by the name of an abstract socket.
    ///
    /// # Errors
    /// [`Error::Environment`] if the value is not a valid socket name, and [`Error::System`] if no
    /// socket can be created.
    pub(crate) fn new(
        notify_socket: Option<&OsStr>,
        main_process: MainProcess,
    ) -> Result<Self, Error> {
        let Some(name) = notify_socket.filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let bytes = name.as_bytes();
        let address = match bytes.split_first() {
            Some((b'@', abstract_name)) => SocketAddr::from_abstract_name(abstract_name),
            Some((b'/', _)) => SocketAddr::from_pathname(name),
            _ => Err(io::Error::other("expected an absolute path or an abstract name")),
        };
        let address = address.map_err(|source| Error::Environment {
            variable: "NOTIFY_SOCKET",
            value: name.to_string_lossy().into_owned(),
            why: source.to_string(),
        })?;
        let from = UnixDatagram::unbound()
            .and_then(|from| from.set_nonblocking(true).map(|()| from))
            .map_err(Error::system("create a socket for notifications"))?;
        Ok(Self { manager: Some(Arc::new(ManagerSocket { address, from })), main_process })
    }

    /// Returns whether a service manager supervises this process.
    #[must_use]
    pub(crate) const fn is_supervised(&self) -> bool {
        self.manager.is_some()
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
        self.send(Delivery::reliable(), &[NotifyState::Ready, NotifyState::Status(status)], &[]);
    }

    /// Reports that a signal has started a handoff. Afterwards the caller must call
    /// [`Notifier::ready`] or [`Notifier::handed_over`].
    ///
    /// The message contains a timestamp (see sd_notify(3)). The timestamp tells systemd that the
    /// message answers the latest signal, not an earlier one.
    pub(crate) fn reloading(&self, status: &str) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(
                Delivery::reliable(),
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

    /// Reports that the process `pid` is now the active generation. Only [`Notifier::barrier`] may
    /// follow, because the service manager ignores other messages from this process from then on.
    ///
    /// # Errors
    /// Returns the reason why the service manager still treats this process as the main process. If
    /// no process receives notifications any more, that is no error, because no service manager
    /// then stops the service when this process ends.
    pub(crate) fn handed_over(&self, pid: Option<u32>, status: &str) -> io::Result<()> {
        let others = [NotifyState::Ready, NotifyState::Status(status)];
        if !self.watches_active_generation() {
            self.send(Delivery::reliable(), &others, &[]);
            return Ok(());
        }
        let pid = pid.ok_or_else(|| io::Error::other("the pid of the new process is unknown"))?;
        let [ready, status] = others;
        match self.deliver(Delivery::reliable(), &[NotifyState::MainPid(pid), ready, status], &[]) {
            Err(error) if !is_unheard(&error) => Err(error),
            Err(_) | Ok(()) => Ok(()),
        }
    }

    /// Asks the service manager to report when it has handled all earlier messages (`BARRIER=1`).
    /// It then closes the other end of the returned pipe. Returns `None` if it does not treat the
    /// active generation as the main process.
    ///
    /// # Errors
    /// Fails if no pipe can be created or the message cannot be sent.
    pub(crate) fn barrier(&self) -> io::Result<Option<OwnedFd>> {
        if !self.watches_active_generation() {
            return Ok(None);
        }
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let barrier = [NotifyState::Custom("BARRIER=1")];
        self.deliver(Delivery::reliable(), &barrier, &[theirs.as_fd()])?;
        Ok(Some(ours))
    }

    /// Reports that the whole service is stopping. A generation that only drains after a handoff
    /// must not call this function.
    pub(crate) fn stopping(&self, status: &str) {
        self.send(Delivery::reliable(), &[NotifyState::Stopping, NotifyState::Status(status)], &[]);
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

    /// Returns the latest time to which important messages wait if they begin to wait now.
    pub(crate) fn deadline() -> Instant {
        Instant::now() + SEND_TIMEOUT
    }

    /// Stores a copy of a socket in the service manager. If all our processes exit, the service
    /// manager passes the socket to the next process that it starts.
    ///
    /// Storing the same socket a second time has no effect. Without `FileDescriptorStoreMax=` in
    /// the unit, systemd does not store the socket and reports no error.
    ///
    /// Waits for the service manager, but only until the given time. All sockets share one deadline
    /// ([`Notifier::deadline`]), because a service manager that hangs would otherwise delay this
    /// process once for each socket.
    pub(crate) fn store(&self, name: &str, socket: impl AsFd, until: Instant) {
        let states = [NotifyState::FdStore, NotifyState::FdName(name)];
        self.send(Delivery::Until(until), &states, &[socket.as_fd()]);
    }

    /// Removes the socket with the given name from the service manager's store. Waits for the
    /// service manager, but only until the given time.
    pub(crate) fn unstore(&self, name: &str, until: Instant) {
        let states = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
        self.send(Delivery::Until(until), &states, &[]);
    }

    /// Sends all `states` like [`Notifier::deliver`]. An error is only logged.
    fn send(&self, delivery: Delivery, states: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) {
        let _ = self.deliver(delivery, states, descriptors);
    }

    /// Sends all `states` in one datagram, so that the service manager applies them together. Logs
    /// an error and returns it.
    fn deliver(
        &self,
        delivery: Delivery,
        states: &[NotifyState<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let sent = manager.send(delivery, &text, descriptors);
        match &sent {
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
        sent
    }
}

/// Returns whether a message was not sent because no process receives notifications.
fn is_unheard(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests;
