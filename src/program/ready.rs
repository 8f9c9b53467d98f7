//! This module detects when a started program is ready.
//!
//! A check must reach the new program only. So it connects to the private address, or runs a
//! command that gets the new program's pid and address. A connection to a shared listener could
//! reach the old program instead.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

use super::command::{PreparedCommand, not_started};
use super::environment::ProgramEnvironment;
use super::output::newline;
use crate::address::Address;
use crate::config::{Attach, ProgramConfig, Ready};
use crate::error::Error;
use crate::net::dial;
use crate::sys::child::Child;

/// The pause between two checks of a program that is not ready yet.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for a connection that shows where a ready program accepts its clients.
const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a program must run to count as ready if it cannot report anything.
const GUESS: Duration = Duration::from_secs(1);

/// The event from which this process learned that a program is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadyBy {
    /// The program reported that it is ready, a check succeeded, or the configured time passed.
    Report,
    /// The program accepts connections on its private address.
    Connect,
    /// The program has reported nothing, but has run for a second. This is a guess.
    Guess,
}

/// A probe that finds out whether one process of a program is ready. The probe holds no copy of a
/// listener, because a copy would keep a closed listener open.
#[derive(Debug)]
pub(super) struct Probe {
    config: Arc<ProgramConfig>,
    ready: Ready,
    private: Option<Address>,
    /// The command that checks the program, with its environment.
    command: Option<(Vec<String>, ProgramEnvironment)>,
    /// The pid of the program.
    pub(super) pid: u32,
    /// What the program has not done yet to be ready, as a part of a sentence.
    missing: Missing,
}

/// What a program has not done yet to be ready, as a part of a sentence. Clones share one text.
#[derive(Clone, Debug)]
pub(super) struct Missing(Arc<Mutex<String>>);

