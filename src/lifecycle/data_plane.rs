//! Is what the driver needs of whatever serves: our own server, or one that embeds us.

use std::future::Future;
use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{Connections, Counters};
use crate::server::{CarryEnd, Server};
use crate::service::Service;

/// Serves on listeners, and stops in order.
pub(crate) trait Plane: Send + 'static {
    /// Accepts on all of `listeners`, for the first time or again.
    fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error>;

    /// Asks whatever accepts to show that it does: the beat is over when it has.
    fn heartbeat(&self) -> TaskTracker;

    /// Waits until a part of what serves has died, so that the generation cannot go on. Cancel
    /// safe.
    fn died(&self) -> impl Future<Output = Error> + Send;

    /// Stops accepting; when it returns, nothing more is accepted.
    fn stop_accepting(&mut self) -> impl Future<Output = ()> + Send;

    /// Accepts what waits in the queues of listeners on which nobody will accept any more.
    fn sweep(&mut self, listeners: &[Listener]);

    /// Accepts, for as long as handshakes that have begun may take, on listeners that others have
    /// replaced.
    fn accept_late(&mut self, replaced: Vec<Listener>);

    /// How many connections a successor could take over, by the name of their listener, where their
    /// number is limited. None if it can take over none.
    fn carries(&self) -> Option<Vec<(usize, String)>>;

    /// So many may be carried here: their places are kept for them. Comes before the first
    /// [`Plane::accept`].
    fn expect(&mut self, coming: Vec<(usize, String)>);

    /// No more will be.
    fn expect_no_more(&mut self);

    /// Takes over what the predecessor carries here.
    fn take_over(&mut self, channel: OwnedFd) -> Result<(), Error>;

    /// Whether a predecessor still carries connections here.
    fn is_taking_over(&self) -> bool;

    /// Waits until none does. Cancel safe.
    fn taken_over(&self) -> impl Future<Output = ()> + Send;

    /// Tells every connection to come to an end, but for those that are carried to a `successor`.
    fn drain(&mut self, successor: Option<OwnedFd>);

    /// Waits until no more are carried; pends for ever when none are. Cancel safe.
    fn carry_ended(&self) -> impl Future<Output = CarryEnd> + Send;

    /// Tells those to come to an end that were not carried.
    fn tell_the_rest(&mut self);

    /// Waits until it is known what became of those that were on their way to a successor that has
    /// died. Cancel safe.
    fn settled(&self) -> impl Future<Output = ()> + Send;

    /// The successor has died: how many of those are lost with it that it has taken over, at most.
    fn successor_lost(&mut self) -> u64;

    /// Waits until no connection is left. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Cuts what is left.
    fn cut(&mut self);

    /// How its connections stand; none if it counts them itself.
    fn connections(&self) -> Option<Connections>;

    /// What it has done until now, if it counts.
    fn counters(&self) -> Counters;

    /// How those ended that were there when the drain began, or came after that.
    fn report(&self) -> DrainReport;
}

/// What the driver waits for from the data plane now.
#[expect(clippy::struct_excessive_bools, reason = "one for each branch of the wait")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    pub(super) death: bool,
    pub(super) carry_end: bool,
    pub(super) taken_over: bool,
    pub(super) drained: bool,
}

/// What the data plane says.
#[derive(Debug)]
pub(super) enum PlaneEvent {
    /// A part of it has died.
    Died(Error),
    /// The successor takes no more connections.
    CarryEnded(CarryEnd),
    /// No predecessor carries connections here any more.
    TakenOver,
    /// No connection is left.
    Drained,
}

/// Waits for the next event of `plane` that is awaited; for ever if none is. Cancel safe.
pub(super) async fn next_of_plane(plane: &impl Plane, awaited: Awaited) -> PlaneEvent {
    tokio::select! {
        biased;
        error = plane.died(), if awaited.death => PlaneEvent::Died(error),
        end = plane.carry_ended(), if awaited.carry_end => PlaneEvent::CarryEnded(end),
        () = plane.taken_over(), if awaited.taken_over => PlaneEvent::TakenOver,
        () = plane.drained(), if awaited.drained => PlaneEvent::Drained,
        else => std::future::pending().await,
    }
}

impl<S: Service> Plane for Server<S> {
    fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        self.accept(listeners)
    }

    fn heartbeat(&self) -> TaskTracker {
        self.heartbeat()
    }

    async fn died(&self) -> Error {
        self.died().await
    }

    async fn stop_accepting(&mut self) {
        self.stop_accepting().await;
    }

    fn sweep(&mut self, listeners: &[Listener]) {
        Self::sweep(self, listeners);
    }

    fn accept_late(&mut self, replaced: Vec<Listener>) {
        Self::accept_late(self, replaced);
    }

    fn carries(&self) -> Option<Vec<(usize, String)>> {
        self.carries()
    }

    fn expect(&mut self, coming: Vec<(usize, String)>) {
        Self::expect(self, coming);
    }

    fn expect_no_more(&mut self) {
        Self::expect_no_more(self);
    }

    fn take_over(&mut self, channel: OwnedFd) -> Result<(), Error> {
        self.take_over(channel)
    }

    fn is_taking_over(&self) -> bool {
        self.is_taking_over()
    }

    async fn taken_over(&self) {
        self.taken_over().await;
    }

    fn drain(&mut self, successor: Option<OwnedFd>) {
        self.drain(successor);
    }

    async fn carry_ended(&self) -> CarryEnd {
        self.carry_ended().await
    }

    fn tell_the_rest(&mut self) {
        self.tell_the_rest();
    }

    async fn settled(&self) {
        self.settled().await;
    }

    fn successor_lost(&mut self) -> u64 {
        Self::successor_lost(self)
    }

    async fn drained(&self) {
        self.drained().await;
    }

    fn cut(&mut self) {
        self.cut();
    }

    fn connections(&self) -> Option<Connections> {
        Some(self.connections())
    }

    fn counters(&self) -> Counters {
        self.counters()
    }

    fn report(&self) -> DrainReport {
        self.report()
    }
}
