//! Listeners and streams: sockets of which the rest of the crate need not know the family.

mod acceptor;
mod dial;
mod listener;
mod listener_set;
mod peer;
mod pipe;
mod stored_name;
mod stream;
mod traffic;

pub(crate) use acceptor::{Acceptor, waiting};
pub(crate) use dial::dial;
pub(crate) use listener::{Accepted, Binding, Passed};
pub use listener::{Listener, Origin};
pub use listener_set::ListenerSet;
pub use peer::Peer;
pub(crate) use pipe::Pipe;
pub(crate) use stored_name::StoredName;
pub use stream::Stream;
pub(crate) use traffic::Traffic;
