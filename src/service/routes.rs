//! Serves each listener as it is told to: one service for all, of which every listener has its part.

use std::collections::HashMap;
use std::io;

use super::{Connection, Echo, Proxy, Service};
use crate::config::ListenerName;

/// What is served on a listener.
#[derive(Debug)]
pub enum Served {
    /// What is read is written back.
    Echo(Echo),
    /// Connections are passed on.
    Proxy(Box<Proxy>),
}

/// What is served on each listener, by its name.
#[derive(Debug)]
pub struct Routes {
    named: HashMap<String, Served>,
    others: Served,
}

impl Routes {
    /// The same on every listener.
    #[must_use]
    pub fn all(served: Served) -> Self {
        Self { named: HashMap::new(), others: served }
    }

    /// This one on the listener of that name, whatever the others do.
    #[must_use]
    pub fn with(mut self, name: &ListenerName, served: Served) -> Self {
        self.named.insert(name.as_str().to_owned(), served);
        self
    }
}

impl Service for Routes {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        match self.named.get(connection.listener()).unwrap_or(&self.others) {
            Served::Echo(echo) => echo.serve(connection).await,
            Served::Proxy(proxy) => proxy.serve(connection).await,
        }
    }
}
