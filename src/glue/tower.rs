//! A tower layer for any HTTP/1.1 server. It prevents the loss of requests on keep-alive
//! connections.
//!
//! [`crate::axum::serve`] and [`crate::hyper::serve`] already contain this layer.

use tower_layer::Layer;

pub use super::announce::{AnnouncedReply, Announcing};
use crate::embed::Life;

/// A layer whose services announce the end of the connection in each reply, once the generation has
/// retired. Give the clients time to receive such a reply: close idle connections only when
/// [`Life::closing`] resolves.
#[derive(Clone, Debug)]
pub struct AnnounceClose {
    life: Life,
}

impl AnnounceClose {
    /// Creates a layer for a server of this generation.
    #[must_use]
    pub fn new(life: &Life) -> Self {
        Self { life: life.clone() }
    }
}

impl<S> Layer<S> for AnnounceClose {
    type Service = Announcing<S>;

    fn layer(&self, inner: S) -> Announcing<S> {
        Announcing::new(inner, self.life.clone())
    }
}
