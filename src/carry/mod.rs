//! Carries established connections to the successor: what of a connection travels, in which words,
//! and whose turn it is.
//!
//! A service gives a connection up as a [`Parcel`]; the predecessor sends it with the client's
//! socket ([`Outgoing`]), the successor takes it up or refuses it ([`Incoming`]), and says so.
//! Until then the predecessor keeps its copy and touches nothing; what is refused, or was not
//! answered when the successor died, it serves on. So at every instant exactly one process serves a
//! connection. `docs/protocol.md` has the packets.
//!
//! Which connections are carried, and when, is decided in `lifecycle`; what a parcel holds, by each
//! service.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod incoming;
mod outgoing;
mod packet;
mod parcel;
mod turns;

pub(crate) use incoming::{Arrival, Arrived, Incoming};
pub(crate) use outgoing::{Departing, Outgoing, Verdict};
pub(crate) use packet::{Answer, VERSION};
pub use parcel::Parcel;
pub(crate) use turns::{Asking, Turns, Word};
