//! Runs the task of one connection: serve, finish, count, report.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::census::{Counted, End};
use crate::drain::DrainEntry;
use crate::net::{Listener, Peer, Stream};
use crate::service::{Connection, Service};

/// How long a connection that is over stays for its peer's end, so that no reply dies of a reset.
const LINGER: Duration = Duration::from_secs(1);

/// What every connection is served with.
#[derive(Debug)]
pub(super) struct Connections<S> {
    service: Arc<S>,
    first_request_grace: Duration,
}

// Derived, it would ask the service to be Clone.
impl<S> Clone for Connections<S> {
    fn clone(&self) -> Self {
        let Self { service, first_request_grace } = self;
        Self { service: Arc::clone(service), first_request_grace: *first_request_grace }
    }
}

impl<S: Service> Connections<S> {
    pub(super) fn new(service: S, first_request_grace: Duration) -> Self {
        Self { service: Arc::new(service), first_request_grace }
    }

    /// What is done with them.
    pub(super) fn service(&self) -> &S {
        &self.service
    }

    /// Serves one connection in a task of its own, which the drain counts and waits for. Must be called in a tokio runtime.
    pub(super) fn spawn(&self, stream: Stream, peer: Peer, listener: &Listener, entry: &DrainEntry, counted: Counted) {
        let (watch, guard) = entry.admit();
        let mut connection =
            Connection::new(stream, peer, Arc::clone(listener.name()), watch.clone(), self.first_request_grace);
        let service = Arc::clone(&self.service);
        tokio::spawn(async move {
            let ending = {
                // Pinned here: whoever it was passed to by value would make room for a copy of it.
                let serving = pin!(async {
                    service.serve(&mut connection).await?;
                    Ok(connection.stream.finish(LINGER).await)
                });
                Ending::from(watch.unless_cut(serving).await)
            };
            report(&connection, &counted, &ending);
            // The descriptor is closed before the connection is counted as gone.
            drop(connection);
            counted.end(match ending {
                Ending::Cut => End::Cut,
                Ending::Finished { .. } | Ending::Broken(_) if watch.is_told() => End::Drained,
                Ending::Finished { .. } | Ending::Broken(_) => End::Served,
            });
            drop(guard);
        });
    }
}

/// How a connection ended.
enum Ending {
    /// In order. Bytes that came after our end were not answered.
    Finished { late: u64 },
    /// It broke.
    Broken(std::io::Error),
    /// At the drain deadline, or by a signal.
    Cut,
}

impl From<Option<std::io::Result<u64>>> for Ending {
    fn from(served: Option<std::io::Result<u64>>) -> Self {
        match served {
            Some(Ok(late)) => Self::Finished { late },
            Some(Err(error)) => Self::Broken(error),
            None => Self::Cut,
        }
    }
}

/// The one record of a connection.
fn report(connection: &Connection, counted: &Counted, ending: &Ending) {
    let (ending, late, error) = match ending {
        Ending::Finished { late } => ("finished", *late, None),
        Ending::Broken(error) => ("broken", 0, Some(error)),
        Ending::Cut => ("cut", 0, None),
    };
    tracing::debug!(
        listener = connection.listener(),
        peer = %connection.peer(),
        received = connection.stream.received(),
        sent = connection.stream.sent(),
        late,
        seconds = counted.since().elapsed().as_secs_f64(),
        ending,
        error = error.map(tracing::field::display),
        "connection ended"
    );
}
