//! The transfer of established connections to the successor: the messages, and the order in which
//! connections move.
//!
//! A service saves the state of a connection as a [`CarriedState`]. The predecessor sends it with
//! the client's socket ([`Outgoing`]). The successor accepts or refuses the connection and answers
//! ([`Incoming`]). Until the answer arrives, the predecessor keeps its copy of the socket and does
//! not use it. It continues to serve a connection that is refused, or still unanswered when the
//! successor dies. So at most one process serves a connection at any time. `docs/protocol.md`
//! describes the packets.
//!
//! This module decides neither which connections are carried, and when (see `lifecycle`), nor what
//! a carried state contains (each service decides that).

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod incoming;
mod outgoing;
mod packet;
mod parcel;
mod scheduler;

pub(crate) use incoming::{Arrival, CarriedConnection, Incoming};
pub(crate) use outgoing::{Outgoing, OutgoingConnection, Verdict};
pub(crate) use packet::{Answer, VERSION};
pub use parcel::CarriedState;
pub(crate) use scheduler::{CarryRequest, CarryScheduler, CarrySlot};
