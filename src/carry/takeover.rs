//! The successor's side of connection transfer. This module takes over open connections from the
//! predecessor, or refuses them.
//!
//! The server prepares a connection, this module sends an answer to the predecessor, and only then
//! does the server serve the connection. Until the answer is sent, the connection belongs to the
//! predecessor. The server refuses a connection that it cannot serve, for example because the
//! listener's connection limit is reached. The predecessor then keeps the connection.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::incoming::{Arrival, CarriedConnection, Incoming};
use super::packet::CarryAnswer;
use super::state::Declined;

/// How many connections to take over before a pause of [`REST`].
const STRETCH: u32 = 64;
/// How long to pause after every [`STRETCH`] connections that arrive. The pauses take about a third
/// of the total time, so that requests on other connections do not pile up. Tokio's timer cannot
/// wait for less than one millisecond.
const REST: Duration = Duration::from_millis(1);

/// How long to reserve places in a connection limit for the predecessor while none of its
/// connections arrives. After that, new clients get these places, so that they do not wait for a
/// predecessor that hangs or for busy connections. A connection that arrives later may exceed the
/// limit, unless this process has a lower limit than the predecessor.
const PATIENCE: Duration = Duration::from_secs(1);

/// A server that takes over connections from the predecessor.
pub(crate) trait TakesOver: Send + Sync + 'static {
    /// A connection that this process can take over, but does not serve yet.
    type Prepared: Send;

    /// Prepares a connection from the predecessor, without reading from the socket or writing to
    /// it.
    ///
    /// # Errors
    /// Returns the reason if this process refuses the connection.
    fn prepare(&self, connection: CarriedConnection) -> Result<Self::Prepared, Declined>;

    /// Serves a connection that now belongs to this process.
    fn start(&self, prepared: Self::Prepared);

    /// Gives new clients the places in the connection limits that are reserved for the
    /// predecessor's connections.
    fn release_reserved(&self) {}
}

/// The tasks that take over connections from the predecessor.
#[derive(Debug)]
pub(crate) struct Takeovers {
    all: TaskTracker,
    /// A token that stops the tasks when it is cancelled. The predecessor then sees that the
    /// channel is closed, and keeps the connections that have not moved.
    stop: CancellationToken,
}

impl Default for Takeovers {
    fn default() -> Self {
        Self::new(TaskTracker::new())
    }
}

impl Takeovers {
    /// Creates a value without tasks. From now on, `all` tracks the tasks of this value.
    pub(crate) fn new(all: TaskTracker) -> Self {
        // Close the tracker, because `TaskTracker::wait` completes only on a closed tracker. A
        // closed tracker still tracks new tasks.
        all.close();
        Self { all, stop: CancellationToken::new() }
    }

    /// Takes over the connections that the predecessor sends through `channel`. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    /// Fails if the channel cannot be registered with the runtime.
    pub(crate) fn begin(&self, channel: OwnedFd, server: impl TakesOver) -> io::Result<()> {
        let (incoming, stop) = (Incoming::new(channel)?, self.stop.clone());
        self.all.spawn(Takeover { incoming, server, stop }.run());
        Ok(())
    }

    /// Returns the tracker of the tasks.
    pub(crate) const fn tracker(&self) -> &TaskTracker {
        &self.all
    }

    /// Stops taking over connections.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Allows takeovers again after [`Takeovers::stop`].
    pub(crate) fn resume(&mut self) {
        if self.stop.is_cancelled() {
            self.stop = CancellationToken::new();
        }
    }
}

/// The task that takes over connections from the predecessor.
struct Takeover<T> {
    incoming: Incoming,
    server: T,
    stop: CancellationToken,
}

impl<T: TakesOver> Takeover<T> {
    /// Takes over connections until the predecessor closes the channel, or until `stop` is
    /// cancelled.
    async fn run(mut self) {
        let (mut taken, mut refused, mut pace) = (0_u64, 0_u64, Pace::default());
        let mut keeps = true;
        loop {
            let arrival = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                arrival = self.incoming.next() => arrival,
                () = sleep(PATIENCE), if keeps => {
                    keeps = false;
                    self.server.release_reserved();
                    continue;
                }
            };
            let (id, prepared) = match arrival {
                Arrival::Connection(arrived) => (arrived.id(), self.prepare(*arrived)),
                Arrival::Damaged { id, why } => (id, Err(why.into())),
                Arrival::End => break,
            };
            let is_taken = prepared.is_ok();
            refused += u64::from(!is_taken);
            if let Err(error) = self.answer(id, prepared).await {
                // Stop receiving, which closes the channel. The predecessor then knows that this
                // process did not take the connection.
                tracing::error!(
                    event = "carry.answer_failed", reason = %error,
                    "cannot tell the old process which client connections were taken over, so the \
                    remaining ones stay there: {error}"
                );
                break;
            }
            taken += u64::from(is_taken);
            // Let other tasks run before the next connection, because thousands of connections may
            // arrive.
            pace.after_one().await;
        }
        self.server.release_reserved();
        if taken + refused > 0 {
            tracing::info!(
                event = "carry.taken_over",
                taken,
                refused,
                "took over {taken} client connections from the old process and refused {refused}"
            );
        }
    }

    /// Prepares a connection from the predecessor. If the server's code panics, refuses the
    /// connection. Otherwise the panic would end this task, and the places that are reserved in the
    /// connection limits would never be released.
    fn prepare(&self, connection: CarriedConnection) -> Result<T::Prepared, Declined> {
        let listener = connection.head.listener.clone();
        let prepare = AssertUnwindSafe(|| self.server.prepare(connection));
        catch_unwind(prepare).unwrap_or_else(|_| {
            tracing::error!(
                event = "carry.check_panicked",
                listener,
                "did not take over a client connection of {listener}, because the code that checks \
                its state panicked"
            );
            Err("the code that checks its state panicked".into())
        })
    }

    /// Sends the answer to the predecessor. Then serves the connection, unless it is refused.
    async fn answer(&self, id: u64, prepared: Result<T::Prepared, Declined>) -> io::Result<()> {
        match prepared {
            Ok(prepared) => {
                self.incoming.answer(id, CarryAnswer::Taken).await?;
                self.server.start(prepared);
                Ok(())
            }
            Err(why) => {
                tracing::debug!(
                    event = "carry.connection_refused",
                    reason = %why,
                    "did not take over a client connection, which stays in the old process: {why}"
                );
                self.incoming.answer(id, CarryAnswer::Refused(why.to_string())).await
            }
        }
    }
}

/// A rate limiter for the takeover. It lets other tasks run after each connection, and pauses after
/// every [`STRETCH`] connections.
#[derive(Debug, Default)]
struct Pace {
    since_rest: u32,
}

impl Pace {
    async fn after_one(&mut self) {
        self.since_rest += 1;
        if self.since_rest == STRETCH {
            self.since_rest = 0;
            sleep(REST).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    /// The takeover pauses after every [`STRETCH`] connections, so that other tasks can run.
    #[tokio::test]
    async fn others_have_the_processors_in_between_however_many_come() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for _ in 0..10 * STRETCH {
            pace.after_one().await;
        }
        assert!(began.elapsed() >= 10 * REST);
    }
}
