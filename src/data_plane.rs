//! The traits between the lifecycle and a data plane: the built-in server, or your own server.
//!
//! The lifecycle decides when a data plane starts, stops, drains and cuts. [`DataPlane`] is what
//! every data plane must do. [`CarryPlane`] is for a data plane that carries connections; its
//! default methods carry nothing.

use std::future::{Future, pending, ready};
use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{CarryForecast, Connections, Counters};

/// A server for the clients of listening sockets, which the lifecycle can start and stop.
pub(crate) trait DataPlane: CarryPlane {
    /// Starts serving on all of `listeners`, for the first time or again. Must be called in a tokio
    /// runtime. [`DataPlane::started`] resolves once the data plane serves.
    ///
    /// # Errors
    /// Why it cannot start, if that is known at once.
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error>;

    /// Waits until the data plane serves on all listeners. Cancel safe.
    ///
    /// # Errors
    /// Why it will never serve.
    fn started(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Waits until a part of the data plane has died, so the generation cannot continue. Cancel
    /// safe.
    fn died(&self) -> impl Future<Output = Error> + Send;

    /// Asks every part for a sign of life. The returned tracker completes when every part has given
    /// one.
    fn heartbeat(&self) -> TaskTracker;

    /// Stops accepting. When this returns, no more connections are accepted.
    fn stop_accepting(&mut self) -> impl Future<Output = ()> + Send;

    /// Accepts all clients in the backlogs of `listeners`, on which no generation will accept
    /// again. Must be called before [`DataPlane::drain`].
    fn accept_backlog(&mut self, listeners: &[Listener]);

    /// Accepts the last clients of listeners that the successor has replaced, for as long as a
    /// handshake may take.
    fn accept_late(&mut self, replaced: Vec<Listener>);

    /// Asks every connection to finish. If `successor` holds a channel to the successor,
    /// connections that can be carried move there instead.
    fn drain(&mut self, successor: Option<OwnedFd>);

    /// Waits until no connection is left. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Cuts the remaining connections.
    fn cut(&mut self);

    /// Returns the state of the connections, or `None` if the data plane does not count them.
    fn connections(&self) -> Option<Connections>;

    /// Returns the counters of this generation so far.
    fn counters(&self) -> Counters;

    /// Returns how connections have ended: those open when the drain began, and later ones.
    fn report(&self) -> DrainReport;
}

/// The carrying of connections between generations.
pub(crate) trait CarryPlane: Send + 'static {
    /// Returns which connections may be carried to a successor, or `None` if none can be.
    fn forecast(&self) -> Option<CarryForecast> {
        None
    }

    /// Reserves permits for the connections that may be carried here. Must be called before the
    /// first [`DataPlane::start`].
    fn expect(&mut self, _forecast: CarryForecast) {}

    /// Releases the reserved permits: no more connections will be carried here.
    fn expect_no_more(&mut self) {}

    /// Takes over the connections that the predecessor sends through `channel`. The default closes
    /// the channel, so the predecessor keeps its connections.
    ///
    /// # Errors
    /// Why this is not possible. The predecessor then keeps its connections.
    fn take_over(&mut self, _channel: OwnedFd) -> Result<(), Error> {
        Ok(())
    }

    /// Returns whether a predecessor still carries connections here.
    fn is_taking_over(&self) -> bool {
        false
    }

    /// Waits until no predecessor carries connections here. Cancel safe.
    fn taken_over(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Waits until no more connections are carried to the successor, and returns the reason. Never
    /// returns if none are carried. Cancel safe.
    fn carry_ended(&self) -> impl Future<Output = CarryEnd> + Send {
        pending()
    }

    /// Asks the connections that were not carried to finish.
    fn drain_uncarried(&mut self) {}

    /// Waits until the data plane knows which connections a dead successor had already accepted.
    /// Cancel safe.
    fn settled(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Records that the successor has died. Returns how many carried connections may be lost with
    /// it.
    fn lost_with_successor(&mut self) -> u64 {
        0
    }
}

/// Why no more connections are carried to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// All connections that could be carried have moved.
    AllWent,
    /// The successor accepts no more connections: it does not support carrying, was told to stop,
    /// or is dead.
    ReceiverGone,
}
