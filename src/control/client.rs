//! The client of the control socket. It asks the active generation for the status of all
//! generations, or for a reload and its outcome.
//!
//! The client must report the true outcome of a reload. The generation that receives the request
//! stays alive until it has answered. If it dies first, the client asks the daemon which generation
//! serves now.
//!
//! Every wait has a deadline, which the client itself checks, so a silent daemon cannot block the
//! client. The client needs no async runtime. When the client gives up and disconnects, the daemon
//! drops its request (see `server`).

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::error::ControlError;
use super::message::{Refusal, ReloadOptions, Reply, Request};
use crate::generation::Generation;
use crate::report::Status;
use crate::sys;
use crate::sys::socket::{retry, will_pass};
use crate::text::{one_line, printable};

/// How long the client waits for the active generation to answer a request.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The extra time that the client allows for an answer after the deadline that the daemon promised.
const GRACE: Duration = Duration::from_secs(5);
/// The time between two status requests while the client waits for another generation to take over.
/// The client has to poll, because the process that would have reported the takeover has died.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the client still waits for an answer after the deadline, so that it reads an answer
/// that has already arrived.
const LOOK: Duration = Duration::from_millis(1);
/// The maximum length of an answer in bytes. A status report about 10,000 listeners and 10,000
/// upstreams needs a tenth of this.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// The file name of the control socket in the runtime directory of the daemon.
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
    path: PathBuf,
}

/// The progress of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReloadNews {
    /// The new generation accepts all new connections, and the old generation finishes the
    /// connections that it has.
    Serving {
        /// The generation number of the new generation.
        generation: Generation,
        /// The pid of the new generation. `None` if this is not known.
        pid: Option<u32>,
        /// How long the handoff took. `None` if this is not known.
        after: Option<Duration>,
        /// How many connections the old generation still has. `None` if this is not known.
        draining: Option<u64>,
    },
    /// The old generation has no connections left. Each has ended, moved to the new generation, or
    /// been cut.
    Drained {
        /// The generation number of the old generation.
        generation: Generation,
        /// How many connections of the old generation ended normally.
        ended: u64,
        /// How many connections moved to the new generation.
        carried: u64,
        /// How many connections the old generation cut, because its time to drain was over.
        cut: u64,
    },
}

/// The text that the command `reload` prints.
impl fmt::Display for ReloadNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving { generation, pid, after, draining } => {
                write!(f, "generation {generation} serves")?;
                if let Some(pid) = pid {
                    write!(f, ", process {pid}")?;
                }
                if let Some(after) = after {
                    write!(f, ", after {:.3} s", after.as_secs_f64())?;
                }
                if let Some(draining) = draining {
                    write!(f, "; connections left: {draining}")?;
                }
                Ok(())
            }
            Self::Drained { generation, ended, carried, cut } => write!(
                f,
                "generation {generation} has drained; connections that ended: {ended}, that were \
                carried: {carried}, that were cut: {cut}"
            ),
        }
    }
}

