//! The traits of a data plane, the part of the process that accepts and serves clients. The data
//! plane is the built-in server, a program that this process runs, or your own server.
//!
//! The module `lifecycle` tells the data plane when to accept connections, when to stop accepting,
//! and when to drain or cut its connections. Every data plane implements [`DataPlane`].
//! [`CarryPlane`] has the methods that move open connections between generations. By default, these
//! methods move no connections.

use std::future::{Future, pending, ready};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::carry::CarryEnd;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{CarryForecast, Connections, Counters, ProgramReport};

/// A server that accepts and serves clients. The module `lifecycle` starts and stops it.
pub(crate) trait DataPlane: CarryPlane {
    /// Starts to accept connections on all `listeners`. Must be called in a tokio runtime, at the
    /// start and again after a drain. [`PlaneEvent::Started`] reports when it accepts connections.
    ///
    /// # Errors
    /// Returns an error if it is immediately clear that the data plane cannot start.
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error>;

    /// Waits until the data plane accepts connections on all listeners. Only the default of
    /// [`DataPlane::next`] calls it, so a data plane that overrides that function does not need it.
    /// Cancel safe.
    ///
    /// # Errors
    /// Returns the reason why the data plane will never accept connections.
    fn started(&self) -> impl Future<Output = Result<(), Error>> + Send {
        pending()
    }

    /// Returns how long the data plane may take to stop after [`DataPlane::drain`]. A data plane
    /// that is started again first has to stop, so it needs this much more time.
    fn stop_limit(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns the error for a data plane that has not started within `limit`.
    fn not_started(&self, limit: Duration) -> Error {
        Error::NotAccepting { limit }
    }

    /// Waits until a part of the data plane, such as a worker thread, has died. Returns the reason.
    /// The generation cannot continue without that part. Cancel safe.
    fn died(&self) -> impl Future<Output = Error> + Send;

    /// Sends a heartbeat to every accept loop, to detect a loop that hangs. The returned tracker
    /// completes when every loop has responded.
    fn heartbeat(&self) -> TaskTracker;

    /// Stops accepting. When this function returns, no more connections are accepted.
    fn stop_accepting(&mut self) -> impl Future<Output = ()> + Send;

    /// Accepts all clients that wait in the backlogs of `listeners`, because no generation will
    /// accept on these listeners again. Must be called after [`DataPlane::stop_accepting`]. The
    /// drain may have begun already. Then the connections are asked to finish at once.
    fn accept_backlog(&mut self, listeners: &[Listener]);

    /// Accepts the clients that wait in the backlogs after a rollback, in case no other process is
    /// left to accept them. Then closes this process's copies of the listening sockets. Called
    /// after [`DataPlane::drain`].
    fn serve_backlogs(&mut self, listeners: &[Listener]) {
        self.accept_backlog(listeners);
    }

    /// Closes the copies of the listening sockets that the data plane holds. The predecessor serves
    /// the clients that wait, because this generation has rolled back the handoff. Does not close
    /// the listeners that [`DataPlane::accept_backlog`] has got, because the predecessor does not
    /// have them. Called after [`DataPlane::drain`].
    fn leave_listeners(&mut self) {}

    /// Accepts the last clients of listeners that the successor has replaced with new sockets.
    /// Continues for as long as a TCP handshake may take, because clients may still be connecting
    /// to the old sockets.
    fn accept_late(&mut self, replaced: Vec<Listener>);

    /// Asks every connection to finish. If `successor` is a channel to the new process, asks only
    /// the connections that cannot move to the new process. The others move.
    fn drain(&mut self, successor: Option<OwnedFd>);

    /// Waits until no connection is left. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Closes all open connections without waiting until they end.
    fn cut(&mut self);

    /// Returns the number and age of the open connections and the traffic of all connections, or
    /// `None` if the data plane does not count them.
    fn connections(&self) -> Option<Connections>;

    /// Returns the counters of this generation.
    fn counters(&self) -> Counters;

    /// Returns how the connections of the last drain ended, including those that arrived during the
    /// drain.
    fn report(&self) -> DrainReport;

    /// Records that this generation is now the active one and can no longer be rolled back.
    fn committed(&mut self) {}

    /// Returns a report for each process of the program that this data plane runs. Returns an empty
    /// list if it runs no program.
    fn programs(&self) -> Vec<ProgramReport> {
        Vec::new()
    }

    /// Waits for the next event whose flag is set in `awaited`. Waits forever if no flag is set.
    /// Cancel safe.
    ///
    /// A data plane can override this function to do work between its events, such as starting to
    /// accept when a program is ready.
    fn next(&mut self, awaited: Awaited) -> impl Future<Output = PlaneEvent> + Send {
        next_event(self, awaited)
    }
}

/// Which events of the data plane the lifecycle waits for now. Each flag stands for one variant of
/// [`PlaneEvent`].
#[expect(clippy::struct_excessive_bools, reason = "one for each branch of the select")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    pub(crate) start: bool,
    pub(crate) death: bool,
    pub(crate) carry_end: bool,
    pub(crate) taken_over: bool,
    pub(crate) drained: bool,
}

