//! The data plane for a program with its own server. It forwards the driver's requests to this
//! server, because the driver cannot see the server's connections.

use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use super::{Embedded, ServerRequest, ServerStatus};
use crate::data_plane::{CarryPlane, DataPlane};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{Connections, Counters};

impl DataPlane for Embedded {
    fn start(&mut self, _listeners: &[Listener]) -> Result<(), Error> {
        self.asked.send_replace(ServerRequest::Accepting);
        Ok(())
    }

    /// Resolves at once, because the server itself decides when to accept. Until then, clients wait
    /// in the backlog.
    async fn started(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns a heartbeat that completes at once, because the driver cannot see the server's
    /// accept loops.
    fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        beat.close();
        beat
    }

    /// Never resolves, because your own server ends the process itself when it fails.
    async fn died(&self) -> Error {
        std::future::pending().await
    }

    /// Asks the server to stop accepting. Does not wait until the server has stopped, because the
    /// server still serves the connections that it accepts in the meantime.
    async fn stop_accepting(&mut self) {
        self.asked.send_replace(ServerRequest::Draining);
    }

    /// Does nothing, because the server itself accepts the clients in the backlog.
    fn accept_backlog(&mut self, _listeners: &[Listener]) {}

    /// Does nothing, because the server itself accepts its last clients.
    fn accept_late(&mut self, _replaced: Vec<Listener>) {}

    fn drain(&mut self, _successor: Option<OwnedFd>) {
        self.asked.send_replace(ServerRequest::Draining);
    }

    async fn drained(&self) {
        // Ignore an error, which means that the server has dropped its end of the channel and so
        // has no connections left.
        let _ = self.heard.clone().wait_for(|told| *told == ServerStatus::Drained).await;
    }

    fn cut(&mut self) {
        self.asked.send_replace(ServerRequest::Cut);
    }

    /// Returns `None`, because only the server counts its connections.
    fn connections(&self) -> Option<Connections> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn report(&self) -> DrainReport {
        DrainReport { ended: 0, carried: 0, cut: 0 }
    }
}

/// No connections move to the successor, because only the server knows their state.
impl CarryPlane for Embedded {}
