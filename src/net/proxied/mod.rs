//! The operations on a connection that only a proxy needs.
//!
//! A proxy connects two peers. When one peer closes or loses its connection, the proxy must make
//! this visible to the other peer. A proxy also moves bytes without inspecting them, so it can
//! leave the copying to the kernel. This module is built only with the feature `proxy`.

mod dial;
mod head;
mod options;
mod pipe;
mod relay_socket;

pub(crate) use dial::{begin_connect, dial, is_local_shortage};
pub(crate) use options::ProxiedSocket;
pub(crate) use pipe::Pipe;
pub(crate) use relay_socket::{PeerLoss, RelaySocket};
