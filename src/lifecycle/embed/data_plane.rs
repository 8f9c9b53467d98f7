//! The driver's side of a server of your own: what it is asked, and what is not known of it.

use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use super::{Embedded, Phase, Told};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::lifecycle::data_plane::Plane;
use crate::net::Listener;
use crate::report::{Connections, Counters};
use crate::server::CarryEnd;

impl Plane for Embedded {
    fn accept(&mut self, _listeners: &[Listener]) -> Result<(), Error> {
        self.asked.send_replace(Phase::Accepting);
        Ok(())
    }

    /// What a server of one's own does in its loops it alone knows. The driver, which runs beside
    /// them, answers.
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
        self.asked.send_replace(Phase::Draining);
    }

    /// What waits in the queues belongs to the server's own descriptors.
    fn sweep(&mut self, _listeners: &[Listener]) {}

    /// The same.
    fn accept_late(&mut self, _replaced: Vec<Listener>) {}

    /// What a server of one's own has of a connection nobody else can take over.
    fn carries(&self) -> Option<Vec<(usize, String)>> {
        None
    }

    fn expect(&mut self, _coming: Vec<(usize, String)>) {}

    fn expect_no_more(&mut self) {}

    fn take_over(&mut self, _channel: OwnedFd) -> Result<(), Error> {
        // Closed: the predecessor hears that nothing is taken.
        Ok(())
    }

    fn is_taking_over(&self) -> bool {
        false
    }

    async fn taken_over(&self) {}

    fn drain(&mut self, _successor: Option<OwnedFd>) {
        self.asked.send_replace(Phase::Draining);
    }

    async fn carry_ended(&self) -> CarryEnd {
        std::future::pending().await
    }

    fn tell_the_rest(&mut self) {}

    async fn settled(&self) {}

    fn successor_lost(&mut self) -> u64 {
        0
    }

    async fn drained(&self) {
        // An error says that the server has dropped its side: there is nobody left to wait for.
        let _ = self.heard.clone().wait_for(|told| *told == Told::Drained).await;
    }

    fn cut(&mut self) {
        self.asked.send_replace(Phase::Cut);
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
