//! A client for the control socket. It asks the active generation for the status of all
//! generations, or requests a reload and waits for the outcome.
//!
//! The client needs no async runtime. If the client disconnects before the daemon has replied, the
//! daemon drops the request (see `server`).

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::conversation::{Conversation, from_now, time_left};
use super::error::ControlError;
use super::message::{Refusal, Reply, Request};
use crate::report::Status;
use crate::sys;
use crate::sys::socket::{pause, retry};
use crate::text::{one_line, printable};

/// How long the client waits for the active generation to answer a request.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The file name of the control socket in the daemon's runtime directory.
const FILE: &str = "control";

/// A client of the control socket at a given path.
///
/// ```no_run
/// use handoffd::control::{Control, ControlError, ReloadOptions};
///
/// let control = Control::at("/run/app/control");
/// match control.reload(&ReloadOptions::default(), |news| println!("{news}")) {
///     Ok(()) => println!("the new version serves"),
///     Err(ControlError::RolledBack { reason }) => println!("the old version serves on: {reason}"),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Control {
    pub(super) path: PathBuf,
}

/// Returns the path of the control socket in `folder`, the daemon's runtime directory. Without
/// `folder`, returns the path that the daemon uses under the systemd unit shipped with handoffd.
#[must_use]
pub fn default_control_path(folder: Option<&Path>) -> PathBuf {
    folder.unwrap_or_else(|| Path::new("/run/handoffd")).join(FILE)
}

/// Returns the runtime directory that the service manager created for this process, if any (see
/// systemd.exec(5)). By default the control socket is created in this directory.
#[must_use]
pub fn runtime_directory() -> Option<PathBuf> {
    sys::env::first_folder(&sys::env::variable("RUNTIME_DIRECTORY")?)
}

impl Control {
    /// Creates a client for the control socket at `path`, without connecting to it.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Asks for the status of all generations.
    ///
    /// # Errors
    /// [`ControlError::NobodyAnswers`] if the client cannot connect to a daemon, and
    /// [`ControlError::TryAgain`] if the daemon sends no answer in time.
    pub fn status(&self) -> Result<Status, ControlError> {
        self.status_by(from_now(ANSWER_TIMEOUT))
    }

    pub(super) fn status_by(&self, deadline: Instant) -> Result<Status, ControlError> {
        let mut conversation = self.ask(|| Request::Status {}, deadline)?;
        match conversation.hear(deadline)? {
            Some(Reply::Status(status)) => Ok(*status),
            Some(other) => Err(self.unexpected(&other)),
            None => Err(self.broke_off()),
        }
    }

    /// Sends a request to the active generation. If another generation has become active in the
    /// meantime, sends the request again to that generation.
    pub(super) fn ask(
        &self,
        request: impl Fn() -> Request,
        deadline: Instant,
    ) -> Result<Conversation<'_>, ControlError> {
        loop {
            let request = request();
            let mut conversation =
                self.connect(&request, deadline).map_err(|source| self.unreachable(source))?;
            let reply = conversation.peek(deadline)?;
            match (request, &reply) {
                (_, Some(Reply::Moved {})) | (Request::Status {}, None) => {}
                _ => return Ok(conversation),
            }
            if Instant::now() < deadline {
                pause();
            } else {
                return Err(match reply {
                    Some(_) => ControlError::TryAgain {
                        reason: "each time, a newer process took over before the request was \
                                 answered"
                            .into(),
                    },
                    None => self.broke_off(),
                });
            }
        }
    }

    fn connect(&self, request: &Request, deadline: Instant) -> io::Result<Conversation<'_>> {
        let socket = retry(|| Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None))?;
        // This write timeout also limits how long connect(2) waits for room in the backlog (see
        // socket(7)).
        socket.set_write_timeout(Some(time_left(deadline)?))?;
        let address = SockAddr::unix(&self.path)?;
        // Retry if connect(2) fails with EINTR. This happens if the process is stopped and
        // continued while it waits for room in the backlog (see signal(7)).
        retry(|| socket.connect(&address))?;
        let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // Retrying the whole line is safe: the kernel accepts a line this short completely or not
        // at all.
        match retry(|| stream.write_all(&line)) {
            // Ignore a broken pipe: the daemon may have refused this client and closed the
            // connection before it read the request.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        Ok(Conversation::new(self, stream))
    }

    pub(super) fn unreachable(&self, source: io::Error) -> ControlError {
        if is_timeout(&source) {
            self.silent()
        } else {
            ControlError::NobodyAnswers { path: self.path.clone(), source }
        }
    }

    fn silent(&self) -> ControlError {
        ControlError::TryAgain { reason: self.no_answer() }
    }

    pub(super) fn no_answer(&self) -> String {
        format!("the daemon did not answer in time on {}", printable(&self.path))
    }

    pub(super) fn broke_off(&self) -> ControlError {
        ControlError::TryAgain {
            reason: format!(
                "the connection to the daemon on {} ended without an answer",
                printable(&self.path)
            ),
        }
    }

    /// Returns the error for a reply that refuses the request or does not match it.
    pub(super) fn unexpected(&self, reply: &Reply) -> ControlError {
        let Reply::Refused { why, reason } = reply else {
            let reason = format!(
                "the daemon on {} sent an answer that does not match the request: {reply:?}",
                printable(&self.path)
            );
            return ControlError::InvalidAnswer { reason: one_line(&reason) };
        };
        // Escape the reason, because any program may listen on this path and send any text.
        let reason = one_line(reason);
        match why {
            Refusal::Failed => ControlError::HandoffFailed { reason },
            Refusal::RolledBack => ControlError::RolledBack { reason },
            Refusal::TryAgain => ControlError::TryAgain { reason },
            Refusal::Denied => ControlError::Denied { reason },
        }
    }
}

/// Returns whether an error means that a read or write timeout of the socket has expired (see
/// socket(7)).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
