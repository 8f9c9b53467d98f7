//! What only a proxy asks of a connection.
//!
//! A proxy connects two peers, and must pass on to each of them that the other one has closed or
//! lost its connection. It also moves bytes without looking at them. So it needs more of the kernel
//! than an ordinary server needs. A library user without the feature `proxy` does not build this.

mod dial;
mod hangup;
mod head;
mod options;
mod pipe;
mod splice;

pub(crate) use dial::dial;
pub(crate) use hangup::Gone;
pub(crate) use pipe::Pipe;