impl Missing {
    fn new(ready: &Ready) -> Self {
        let text = match ready {
            Ready::Notify | Ready::NotifyOrConnect => "it has not sent READY=1".to_owned(),
            Ready::Descriptor(number) => {
                format!("it has not written a newline to descriptor {number}")
            }
            Ready::NotifyOrAlive | Ready::After(_) => "it has not run long enough".to_owned(),
            Ready::Connect | Ready::Http(_) | Ready::Command(_) => {
                "its first readiness check has not ended".to_owned()
            }
        };
        Self(Arc::new(Mutex::new(text)))
    }

    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Probe {
    pub(super) fn new(
        config: Arc<ProgramConfig>,
        ready: Ready,
        private: Option<Address>,
        command: Option<(Vec<String>, ProgramEnvironment)>,
    ) -> Self {
        let missing = Missing::new(&ready);
        Self { config, ready, private, command, pid: 0, missing }
    }

    /// Returns what the program has not done yet to be ready. The text changes with each check.
    pub(super) fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Returns whether a program that became ready through the event `by` can be checked again
    /// later. With [`Ready::NotifyOrConnect`], a check connects to the private address. A program
    /// that has sent `READY=1` may inherit the listeners instead of listening on that address.
    pub(super) fn can_repeat(&self, by: ReadyBy) -> bool {
        self.ready != Ready::NotifyOrConnect || by == ReadyBy::Connect
    }

    /// Returns whether the notification `READY=1` counts as a sign of readiness.
    pub(super) const fn accepts_report(&self) -> bool {
        matches!(self.ready, Ready::Notify | Ready::NotifyOrAlive | Ready::NotifyOrConnect)
    }

    /// Returns the event to note for a program that became ready through the event `by`. If the
    /// program may both inherit the listeners and listen on its private address, a connection to
    /// this address shows which of the two it does.
    pub(super) async fn refined(&self, by: ReadyBy) -> ReadyBy {
        let Some(address) = self.private.as_ref().filter(|_| self.config.attach == Attach::Detect)
        else {
            return by;
        };
        match timeout(DETECT_TIMEOUT, dial(address)).await {
            Ok(Err(_)) => by,
            // The program accepts connections. A full backlog delays the connection, but proves
            // that the program listens.
            Ok(Ok(_)) | Err(_) => ReadyBy::Connect,
        }
    }

    /// Waits until a sign other than a notification shows that the program is ready. Never returns
    /// if only a notification counts, or if the program closes `pipe` without writing a newline.
    pub(super) async fn ready(&self, pipe: Option<OwnedFd>) -> ReadyBy {
        match self.ready {
            Ready::Notify => std::future::pending().await,
            Ready::NotifyOrAlive => {
                sleep(GUESS).await;
                ReadyBy::Guess
            }
            Ready::Descriptor(_) => {
                let is_written = match pipe {
                    Some(pipe) => newline(pipe).await,
                    None => false,
                };
                if is_written { ReadyBy::Report } else { std::future::pending().await }
            }
            Ready::After(time) => {
                sleep(time).await;
                ReadyBy::Report
            }
            Ready::NotifyOrConnect | Ready::Connect => {
                self.until_it_succeeds().await;
                ReadyBy::Connect
            }
            Ready::Command(_) | Ready::Http(_) => {
                self.until_it_succeeds().await;
                ReadyBy::Report
            }
        }
    }

    async fn until_it_succeeds(&self) {
        while let Err(why) = self.check().await {
            let also = if self.ready == Ready::NotifyOrConnect {
                ", and it has not sent READY=1; if it uses the inherited listeners and sends no \
                 READY=1, set --attach inherit"
            } else {
                ""
            };
            self.missing.set(why + also);
            sleep(PAUSE).await;
        }
    }

    /// Checks a ready program periodically, and returns when a check fails, with the reason. Never
    /// returns if no checks are configured.
    pub(super) async fn failure(&self) -> String {
        let Some(interval) = self.config.check_interval else {
            return std::future::pending().await;
        };
        loop {
            sleep(interval).await;
            if let Err(why) = self.check().await {
                return why;
            }
        }
    }

    /// Checks once whether the program is ready, and returns why it is not. If the configured sign
    /// of readiness cannot be checked again, such as a notification, the program counts as ready.
    async fn check(&self) -> Result<(), String> {
        let checked = async {
            match (&self.ready, &self.private) {
                (Ready::Connect | Ready::NotifyOrConnect, Some(address)) => dial(address)
                    .await
                    .map(drop)
                    .map_err(|error| format!("it does not accept connections: {error}")),
                (Ready::Http(path), Some(address)) => answers(address, path).await,
                (Ready::Command(words), _) if !self.succeeds().await => {
                    Err(format!("its check {} fails", words[0]))
                }
                _ => Ok(()),
            }
        };
        let timed_out = || Err(format!("its check has not ended within {CHECK_TIMEOUT:?}"));
        timeout(CHECK_TIMEOUT, checked).await.unwrap_or_else(|_| timed_out())
    }

    /// Runs the check command, and returns whether it succeeds. Kills a command that takes too
    /// long.
    async fn succeeds(&self) -> bool {
        let command = match self.start_command() {
            Ok(command) => command,
            Err(error) => {
                tracing::debug!(
                    event = "program.check_failed", program_pid = self.pid, reason = %error,
                    "cannot run the readiness check: {error}"
                );
                return false;
            }
        };
        // Use a separate task, so that the command is reaped even if this future is dropped.
        let ended = tokio::spawn(async move {
            match timeout(CHECK_TIMEOUT, command.wait()).await {
                Ok(status) => status.is_ok_and(|status| status.success()),
                Err(_) => {
                    command.signal_group(Signal::SIGKILL);
                    let _ = command.wait().await;
                    false
                }
            }
        });
        ended.await.unwrap_or(false)
    }

    fn start_command(&self) -> Result<Child, Error> {
        let (words, mut variables) = self.command.clone().unwrap_or_default();
        variables.insert("HANDOFFD_PROGRAM_PID".into(), self.pid.to_string().into());
        let nothing = File::open("/dev/null")
            .map_err(|source| not_started("the readiness check".to_owned(), source))?;
        let command = PreparedCommand::new(&self.config, &words, variables)?;
        command.start(&[(nothing.as_fd(), 0)], false, Signal::SIGKILL)
    }
}

/// The maximum length of the first line of an HTTP reply, in bytes. A longer line is cut off.
const LONGEST_LINE: u64 = 8 * 1024;

/// Checks that the program answers an HTTP request for `path` with a status from 200 to 399. If it
/// does not, returns the reason as text.
async fn answers(address: &Address, path: &str) -> Result<(), String> {
    let asked = async {
        let mut stream = dial(address).await?;
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line).await?;
        io::Result::Ok(line)
    };
    let line = asked.await.map_err(|error| format!("it does not answer GET {path}: {error}"))?;
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status.filter(|_| line.starts_with("HTTP/")) {
        Some(200..400) => Ok(()),
        Some(status) => Err(format!("it answers GET {path} with status {status}")),
        None => Err(format!("it answers GET {path}, but not in HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum End {
        Close,
        Stay,
    }

    /// Returns whether a program that answers with `reply` counts as ready. `end` says what the
    /// program does with the connection after the reply.
    async fn is_ready(reply: &[u8], end: End) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let answering = async {
            let (mut client, _) = listener.accept().await.unwrap();
            // Ignore an error: a client that has read enough closes the connection.
            let _ = client.write_all(reply).await;
            if end == End::Close {
                drop(client);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = answers(&address, "/up") => answer.is_ok(),
            () = answering => false,
        }
    }

    #[tokio::test]
    async fn only_a_final_reply_of_success_counts() {
        for reply in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 302 Found\r\n\r\n", "HTTP/1.1 204\n"] {
            assert!(is_ready(reply.as_bytes(), End::Close).await, "{reply:?}");
        }
        for reply in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 503 No\r\n\r\n", "up 200\n", ""] {
            assert!(!is_ready(reply.as_bytes(), End::Close).await, "{reply:?}");
        }
    }

    #[tokio::test]
    async fn a_reply_without_end_is_not_read_to_its_end() {
        assert!(!is_ready(&[b'x'; 100_000], End::Stay).await);
    }
}
