//! Communication between generations. This module contains the inheritance of a process (what it
//! receives at startup) and the messages that it exchanges with its predecessor and its successor.
//!
//! Both sides of the handoff protocol are here. A predecessor uses [`Successor`] for the process
//! that it starts. A successor uses [`Predecessors`] for all older generations. `docs/protocol.md`
//! describes the packets.

mod channel;
mod fields;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod inheritance;
mod init;
mod launch;
mod message;
mod older;
mod packet;
mod passed;
mod predecessor;
mod program;
mod status_poll;
mod successor;
mod variables;

pub(crate) use crate::sys::fd::ReservedFd;
pub(crate) use crate::sys::signals;
pub use inheritance::Inheritance;
pub(crate) use inheritance::SignalUse;
pub(crate) use init::Init;
pub(crate) use launch::LaunchSpec;
pub(crate) use message::{Commit, Message, OnSuccessorDeath, PendingReload};
pub(crate) use predecessor::{PredecessorEvent, Predecessors};
pub(crate) use program::{ManagerNumbers, Program};
pub(crate) use status_poll::StatusPoll;
pub(crate) use successor::{StopMode, Successor, SuccessorEvent};