/// An event of the data plane, the server that accepts and serves connections.
#[derive(Debug)]
pub(crate) enum PlaneEvent {
    /// The data plane accepts connections on all listeners.
    Started,
    /// A part of the data plane has died, or the data plane cannot start.
    Died(Error),
    /// No more connections will move from this process to the successor.
    CarryEnded(CarryEnd),
    /// No more connections will move from a predecessor to this process.
    TakenOver,
    /// The last connection has ended.
    Drained,
}

/// Waits for the next event of `plane` whose flag is set in `awaited`. Waits forever if no flag is
/// set. Cancel safe.
pub(crate) async fn next_event(plane: &impl DataPlane, awaited: Awaited) -> PlaneEvent {
    tokio::select! {
        biased;
        error = plane.died(), if awaited.death => PlaneEvent::Died(error),
        started = plane.started(), if awaited.start => match started {
            Ok(()) => PlaneEvent::Started,
            Err(error) => PlaneEvent::Died(error),
        },
        end = plane.carry_ended(), if awaited.carry_end => PlaneEvent::CarryEnded(end),
        () = plane.taken_over(), if awaited.taken_over => PlaneEvent::TakenOver,
        () = plane.drained(), if awaited.drained => PlaneEvent::Drained,
        else => pending().await,
    }
}

/// The part of a data plane that moves connections between generations.
pub(crate) trait CarryPlane: Send + Sync + Sized + 'static {
    /// Returns how many connections may move to a successor, or `None` if connections cannot move.
    fn forecast(&self) -> Option<CarryForecast> {
        None
    }

    /// Reserves room under the listeners' connection limits for the connections that may move here
    /// from the predecessor. Must be called before the first [`DataPlane::start`].
    fn expect_carried(&mut self, _forecast: CarryForecast) {}

    /// Releases the reserved room, because no more connections move here from the predecessor.
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

    /// Returns whether a predecessor is still moving connections to this process.
    fn is_taking_over(&self) -> bool {
        false
    }

    /// Waits until no more connections will move from a predecessor to this process. Cancel safe.
    fn taken_over(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Waits until no more connections will move to the successor, and returns the reason. Waits
    /// forever if no move has begun. Cancel safe.
    fn carry_ended(&self) -> impl Future<Output = CarryEnd> + Send {
        pending()
    }

    /// Asks the connections that have not moved to the successor to finish.
    fn drain_uncarried(&mut self) {}

    /// After the death of the successor, waits until the data plane knows which connections the
    /// successor had taken over. Cancel safe.
    fn settled(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Records that the successor has died. Returns the number of connections that the successor
    /// had taken over, which may now be lost.
    fn lost_with_successor(&mut self) -> u64 {
        0
    }
}
