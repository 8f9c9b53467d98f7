//! The wait until the service manager treats the successor as the main process.
//!
//! If this process ended earlier and the successor died, the service manager would see a clean end
//! of the main process. It would not start the service again.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::data_plane::DataPlane;
use crate::lifecycle::driver::Driver;
use crate::sys;

/// How long to wait for a service manager that is busy.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A pipe whose other end the service manager closes when it treats the successor as the main
/// process.
#[derive(Debug)]
pub(in crate::lifecycle) struct Barrier {
    pipe: AsyncFd<OwnedFd>,
    until: Instant,
}

impl Barrier {
    /// Waits until the service manager treats the successor as the main process, but at most five
    /// seconds since the commit. Cancel safe.
    pub(in crate::lifecycle) async fn passed(&self) {
        // An error ends the wait too.
        let _ = tokio::time::timeout_at(self.until, self.pipe.readable()).await;
    }
}

impl<P: DataPlane> Driver<P> {
    /// Asks the service manager to report when it treats the successor as the main process. Until
    /// then, this process does not end by itself.
    pub(super) fn raise_barrier(&mut self) {
        let pipe = self.process.notifier.barrier();
        let barrier = pipe.and_then(|pipe| {
            let pipe = pipe.map(|pipe| sys::fd::watch(pipe, Interest::READABLE)).transpose()?;
            Ok(pipe.map(|pipe| Barrier { pipe, until: Instant::now() + TIMEOUT }))
        });
        match (barrier, &mut self.handoff) {
            (Ok(barrier), Some(handoff)) => handoff.barrier = barrier,
            (Err(error), _) => tracing::debug!(
                event = "notify.unheard", %error, text = "BARRIER=1",
                "cannot ask when the service manager knows the new process: {error}"
            ),
            (Ok(_), None) => {}
        }
    }

    /// Stops waiting for the service manager.
    pub(in crate::lifecycle) fn barrier_passed(&mut self) {
        if let Some(handoff) = &mut self.handoff {
            handoff.barrier = None;
        }
    }
}
