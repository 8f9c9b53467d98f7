//! Carrying means moving open connections to the successor. This module defines the packets, and
//! decides the order in which connections move.
//!
//! A service saves the state of a connection as a [`CarriedState`]. The predecessor sends the state
//! with the client's socket (`outgoing`). The successor accepts or refuses the connection and sends
//! an answer (`incoming`). The built-in server and a server of your own use both sides through
//! `departures` and `takeover`.
//!
//! The predecessor keeps a copy of the socket, but does not use it until the answer arrives. If the
//! successor refuses the connection, or dies without an answer, the predecessor continues to serve
//! it. So at most one process serves a connection at any time. `docs/protocol.md` describes the
//! packets.
//!
//! The module `lifecycle` decides when connections move. Each service defines the contents of its
//! saved state.

mod departures;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod incoming;
mod outgoing;
mod packet;
mod request;
mod scheduler;
mod state;
mod takeover;

#[cfg(feature = "proxy")]
pub(crate) use departures::UnregisteredConnections;
pub(crate) use departures::{AllRegistered, CarryEnd, Departure, DepartureTasks, Departures};
pub(crate) use incoming::CarriedConnection;
#[cfg(all(test, feature = "proxy"))]
pub(crate) use incoming::{Arrival, Incoming};
pub(crate) use outgoing::OutgoingConnection;
#[cfg(all(test, feature = "proxy"))]
pub(crate) use packet::CarryAnswer;
pub(crate) use packet::VERSION;
pub(crate) use request::CarryRequest;
#[cfg(all(test, feature = "proxy"))]
pub(crate) use scheduler::CarryScheduler;
pub(crate) use scheduler::{AttentionGuard, CarrySlot};
pub use state::{CarriedState, Declined};
pub(crate) use takeover::{Takeovers, TakesOver};
