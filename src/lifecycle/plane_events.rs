//! One source for all events of the data plane, the server that accepts and serves connections.

use crate::data_plane::{CarryEnd, DataPlane};
use crate::error::Error;

/// The events of the data plane for which the driver waits now. Each flag stands for one event of
/// [`PlaneEvent`].
#[expect(clippy::struct_excessive_bools, reason = "one for each branch of the select")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    pub(super) start: bool,
    pub(super) death: bool,
    pub(super) carry_end: bool,
    pub(super) taken_over: bool,
    pub(super) drained: bool,
}

/// An event of the data plane, the server that accepts and serves connections.
#[derive(Debug)]
pub(super) enum PlaneEvent {
    /// The data plane accepts connections on all listeners.
    Started,
    /// A part of the data plane has died, or the data plane cannot start.
    Died(Error),
    /// No more connections move from this process to the successor.
    CarryEnded(CarryEnd),
    /// No predecessor moves connections to this process any more.
    TakenOver,
    /// The last connection has ended.
    Drained,
}

/// Waits for the next event of `plane` whose flag is set in `awaited`. Waits forever if no flag is
/// set. Cancel safe.
pub(super) async fn next_of_plane(plane: &impl DataPlane, awaited: Awaited) -> PlaneEvent {
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
        else => std::future::pending().await,
    }
}
