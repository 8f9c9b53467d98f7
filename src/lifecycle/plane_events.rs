//! The events of the data plane, combined into one source.

use crate::data_plane::{CarryEnd, DataPlane};
use crate::error::Error;

/// The events that the driver currently waits for.
#[expect(clippy::struct_excessive_bools, reason = "one for each branch of the select")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    pub(super) start: bool,
    pub(super) death: bool,
    pub(super) carry_end: bool,
    pub(super) taken_over: bool,
    pub(super) drained: bool,
}

/// An event of the data plane.
#[derive(Debug)]
pub(super) enum PlaneEvent {
    /// The data plane serves on all listeners.
    Started,
    /// A part of the data plane has died, or it cannot start.
    Died(Error),
    /// The successor accepts no more connections.
    CarryEnded(CarryEnd),
    /// No predecessor carries connections here any more.
    TakenOver,
    /// No connection is left.
    Drained,
}

/// Waits for the next awaited event of `plane`, forever if none is awaited. Cancel safe.
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
