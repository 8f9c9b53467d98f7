//! Is what the driver needs of whatever serves: our own server, or one that embeds us.

use std::future::Future;

use tokio_util::task::TaskTracker;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{Connections, Counters};
use crate::server::Server;
use crate::service::Service;

/// Serves on listeners, and stops in order.
pub(crate) trait Plane: Send + 'static {
    /// Accepts on all of `listeners`, for the first time or again.
    fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error>;

    /// Asks whatever accepts to show that it does: the beat is over when it has.
    fn heartbeat(&self) -> TaskTracker;

    /// Stops accepting; when it returns, nothing more is accepted.
    fn stop_accepting(&mut self) -> impl Future<Output = ()> + Send;

    /// Accepts what waits in the queues of listeners on which nobody will accept any more.
    fn sweep(&mut self, listeners: &[Listener]);

    /// Tells every connection to come to an end.
    fn drain(&mut self);

    /// Waits until no connection is left. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Cuts what is left.
    fn cut(&mut self);

    /// How its connections stand; none if it counts them itself.
    fn connections(&self) -> Option<Connections>;

    /// What it has done until now, if it counts.
    fn counters(&self) -> Counters;

    /// How those ended that were there when the drain began.
    fn report(&self) -> DrainReport;
}

impl<S: Service> Plane for Server<S> {
    fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        self.accept(listeners)
    }

    fn heartbeat(&self) -> TaskTracker {
        self.heartbeat()
    }

    async fn stop_accepting(&mut self) {
        self.stop_accepting().await;
    }

    fn sweep(&mut self, listeners: &[Listener]) {
        Self::sweep(self, listeners);
    }

    fn drain(&mut self) {
        self.drain();
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