/// Returns the path of the control socket in `folder`, which is the runtime directory of the
/// daemon. Without `folder`, returns the path in the runtime directory of the systemd unit that
/// comes with handoffd.
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

    fn status_by(&self, deadline: Instant) -> Result<Status, ControlError> {
        let mut conversation = self.ask(|| Request::Status {}, deadline)?;
        match conversation.hear(deadline)? {
            Some(Reply::Status(status)) => Ok(*status),
            Some(other) => Err(self.unexpected(&other)),
            None => Err(self.broke_off()),
        }
    }

    /// Asks the daemon for a reload, which starts a new generation. Returns when the new generation
    /// serves. With `wait_drained`, returns only when the last connection of the old generation has
    /// ended. Calls `news` at each of these two steps. Returns an error if the new generation does
    /// not serve within `timeout_ms`.
    ///
    /// # Errors
    /// [`ControlError::NobodyAnswers`] if no daemon answers on the socket.
    /// [`ControlError::HandoffFailed`] and [`ControlError::RolledBack`] if the old generation keeps
    /// serving. [`ControlError::TryAgain`] if another handoff is under way or time ran out.
    pub fn reload(
        &self,
        options: &ReloadOptions,
        mut news: impl FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        let limit = options.timeout_ms.map(Duration::from_millis);
        let began = Instant::now();
        self.reload_by(options, limit.map(from_now), &mut news).map_err(|error| {
            match (error, limit) {
                (ControlError::TryAgain { reason }, Some(limit))
                    if reason == self.no_answer() && began.elapsed() >= limit =>
                {
                    ControlError::TryAgain {
                        reason: format!("not done within {} s: {reason}", limit.as_secs_f64()),
                    }
                }
                (error, _) => error,
            }
        })
    }

    /// Asks the daemon for a reload, like [`Control::reload`], but with a deadline. The client
    /// stops waiting at `limit`, unless the new generation already serves by then.
    fn reload_by(
        &self,
        options: &ReloadOptions,
        limit: Option<Instant>,
        news: &mut dyn FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        let until =
            |time: Duration| limit.map_or(from_now(time), |limit| limit.min(from_now(time)));
        let began = Instant::now();
        let request = || {
            let timeout_ms = options.timeout_ms.map(|limit| left_of(limit, began.elapsed()));
            Request::Reload(ReloadOptions { timeout_ms, ..options.clone() })
        };
        let deadline = until(ANSWER_TIMEOUT);
        let mut conversation = self.ask(request, deadline)?;
        let (successor, within) = match conversation.hear(deadline)? {
            Some(Reply::Started { successor, within_ms }) => {
                (successor, Duration::from_millis(within_ms))
            }
            Some(other) => return Err(self.unexpected(&other)),
            None => return Err(self.broke_off()),
        };
        let deadline = until(within.saturating_add(GRACE));
        let drain_within = match conversation.hear(deadline)? {
            Some(Reply::Serving { generation, pid, after_ms, draining, drain_within_ms }) => {
                let after = Some(Duration::from_millis(after_ms));
                news(ReloadNews::Serving { generation, pid, after, draining });
                Duration::from_millis(drain_within_ms)
            }
            Some(other) => return Err(self.unexpected(&other)),
            None => return self.find_out(successor, deadline, news),
        };
        if !options.wait_drained {
            return Ok(());
        }
        match conversation.hear(from_now(drain_within.saturating_add(GRACE)))? {
            Some(Reply::Drained { generation, ended, carried, cut }) => {
                news(ReloadNews::Drained { generation, ended, carried, cut });
                Ok(())
            }
            Some(other) => Err(self.unexpected(&other)),
            // Return success, because the old generation has ended and therefore has no connections
            // left.
            None => Ok(()),
        }
    }

    /// Asks the daemon which generation serves now. This is necessary when the generation that
    /// received the reload request died before it answered.
    fn find_out(
        &self,
        successor: Generation,
        deadline: Instant,
        news: &mut dyn FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        let died = "the generation that was asked has died";
        loop {
            match self.status_by(deadline.max(from_now(PAUSE))) {
                Ok(status) if status.serving >= successor => {
                    let serving = status
                        .generations
                        .iter()
                        .find(|report| report.generation == status.serving);
                    let pid = serving.and_then(|report| report.pid);
                    news(ReloadNews::Serving {
                        generation: status.serving,
                        pid,
                        after: None,
                        draining: None,
                    });
                    return Ok(());
                }
                Ok(status) => {
                    let reason = format!(
                        "{died}, and generation {} serves, not {successor}",
                        status.serving
                    );
                    return Err(ControlError::HandoffFailed { reason });
                }
                Err(_) if Instant::now() < deadline => pause(),
                Err(error) => {
                    return Err(ControlError::HandoffFailed { reason: format!("{died}: {error}") });
                }
            }
        }
    }

    /// Sends a request to the active generation. If another generation has become active in the
    /// meantime, sends the request again to that generation.
    fn ask(
        &self,
        request: impl Fn() -> Request,
        deadline: Instant,
    ) -> Result<Conversation<'_>, ControlError> {
        loop {
            let request = request();
            let mut conversation =
                self.connect(&request, deadline).map_err(|source| self.unreachable(source))?;
            match (request, conversation.peek(deadline)?) {
                (_, Some(Reply::Moved {})) | (Request::Status {}, None) => {}
                _ => return Ok(conversation),
            }
            if Instant::now() >= deadline {
                return Err(ControlError::TryAgain {
                    reason: "the generations change faster than they can be asked".into(),
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
        // Retry after EINTR, which connect(2) returns if this process is stopped and continued
        // while it waits for room in the backlog (see signal(7)).
        retry(|| socket.connect(&address))?;
        let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // A partial write cannot happen here, because the kernel accepts such a short line as a
        // whole or not at all.
        match retry(|| stream.write_all(&line)) {
            // A broken pipe is no error here: the daemon may have refused this client and closed
            // the connection before it read the request.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        Ok(Conversation::new(self, stream))
    }

    fn unreachable(&self, source: io::Error) -> ControlError {
        if is_timeout(&source) {
            self.silent()
        } else {
            ControlError::NobodyAnswers { path: self.path.clone(), source }
        }
    }

    fn silent(&self) -> ControlError {
        ControlError::TryAgain { reason: self.no_answer() }
    }

    fn no_answer(&self) -> String {
        format!("no answer in time on {}", printable(&self.path))
    }

    fn broke_off(&self) -> ControlError {
        ControlError::TryAgain {
            reason: format!("the connection to {} ended without an answer", printable(&self.path)),
        }
    }

    /// Returns the error for a reply that refuses the request or does not match it.
    pub(super) fn unexpected(&self, reply: &Reply) -> ControlError {
        let Reply::Refused { why, reason } = reply else {
            let reason = format!("{} answers what was not asked: {reply:?}", printable(&self.path));
            return ControlError::Denied { reason: one_line(&reason) };
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

/// Returns the instant that is `time` from now. If the clock cannot represent that instant, returns
/// one a year from now.
pub(super) fn from_now(time: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + time.min(LONGEST)
}

/// Returns the time that is left until `deadline`, or a timeout error if it has passed.
fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Returns how many milliseconds of the time limit are left. The first request contains the limit
/// unchanged, because the daemon quotes the limit in its messages.
fn left_of(limit: u64, elapsed: Duration) -> u64 {
    let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if elapsed <= limit / 20 { limit } else { limit.saturating_sub(elapsed) }
}

/// Returns whether an error means that a read or write timeout of the socket has expired (see
/// socket(7)).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody is left to tell that another process has taken over"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// One request to the daemon and the replies to it.
pub(super) struct Conversation<'a> {
    control: &'a Control,
    stream: BufReader<UnixStream>,
    peeked: Option<Option<Reply>>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(control: &'a Control, stream: UnixStream) -> Self {
        Self { control, stream: BufReader::new(stream), peeked: None }
    }

    /// Returns the next reply without consuming it. Returns `None` when the daemon sends no more
    /// replies.
    fn peek(&mut self, deadline: Instant) -> Result<Option<Reply>, ControlError> {
        let reply = self.hear(deadline)?;
        self.peeked = Some(reply.clone());
        Ok(reply)
    }

    /// Returns the next reply. Returns `None` when the daemon sends no more replies.
    pub(super) fn hear(&mut self, deadline: Instant) -> Result<Option<Reply>, ControlError> {
        if let Some(peeked) = self.peeked.take() {
            return Ok(peeked);
        }
        let line = match self.line(deadline) {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Other => {
                let reason =
                    format!("cannot understand {}: {error}", printable(&self.control.path));
                return Err(ControlError::Denied { reason });
            }
            Err(source) => return Err(self.control.unreachable(source)),
        };
        // Treat an incomplete line as the end of the replies.
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
        serde_json::from_slice(line).map(Some).map_err(|error| ControlError::Denied {
            reason: one_line(&format!(
                "cannot understand the answer ({error}): {}",
                String::from_utf8_lossy(line)
            )),
        })
    }

    /// Reads the next line. The deadline is for the whole line, even if the bytes of the line
    /// arrive one by one.
    fn line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            // Wait at least briefly even after the deadline, because an answer may have arrived in
            // time that the client has not read yet.
            let left = if line.is_empty() {
                time_left(deadline).unwrap_or(LOOK)
            } else {
                time_left(deadline)?
            };
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let chunk = match self.stream.fill_buf() {
                Err(error) if will_pass(&error) => {
                    pause();
                    continue;
                }
                chunk => chunk?,
            };
            let length =
                chunk.iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |end| end + 1);
            if line.len() + length > ANSWER_MAX {
                return Err(io::Error::other("an answer of more than 64 MiB"));
            }
            line.extend_from_slice(&chunk[..length]);
            self.stream.consume(length);
            if length == 0 || line.ends_with(b"\n") {
                return Ok(line);
            }
        }
    }
}
