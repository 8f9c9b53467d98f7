//! What the event loop knows about its own process, such as the generation number and the program.

use super::signals::Signals;
use crate::generation::Generation;
use crate::handoff::{Init, Program, ReservedFd};
use crate::notify::Notifier;

/// The properties of this process that never change, its signals, and its channel to the service
/// manager.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) generation: Generation,
    pub(super) program: Program,
    /// A placeholder that keeps a file descriptor number free for the channel to a successor.
    pub(super) slot: ReservedFd,
    /// The channel to the init process. `None` if the service runs without an init process.
    pub(super) init: Option<Init>,
    pub(super) notifier: Notifier,
    /// The signals that this process handles. `None` in a test, because the test process handles
    /// its signals itself.
    pub(super) signals: Option<Signals>,
}
