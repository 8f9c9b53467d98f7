//! This module checks once whether a program is ready or healthy: it connects to the program, sends
//! it an HTTP request, or runs a command.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

use super::command::{PreparedCommand, not_started};
use super::ready::{PAUSE, Probe};
use crate::address::Address;
use crate::config::Ready;
use crate::error::Error;
use crate::net::{Stream, dial, is_local_shortage};
use crate::sys::child::Child;

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a check did not succeed.
#[derive(Debug)]
pub(super) enum FailedCheck {
    /// The program is not ready, or not healthy any more. Holds the reason, as a part of a sentence
    /// about the program.
    NotReady(String),
    /// The check could not be made, because this machine lacks resources or the command of the
    /// check cannot start. Holds the reason, as a sentence.
    Impossible(String),
}

impl FailedCheck {
    /// Returns the failure for the error of a connection to the program. `what` says what the
    /// program does not do.
    fn of(what: &str, error: &io::Error) -> Self {
        if is_impossible(error) {
            Self::Impossible(error.to_string())
        } else {
            Self::NotReady(format!("{what}: {error}"))
        }
    }

    /// Returns why the program does not count as ready, as a part of a sentence.
    pub(super) fn reason(self) -> String {
        match self {
            Self::NotReady(why) => why,
            Self::Impossible(why) => format!("it could not be checked: {why}"),
        }
    }
}

fn not_ready(why: String) -> Result<(), FailedCheck> {
    Err(FailedCheck::NotReady(why))
}

/// Returns whether a connection to the program failed because this machine lacks file descriptors,
/// memory or local ports.
pub(super) fn is_impossible(error: &io::Error) -> bool {
    is_local_shortage(error) || error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32)
}

impl Probe {
    /// Checks once whether the program is ready. If the configured sign of readiness cannot be
    /// checked again, such as a notification, the program counts as ready.
    ///
    /// # Errors
    /// Returns why the program is not ready, or why this check cannot be made.
    pub(super) async fn check(&self) -> Result<(), FailedCheck> {
        let checked = async {
            match (&self.ready, &self.private) {
                (Ready::Connect | Ready::NotifyOrConnect, Some(address)) => accepts(address).await,
                (Ready::Http(path), Some(address)) => answers(address, path).await,
                (Ready::Command(words), _) => self.run_command(&words[0]).await,
                _ => Ok(()),
            }
        };
        let timed_out = || not_ready(format!("its check has not ended within {CHECK_TIMEOUT:?}"));
        timeout(CHECK_TIMEOUT, checked).await.unwrap_or_else(|_| timed_out())
    }

    /// Runs the check command, and checks that it succeeds. Kills a command that takes too long.
    async fn run_command(&self, name: &str) -> Result<(), FailedCheck> {
        let command = self.start_command();
        let command = command.map_err(|error| FailedCheck::Impossible(error.to_string()))?;
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
        let succeeds = ended.await.unwrap_or(false);
        if succeeds { Ok(()) } else { not_ready(format!("its check {name} fails")) }
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

/// Checks that the program accepts connections on its private address.
async fn accepts(address: &Address) -> Result<(), FailedCheck> {
    let failed = |error| FailedCheck::of("it does not accept connections", &error);
    dial_with_backlog(address).await.map(drop).map_err(failed)
}

/// Connects to the program. If the backlog of a Unix socket is full, tries again, as the kernel
/// does for TCP.
async fn dial_with_backlog(address: &Address) -> io::Result<Stream> {
    loop {
        match dial(address).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
            connected => return connected,
        }
    }
}

/// The maximum length of the first line of an HTTP reply, in bytes. A longer line is cut off.
const LONGEST_LINE: u64 = 8 * 1024;

/// Checks that the program answers an HTTP request for `path` with a status from 200 to 399.
async fn answers(address: &Address, path: &str) -> Result<(), FailedCheck> {
    let asked = async {
        let mut stream = dial_with_backlog(address).await?;
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line).await?;
        io::Result::Ok(line)
    };
    let failed = |error| FailedCheck::of(&format!("it does not answer GET {path}"), &error);
    let line = asked.await.map_err(failed)?;
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status.filter(|_| line.starts_with("HTTP/")) {
        Some(200..400) => Ok(()),
        Some(status) => not_ready(format!("it answers GET {path} with status {status}")),
        None => not_ready(format!("it answers GET {path}, but not in HTTP")),
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
