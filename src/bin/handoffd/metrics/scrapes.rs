//! This module asks the active generation for its counters on behalf of all scrapes that wait, on
//! one thread.
//!
//! A question waits for other generations, up to seconds when one of them is stuck. So no runtime
//! that serves clients waits for it, and neither does a thread for each scrape: whatever number of
//! collectors come, there is one question under way, and all scrapes that have come before it share
//! its answer.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SendError, Sender};
use std::sync::{Mutex, PoisonError};

use handoffd::Control;
use hyper::body::Bytes;
use tokio::sync::oneshot;

use super::text;

/// The counters as text, or why there are none.
pub(super) type Answer = Result<Bytes, String>;

/// The scrapes of a process.
#[derive(Debug)]
pub(super) struct Scrapes {
    control: PathBuf,
    /// The way to the thread, from the first scrape on.
    thread: Mutex<Option<Sender<oneshot::Sender<Answer>>>>,
}

impl Scrapes {
    /// Scrapes that are answered over that control socket.
    pub(super) const fn of(control: PathBuf) -> Self {
        Self { control, thread: Mutex::new(None) }
    }

    /// Waits for the counters.
    pub(super) async fn counters(&self) -> Answer {
        let (scrape, answer) = oneshot::channel();
        self.send(scrape)?;
        answer
            .await
            .unwrap_or_else(|_| Err("the thread that asks for the counters has died".to_owned()))
    }

    fn send(&self, scrape: oneshot::Sender<Answer>) -> Result<(), String> {
        // A panic elsewhere has left it whole: it is only ever replaced.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match &*thread {
            Some(thread) => thread.send(scrape),
            None => Err(SendError(scrape)),
        };
        if let Err(SendError(scrape)) = sent {
            *thread = Some(start(&self.control, scrape)?);
        }
        Ok(())
    }
}

/// Starts the thread, with its first scrape.
fn start(
    control: &Path,
    first: oneshot::Sender<Answer>,
) -> Result<Sender<oneshot::Sender<Answer>>, String> {
    let (send, scrapes) = mpsc::channel();
    // It cannot fail: the receiver is here.
    let _ = send.send(first);
    let control = Control::at(control);
    let thread = std::thread::Builder::new().name("metrics".to_owned());
    let spawned = thread.spawn(move || answer_all(&control, &scrapes));
    spawned.map(|_| send).map_err(|error| format!("cannot start a thread: {error}"))
}

fn answer_all(control: &Control, scrapes: &Receiver<oneshot::Sender<Answer>>) {
    while let Ok(first) = scrapes.recv() {
        let all: Vec<_> = std::iter::once(first).chain(scrapes.try_iter()).collect();
        let answer = ask(control);
        if let Err(why) = &answer {
            tracing::warn!(event = "metrics.failed", reason = %why, "no metrics: {why}");
        }
        for scrape in all {
            // A collector that has hung up needs none.
            let _ = scrape.send(answer.clone());
        }
    }
}

fn ask(control: &Control) -> Answer {
    let status = control.status().map_err(|error| error.to_string())?;
    text::encode(status).map(Bytes::from).map_err(|error| error.to_string())
}
