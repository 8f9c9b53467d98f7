//! The traits through which the lifecycle controls a data plane. A data plane is the part that
//! serves clients: the built-in server, or your own server.
//!
//! The lifecycle decides when a data plane starts, stops, drains and cuts. Every data plane
//! implements [`DataPlane`]. [`CarryPlane`] adds the carrying, that is, moving connections between
//! generations. Its default methods carry nothing.

use std::future::{Future, pending, ready};
use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{CarryForecast, Connections, Counters};

/// A server for the clients of listening sockets, which the lifecycle of a generation starts and
/// stops.
pub(crate) trait DataPlane: CarryPlane {
    /// Starts to serve on all of `listeners`, for the first time or again. Must be called in a
    /// tokio runtime. [`DataPlane::started`] resolves once the data plane serves.
    ///
    /// # Errors
    /// Returns the reason why the data plane cannot start, if the reason is known at once.
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error>;

    /// Waits until the data plane serves on all listeners. Cancel safe.
    ///
    /// # Errors
    /// Returns the reason why the data plane will never serve.
    fn started(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Waits until a part of the data plane has died, so that the generation cannot continue.
    /// Cancel safe.
    fn died(&self) -> impl Future<Output = Error> + Send;

    /// Asks every part of the data plane for a sign of life. The returned tracker completes when
    /// every part has responded.
    fn heartbeat(&self) -> TaskTracker;

    /// Stops accepting. When this function returns, no more connections are accepted.
    fn stop_accepting(&mut self) -> impl Future<Output = ()> + Send;

    /// Accepts all clients in the backlogs of `listeners`, because no generation will accept on
    /// these listeners again. Must be called before [`DataPlane::drain`].
    fn accept_backlog(&mut self, listeners: &[Listener]);

    /// Accepts the last clients of listeners that the successor has replaced. Continues for as long
    /// as a TCP handshake may take.
    fn accept_late(&mut self, replaced: Vec<Listener>);

    /// Asks every connection to finish. If `successor` is a channel to the successor, connections
    /// that can move there do so instead.
    fn drain(&mut self, successor: Option<OwnedFd>);

    /// Waits until no connection is left. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Closes the remaining connections without waiting for their end.
    fn cut(&mut self);

    /// Returns the number, age and traffic of the open connections, or `None` if the data plane
    /// does not count them.
    fn connections(&self) -> Option<Connections>;

    /// Returns the counters of this generation so far.
    fn counters(&self) -> Counters;

    /// Returns how the connections have ended that were open when the drain began or came later.
    fn report(&self) -> DrainReport;
}

/// The part of a data plane that moves connections between generations.
pub(crate) trait CarryPlane: Send + 'static {
    /// Returns how many connections may move to a successor, or `None` if connections cannot move.
    fn forecast(&self) -> Option<CarryForecast> {
        None
    }

    /// Reserves permits of the connection limits for connections that may move here from the
    /// predecessor. Must be called before the first [`DataPlane::start`].
    fn expect(&mut self, _forecast: CarryForecast) {}

    /// Releases the reserved permits, because no more connections move here from the predecessor.
    fn expect_no_more(&mut self) {}

    /// Takes over the connections that the predecessor sends through `channel`. The default
    /// implementation closes the channel, so the predecessor keeps its connections.
    ///
    /// # Errors
    /// Returns the reason why the connections cannot be taken over. The predecessor then keeps
    /// them.
    fn take_over(&mut self, _channel: OwnedFd) -> Result<(), Error> {
        Ok(())
    }

    /// Returns whether a predecessor still moves connections to this process.
    fn is_taking_over(&self) -> bool {
        false
    }

    /// Waits until no predecessor moves connections to this process any more. Cancel safe.
    fn taken_over(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Waits until no more connections move to the successor, and returns the reason. Never returns
    /// if no connections were to move. Cancel safe.
    fn carry_ended(&self) -> impl Future<Output = CarryEnd> + Send {
        pending()
    }

    /// Asks the connections that have not moved to the successor to finish.
    fn drain_uncarried(&mut self) {}

    /// Waits until the data plane knows which connections the successor accepted before it died.
    /// Cancel safe.
    fn settled(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Records that the successor has died. Returns how many of the connections that moved to it
    /// may be lost.
    fn lost_with_successor(&mut self) -> u64 {
        0
    }
}

/// The reason why no more connections move to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// All connections that could move to the successor have moved.
    AllWent,
    /// The successor takes no more connections: it does not support carrying, was told to stop, or
    /// is dead.
    ReceiverGone,
}
