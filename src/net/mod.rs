//! Listeners and connections. This module hides from the rest of the crate whether a socket is TCP
//! or Unix.

mod acceptor;
mod beside;
mod bind;
mod claim;
mod ending;
mod endpoint;
mod listener;
mod listener_set;
mod no_delay;
mod origin;
mod passed;
mod peer;
#[cfg(feature = "proxy")]
mod proxied;
mod shortage;
mod socket_address;
mod socket_file;
mod stale;
mod stored_name;
mod stream;
mod traffic;
mod wanted;

pub(crate) use acceptor::{
    HANDSHAKE_TIMEOUT, WatchedListener, accept_blocking, pending, pending_blocking,
};
#[cfg(feature = "proxy")]
pub(crate) use ending::ACKNOWLEDGE_TIMEOUT;
pub(crate) use listener::Accepted;
pub use listener::Listener;
pub use listener_set::ListenerSet;
pub use origin::{Binding, Origin};
pub(crate) use passed::Passed;
pub use peer::Peer;
#[cfg(feature = "proxy")]
pub(crate) use proxied::{
    PeerLoss, Pipe, ProxiedSocket, RelaySocket, begin_connect, dial, is_local_shortage,
};
pub(crate) use socket_file::FileAccess;
pub(crate) use stale::check_is_socket;
pub(crate) use stored_name::StoredName;
#[cfg(any(fuzzing, test))]
pub(crate) use stored_name::fuzz as fuzz_stored_name;
#[cfg(test)]
pub(crate) use stored_name::seeds as stored_names;
pub use stream::{Handshake, Stream};
pub(crate) use traffic::{ByteCounts, Traffic};
