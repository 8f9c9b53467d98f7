//! How a started program turns out to be ready.
//!
//! A check asks the new program alone: it connects to the private address, or it runs a command
//! that is given the pid and the address of the new program. On a shared listener a connection
//! could reach the old program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

use super::launch::ProgramLaunch;
use super::output::newline;
use crate::address::Address;
use crate::config::Ready;
use crate::net::dial;

/// The pause between two checks of a program that is not ready yet.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a program must live to count as ready if it cannot report anything.
const GUESS: Duration = Duration::from_secs(1);

/// How a program turned out to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadyBy {
    /// It reported this itself, or a check has succeeded.
    Report,
    /// It accepts connections on its private address.
    Connect,
    /// It has lived long enough. This is a guess.
    Guess,
}

/// Waits until the program is ready in a way that needs no notification. Never returns if only a
/// notification counts. Cancel safe.
pub(super) async fn wait(launch: &ProgramLaunch<'_>, pid: u32, pipe: Option<OwnedFd>) -> ReadyBy {
    match launch.config.ready() {
        Ready::Notify => std::future::pending().await,
        Ready::NotifyOrAlive => {
            sleep(GUESS).await;
            ReadyBy::Guess
        }
        Ready::Descriptor(_) => {
            let written = match pipe {
                Some(pipe) => newline(pipe).await,
                None => false,
            };
            if written { ReadyBy::Report } else { std::future::pending().await }
        }
        Ready::After(time) => {
            sleep(time).await;
            ReadyBy::Report
        }
        Ready::NotifyOrConnect => {
            until(|| check(launch, pid, Ready::Connect)).await;
            ReadyBy::Connect
        }
        Ready::Connect => {
            until(|| check(launch, pid, Ready::Connect)).await;
            ReadyBy::Connect
        }
        ready @ (Ready::Command(_) | Ready::Http(_)) => {
            until(|| check(launch, pid, ready.clone())).await;
            ReadyBy::Report
        }
    }
}

async fn until<F: Future<Output = bool>>(mut check: impl FnMut() -> F) {
    while !check().await {
        sleep(PAUSE).await;
    }
}

/// Checks once whether the program is ready. Returns true for kinds of readiness that cannot be
/// checked again.
pub(super) async fn check(launch: &ProgramLaunch<'_>, pid: u32, ready: Ready) -> bool {
    let checked = async {
        match ready {
            Ready::Connect | Ready::NotifyOrConnect => match launch.private {
                Some(address) => dial(address).await.is_ok(),
                None => true,
            },
            Ready::Http(path) => match launch.private {
                Some(address) => answers(address, &path).await.unwrap_or(false),
                None => true,
            },
            Ready::Command(command) => succeeds(launch, pid, &command).await,
            Ready::Notify | Ready::NotifyOrAlive | Ready::Descriptor(_) | Ready::After(_) => true,
        }
    };
    timeout(CHECK_TIMEOUT, checked).await.unwrap_or(false)
}

/// Returns whether the program answers a request for `path` with a status below 400.
async fn answers(address: &Address, path: &str) -> std::io::Result<bool> {
    let mut stream = dial(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    Ok(line.starts_with("HTTP/") && status.is_some_and(|status| (100..400).contains(&status)))
}

/// Returns whether a command succeeds. It gets the environment of the program, and its pid and
/// private address. A command that takes too long is killed.
async fn succeeds(launch: &ProgramLaunch<'_>, pid: u32, command: &[String]) -> bool {
    let command = match launch.start_check(command, pid) {
        Ok(command) => command,
        Err(error) => {
            tracing::debug!(
                event = "program.check_failed", program_pid = pid, reason = %error,
                "cannot run the readiness check: {error}"
            );
            return false;
        }
    };
    // The task reaps the command even if nobody waits for the result any more.
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
