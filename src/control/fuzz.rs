//! Fuzz targets for both ends of the control socket. The fuzzers in `fuzz/` call them.

use std::io::Write;
use std::os::unix::net::UnixStream;

use tokio::runtime::{Builder, Runtime};

use super::client::Control;
use super::conversation::{Conversation, from_now};
use super::message::{Reply, Request};
use super::session;
use crate::text::escaped;

/// The maximum size of an input, in bytes. A write of this size fits into the socket buffer, so it
/// never waits for a reader.
const FITTING: usize = 64 * 1024;

thread_local! {
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_time().build().ok();
}

/// Reads a request and returns whether it is valid. Checks that an invalid request is refused with
/// a reason.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let mut left = bytes;
    let read = RUNTIME.with(|runtime| Some(runtime.as_ref()?.block_on(session::read(&mut left))));
    match read {
        Some(Ok(Ok(request))) => {
            let line = serde_json::to_string(&request).unwrap_or_default();
            assert_eq!(serde_json::from_str::<Request>(&line).ok(), Some(request));
            true
        }
        Some(Ok(Err(why))) => {
            check_line(&why.to_string());
            false
        }
        ended => {
            assert!(bytes.is_empty(), "no reply: {ended:?}");
            false
        }
    }
}

/// Reads replies until no more follow or one is invalid. Returns whether there was at least one
/// reply and all were valid.
pub(crate) fn replies(bytes: &[u8]) -> bool {
    let Ok((mut daemon, client)) = UnixStream::pair() else { return false };
    let written = daemon.write_all(&bytes[..bytes.len().min(FITTING)]);
    drop(daemon);
    let control = Control::at("/run/handoffd/control");
    let mut conversation = Conversation::new(&control, client);
    let mut understood = 0;
    loop {
        match conversation.hear(from_now(super::client::ANSWER_TIMEOUT)) {
            Ok(Some(reply)) => {
                let line = serde_json::to_string(&reply).unwrap_or_default();
                assert!(!line.contains('\n'), "{line}");
                check_line(&control.unexpected(&reply).to_string());
                assert_eq!(serde_json::from_str::<Reply>(&line).ok(), Some(reply));
                understood += 1;
            }
            Ok(None) => return understood > 0 && written.is_ok(),
            Err(error) => {
                check_line(&error.to_string());
                return false;
            }
        }
    }
}

/// Checks that a message to the operator is a single line without control characters.
fn check_line(line: &str) {
    assert_eq!(escaped(line), line);
    assert!(line.len() < 5000, "{} bytes", line.len());
}

#[cfg(test)]
pub(crate) use seeds::{conversations, requests};

#[cfg(test)]
mod seeds {
    use super::*;
    use crate::control::{Refusal, ReloadOptions};
    use crate::generation::Generation;
    use crate::report::{
        Counters, GenerationState, LastHandoff, ListenerReport, Outcome, Report, Settings, Status,
    };

    fn line(value: &impl serde::Serialize) -> Vec<u8> {
        let mut line = serde_json::to_vec(value).unwrap();
        line.push(b'\n');
        line
    }

    pub(crate) fn requests() -> Vec<(String, Vec<u8>)> {
        let options = ReloadOptions {
            expect_generation: Some(Generation::FIRST),
            timeout_ms: Some(5000),
            wait_drained: true,
        };
        vec![
            ("status".to_owned(), line(&Request::Status {})),
            ("reload".to_owned(), line(&Request::Reload(options))),
            ("reload-at-once".to_owned(), b"{\"reload\":{}}\n".to_vec()),
        ]
    }

    pub(crate) fn conversations() -> Vec<(String, Vec<u8>)> {
        let (generation, successor) = (Generation::FIRST, Generation::FIRST.next());
        let status = Status {
            serving: successor,
            generations: vec![Report::placeholder(successor, GenerationState::Serving)],
            listeners: vec![ListenerReport {
                name: "web".into(),
                address: "127.0.0.1:80".into(),
                bound: true,
            }],
            last_handoff: Some(LastHandoff {
                unix_ms: 1,
                successor,
                outcome: Outcome::Failed,
                reason: Some("no".into()),
            }),
            settings: Settings { ready_timeout_ms: 1, bake_ms: 2, drain_timeout_ms: 3 },
            counters: Counters::default(),
        };
        let reload = [
            line(&Reply::Started { successor, within_ms: 1, is_watched: false }),
            line(&Reply::Serving {
                generation,
                pid: Some(2),
                after_ms: 3,
                draining: None,
                drain_within_ms: 4,
            }),
            line(&Reply::Drained { generation, ended: 1, carried: 2, cut: 0 }),
        ];
        let refused = Reply::Refused { why: Refusal::RolledBack, reason: "it\ndied".into() };
        vec![
            ("status".to_owned(), line(&Reply::Status(Box::new(status)))),
            ("reload".to_owned(), reload.concat()),
            ("refused".to_owned(), line(&refused)),
            ("moved".to_owned(), line(&Reply::Moved {})),
        ]
    }
}
