//! The process of a generation: its ordinal, its program, and what it inherited for life.

use crate::generation::Generation;
use crate::handoff::{Init, Program, ReservedFd};
use crate::notify::Notifier;

/// What identifies this process and never changes while it lives.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) generation: Generation,
    pub(super) program: Program,
    /// The descriptor number that is kept free for the channel to a successor.
    pub(super) slot: ReservedFd,
    /// The init process above this one, in a container.
    pub(super) init: Option<Init>,
    pub(super) notifier: Notifier,
}
