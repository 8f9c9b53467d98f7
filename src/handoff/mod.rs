//! Passes a line of processes on: what one is born with, what it says to the one before and the one
//! after it.
//!
//! Both halves of the protocol lie side by side: [`Successor`] is what a predecessor holds of the
//! process that it starts, [`Predecessors`] what a successor holds of those before it.
//! `docs/protocol.md` has the packets.

mod channel;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod inheritance;
mod init;
mod inquiry;
mod message;
mod passed;
mod predecessor;
mod program;
mod successor;
mod variables;

pub(crate) use crate::sys::fd::LowSlot;
pub(crate) use crate::sys::signals;
pub use inheritance::{Inheritance, check_for_init, runtime_directory};
pub(crate) use init::Init;
pub(crate) use inquiry::Inquiry;
pub(crate) use message::{Hangup, Message};
pub(crate) use predecessor::{PredecessorEvent, Predecessors};
pub(crate) use program::{ManagerNumbers, Program};
pub(crate) use successor::{Bequest, Fate, Successor, SuccessorEvent};
