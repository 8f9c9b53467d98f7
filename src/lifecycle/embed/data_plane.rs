//! The driver's side of a server of your own: what it is asked, and what is not known of it.

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

    /// The server accepts on its own: clients wait in the backlog until then.
    async fn started(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The driver answers, because it cannot look into the loops of the server.
    fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        beat.close();
        beat
    }

    /// The server ends the process itself.
    async fn died(&self) -> Error {
        std::future::pending().await
    }

    /// The server is asked, and not waited for: what it accepts meanwhile it serves.
    async fn stop_accepting(&mut self) {
        self.asked.send_replace(ServerRequest::Draining);
    }

    /// What waits in the queues belongs to the server's own descriptors.
    fn accept_backlog(&mut self, _listeners: &[Listener]) {}

    /// The same.
    fn accept_late(&mut self, _replaced: Vec<Listener>) {}

    fn drain(&mut self, _successor: Option<OwnedFd>) {
        self.asked.send_replace(ServerRequest::Draining);
    }

    async fn drained(&self) {
        // An error says that the server has dropped its side: there is nobody left to wait for.
        let _ = self.heard.clone().wait_for(|told| *told == ServerStatus::Drained).await;
    }

    fn cut(&mut self) {
        self.asked.send_replace(ServerRequest::Cut);
    }

    /// The server counts its own.
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

/// Only the server knows the state of its connections, so nothing is carried.
impl CarryPlane for Embedded {}
