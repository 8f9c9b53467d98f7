//! The process of a generation: its number, its program, and what it inherited.

use crate::generation::Generation;
use crate::handoff::{Init, Program, ReservedFd};
use crate::notify::Notifier;

/// What stays the same for the whole life of this process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) generation: Generation,
    pub(super) program: Program,
    /// A file descriptor number reserved for the channel to a successor.
    pub(super) slot: ReservedFd,
    /// The init process that started this lineage, in a container.
    pub(super) init: Option<Init>,
    pub(super) notifier: Notifier,
}
