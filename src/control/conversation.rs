//! A conversation on the control socket: one request from a client, and the daemon's replies.
//!
//! The client enforces a deadline for every wait, so a silent daemon cannot block it.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::client::Control;
use super::error::ControlError;
use super::message::Reply;
use crate::sys::socket::will_pass;
use crate::text::{one_line, printable};

/// The time between two status requests while the client waits for another generation to take over.
/// The client has to poll, because the process that would have reported the takeover has died.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// The read timeout after the deadline has passed. It is short, but lets the client read an answer
/// that has already arrived.
const LOOK: Duration = Duration::from_millis(1);
/// The maximum length of an answer in bytes. The status of a service with 10,000 listeners and
/// 10,000 upstreams takes about a tenth of this.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

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
    pub(super) fn peek(&mut self, deadline: Instant) -> Result<Option<Reply>, ControlError> {
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
                let path = printable(&self.control.path);
                let reason = format!("invalid answer from the daemon on {path}: {error}");
                return Err(ControlError::InvalidAnswer { reason });
            }
            Err(source) => return Err(self.control.unreachable(source)),
        };
        // Treat an incomplete line as the end of the replies, because the connection was closed
        // before the line was complete.
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
        serde_json::from_slice(line).map(Some).map_err(|error| ControlError::InvalidAnswer {
            reason: one_line(&format!(
                "invalid answer from the daemon ({error}): {}",
                String::from_utf8_lossy(line)
            )),
        })
    }

    /// Reads the next line. The deadline applies to the whole line, even if its bytes arrive one at
    /// a time.
    fn line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            // Try to read even if the deadline has passed, because an answer may have arrived
            // before the deadline.
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
                return Err(io::Error::other("it is longer than 64 MiB"));
            }
            line.extend_from_slice(&chunk[..length]);
            self.stream.consume(length);
            if length == 0 || line.ends_with(b"\n") {
                return Ok(line);
            }
        }
    }
}

/// Returns the instant that is `time` from now, but at most a year from now. The limit prevents an
/// overflow of the clock.
pub(super) fn from_now(time: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + time.min(LONGEST)
}

/// Returns the time left until `deadline`, or a timeout error if the deadline has passed.
pub(super) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody is left to tell that another process has taken over"
)]
pub(super) fn pause() {
    std::thread::sleep(PAUSE);
}
