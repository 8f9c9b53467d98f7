//! A tower layer for any HTTP/1.1 server. During a restart it prevents the loss of requests on
//! keep-alive connections.
//!
//! [`crate::axum::serve`] and [`crate::hyper::serve`] already contain this layer.

use tower_layer::Layer;

pub use super::announce::{AnnouncedReply, Announcing};
use crate::embed::Life;

/// A layer that adds `Connection: close` to each HTTP/1.1 reply once the generation has stopped
/// accepting. Close idle connections only when [`Life::closing`] resolves, so that every client has
/// time to receive this header.
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
