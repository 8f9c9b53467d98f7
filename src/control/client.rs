//! Asks the head of a line: how all generations stand, or to hand off; and tells how it ended, whatever happens.
//!
//! A reload's answer has to be the truth. The generation that is asked lives on until it has answered; should it die
//! first, the line itself is asked who serves. Nothing here waits without a deadline, and nothing needs a runtime.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::message::{Refusal, ReloadOptions, Reply, Request};
use crate::error::Error;
use crate::generation::Generation;
use crate::report::Status;

/// How long the head may take to say anything at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How much later than promised an answer may come.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait between two questions when another process is about to take over. There is no event to wait for:
/// whoever would tell has died.
const PAUSE: Duration = Duration::from_millis(50);
/// The name of the socket in its folder.
const FILE: &str = "control";

/// The operator's socket of a line.
#[derive(Clone, Debug)]
pub struct Control {
    path: PathBuf,
}

/// What is heard on the way of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadNews {
    /// The new generation serves, so long after it was asked for.
    Serving {
        /// Its ordinal.
        generation: Generation,
        /// Its process.
        pid: Option<u32>,
        /// How long the handoff took, where that is known.
        after: Option<Duration>,
        /// How many connections the old generation still has, where that is known.
        draining: Option<u64>,
    },
    /// The old generation's last connection has ended.
    Drained {
        /// Its ordinal.
        generation: Generation,
        /// How many connections ended by themselves.
        ended: u64,
        /// How many the new generation has taken over.
        carried: u64,
        /// How many were cut at the deadline.
        cut: u64,
    },
}

/// Where the socket of a daemon is in `folder`, the runtime directory, or in that of the unit that we ship.
#[must_use]
pub fn default_control_path(folder: Option<&Path>) -> PathBuf {
    folder.unwrap_or_else(|| Path::new("/run/handoffd")).join(FILE)
}

impl Control {
    /// The socket at `path`. Nothing is asked yet.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Asks how all generations stand.
    ///
    /// # Errors
    /// [`Error::NobodyAnswers`], [`Error::TryAgain`].
    pub fn status(&self) -> Result<Status, Error> {
        let mut conversation = self.ask(&Request::Status {})?;
        match conversation.hear(ANSWER_TIMEOUT)? {
            Some(Reply::Status(status)) => Ok(*status),
            Some(other) => Err(self.unexpected(&other)),
            None => Err(self.broke_off()),
        }
    }

