//! This module requests the counters from the active generation. A single thread does this for all
//! scrapes (requests of metrics collectors) that wait.
//!
//! A request waits for the answers of other generations, which takes seconds if a generation hangs.
//! Such a request must not block the runtime that serves clients, and a separate thread for each
//! scrape would mean too many threads. So one thread sends one request at a time, and gives the
//! answer to all scrapes that arrived before it sent the request.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SendError, Sender};
use std::sync::{Mutex, PoisonError};

use handoffd::control::Control;
use hyper::body::Bytes;
use tokio::sync::oneshot;

use super::text;

/// The counters as text.
pub(super) type ScrapeResult = Result<Bytes, Unavailable>;

/// The reason why the counters are not available.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unavailable(String);

/// Gets the counters for metrics scrapes, with one thread that the first scrape starts.
#[derive(Debug)]
pub(super) struct Scrapes {
    control: PathBuf,
    /// The channel that passes scrapes to the thread. The first scrape creates it.
    thread: Mutex<Option<Sender<oneshot::Sender<ScrapeResult>>>>,
}

impl Scrapes {
    /// Creates a value that reads the counters through the daemon's control socket at `control`.
    pub(super) const fn of(control: PathBuf) -> Self {
        Self { control, thread: Mutex::new(None) }
    }

    /// Waits for the counters of all generations.
    pub(super) async fn counters(&self) -> ScrapeResult {
        let (scrape, answer) = oneshot::channel();
        self.send(scrape)?;
        answer.await.unwrap_or_else(|_| {
            Err(Unavailable("the thread that collects the counters has died".to_owned()))
        })
    }

    fn send(&self, scrape: oneshot::Sender<ScrapeResult>) -> Result<(), Unavailable> {
        // Use the channel even after a panic in another thread, because a new channel always
        // replaces the old one as a whole.
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

/// Starts the thread that requests the counters, and passes it the first scrape.
fn start(
    control: &Path,
    first: oneshot::Sender<ScrapeResult>,
) -> Result<Sender<oneshot::Sender<ScrapeResult>>, Unavailable> {
    let (send, scrapes) = mpsc::channel();
    // Sending cannot fail, because the receiver still exists.
    let _ = send.send(first);
    let control = Control::at(control);
    let thread = std::thread::Builder::new().name("metrics".to_owned());
    let spawned = thread.spawn(move || answer_all(&control, &scrapes));
    spawned.map(|_| send).map_err(|error| Unavailable(format!("cannot start a thread: {error}")))
}

fn answer_all(control: &Control, scrapes: &Receiver<oneshot::Sender<ScrapeResult>>) {
    while let Ok(first) = scrapes.recv() {
        let all: Vec<_> = std::iter::once(first).chain(scrapes.try_iter()).collect();
        let answer = ask(control);
        if let Err(why) = &answer {
            tracing::warn!(event = "metrics.failed", reason = %why, "cannot answer a metrics \
                request: {why}");
        }
        for scrape in all {
            // Ignore the result. Sending fails only if the metrics collector has disconnected.
            let _ = scrape.send(answer.clone());
        }
    }
}

fn ask(control: &Control) -> ScrapeResult {
    let status = control.status().map_err(|error| Unavailable(error.to_string()))?;
    text::encode(status).map(Bytes::from).map_err(|error| Unavailable(error.to_string()))
}
