//! Listeners and streams: sockets of which the rest of the crate need not know the family.

mod acceptor;
mod listener;
mod listener_set;
mod stream;

pub(crate) use acceptor::{Acceptor, waiting};
pub(crate) use listener::{Binding, Passed};
pub use listener::{Listener, Origin};
pub use listener_set::ListenerSet;
pub use stream::{Peer, Stream};