    /// Has the line hand off, and returns when the new generation serves, or, if that is asked for, when the old one has
    /// drained; `news` hears of each.
    ///
    /// # Errors
    /// [`Error::NobodyAnswers`]; [`Error::HandoffFailed`], [`Error::RolledBack`]: the old generation serves on;
    /// [`Error::TryAgain`]: a handoff is under way, or time ran out.
    pub fn reload(&self, options: &ReloadOptions, mut news: impl FnMut(ReloadNews)) -> Result<(), Error> {
        let mut conversation = self.ask(&Request::Reload(options.clone()))?;
        let (successor, within) = match conversation.hear(ANSWER_TIMEOUT)? {
            Some(Reply::Started { successor, within_ms }) => (successor, Duration::from_millis(within_ms)),
            Some(other) => return Err(self.unexpected(&other)),
            None => return Err(self.broke_off()),
        };
        let within = within.saturating_add(GRACE);
        let deadline = Instant::now().checked_add(within);
        let drain_within = match conversation.hear(within)? {
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
        match conversation.hear(drain_within.saturating_add(GRACE))? {
            Some(Reply::Drained { generation, ended, carried, cut }) => {
                news(ReloadNews::Drained { generation, ended, carried, cut });
                Ok(())
            }
            Some(other) => Err(self.unexpected(&other)),
            // It has ended, and so have its connections, in whatever way.
            None => Ok(()),
        }
    }

    /// Whoever was asked has died during the handoff: finds out who serves.
    fn find_out(
        &self,
        successor: Generation,
        deadline: Option<Instant>,
        mut news: impl FnMut(ReloadNews),
    ) -> Result<(), Error> {
        let died = "the generation that was asked has died";
        loop {
            match self.status() {
                Ok(status) if status.serving >= successor => {
                    let serving = status.generations.iter().find(|report| report.generation == status.serving);
                    let pid = serving.and_then(|report| report.pid);
                    news(ReloadNews::Serving { generation: status.serving, pid, after: None, draining: None });
                    return Ok(());
                }
                Ok(status) => {
                    let reason = format!("{died}, and generation {} serves, not {successor}", status.serving);
                    return Err(Error::HandoffFailed { reason });
                }
                Err(_) if deadline.is_none_or(|deadline| Instant::now() < deadline) => pause(),
                Err(error) => return Err(Error::HandoffFailed { reason: format!("{died}: {error}") }),
            }
        }
    }

    /// Asks, and asks again whoever has become the head in the meantime.
    fn ask(&self, request: &Request) -> Result<Conversation<'_>, Error> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let mut conversation = self.connect(request).map_err(|source| self.unreachable(source))?;
            match (request, conversation.peek(ANSWER_TIMEOUT)?) {
                (_, Some(Reply::Moved {})) | (Request::Status {}, None) => {}
                _ => return Ok(conversation),
            }
            if Instant::now() >= deadline {
                return Err(Error::TryAgain { reason: "the generations change faster than they can be asked".into() });
            }
        }
    }

    fn connect(&self, request: &Request) -> io::Result<Conversation<'_>> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
        // Also how long a connect waits for room in the queue, socket(7).
        socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        socket.connect(&SockAddr::unix(&self.path)?)?;
        let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Conversation { control: self, stream: BufReader::new(stream), peeked: None })
    }

    fn unreachable(&self, source: io::Error) -> Error {
        if is_timeout(&source) { self.silent() } else { Error::NobodyAnswers { path: self.path.clone(), source } }
    }

    fn silent(&self) -> Error {
        Error::TryAgain { reason: format!("no answer in time on {}", self.path.display()) }
    }

    fn broke_off(&self) -> Error {
        Error::TryAgain { reason: format!("whoever was asked on {} ended before it answered", self.path.display()) }
    }

    /// The error that an unwelcome reply is.
    fn unexpected(&self, reply: &Reply) -> Error {
        let Reply::Refused { why, reason } = reply else {
            return Error::Denied { reason: format!("{} answers what was not asked: {reply:?}", self.path.display()) };
        };
        let reason = reason.clone();
        match why {
            Refusal::Failed => Error::HandoffFailed { reason },
            Refusal::RolledBack => Error::RolledBack { reason },
            Refusal::TryAgain => Error::TryAgain { reason },
            Refusal::Denied => Error::Denied { reason },
        }
    }
}

/// How the kernel says that a socket's timeout has passed, socket(7).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[expect(clippy::disallowed_methods, reason = "nobody is left to tell that another process has taken over")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// One request and its replies.
struct Conversation<'a> {
    control: &'a Control,
    stream: BufReader<UnixStream>,
    peeked: Option<Option<Reply>>,
}

impl Conversation<'_> {
    /// The next reply, which stays the next; none at the end.
    fn peek(&mut self, within: Duration) -> Result<Option<Reply>, Error> {
        let reply = self.hear(within)?;
        self.peeked = Some(reply.clone());
        Ok(reply)
    }

    /// The next reply; none at the end.
    fn hear(&mut self, within: Duration) -> Result<Option<Reply>, Error> {
        if let Some(peeked) = self.peeked.take() {
            return Ok(peeked);
        }
        let mut line = String::new();
        let heard =
            self.stream.get_ref().set_read_timeout(Some(within)).and_then(|()| self.stream.read_line(&mut line));
        match heard {
            Ok(_) if line.ends_with('\n') => serde_json::from_str(&line).map(Some).map_err(|error| Error::Denied {
                reason: format!("cannot understand the answer {:?}: {error}", line.trim_end()),
            }),
            // Half a line is an end as well.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(source) => Err(self.control.unreachable(source)),
        }
    }
}
