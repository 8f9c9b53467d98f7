//! This module handles the communication between generations, which are the processes of one
//! service. It reads what a process receives at startup, its inheritance. It also defines the
//! messages between a process and its predecessor or successor.
//!
//! Both sides of the handoff protocol are here. A predecessor uses [`Successor`] for the process
//! that it starts. A successor uses [`Predecessors`] for all older generations. `docs/protocol.md`
//! describes the packets.

mod announcement;
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
mod payload;
mod predecessor;
mod program;
mod status_poll;
mod successor;
mod successor_event;
mod variables;

pub(crate) use crate::sys::fd::ReservedFd;
pub(crate) use crate::sys::signals;
pub use inheritance::Inheritance;
pub(crate) use inheritance::SignalUse;
pub(crate) use init::Init;
pub(crate) use launch::LaunchSpec;
pub(crate) use message::Message;
pub(crate) use payload::{Commit, OnSuccessorDeath, PendingReload};
pub(crate) use predecessor::{PredecessorEvent, Predecessors};
pub(crate) use program::{ManagerNumbers, Program};
pub(crate) use status_poll::StatusPoll;
pub(crate) use successor::Successor;
pub(crate) use successor_event::{StopMode, SuccessorEvent, Uncommitted};
