//! A private listener for a server that needs a blocking listener and accepts by itself, such as
//! tiny_http.
//!
//! The listening socket of the service must stay non-blocking, because other generations share it.
//! So the library accepts the connections, and copies their bytes to and from a socket on which the
//! server listens alone. This costs some processor time for each byte. The library knows when the
//! connections have ended, whatever the server does with them.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::acceptor::Acceptor;
use crate::error::Error;
use crate::lifecycle::life::Life;
use crate::net::Stream;

/// Distinguishes the private listeners of a process.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Life {
    /// Returns a blocking Unix listener that gets the connections of the listener called `name`.
    /// Its abstract address differs from that of every other listener, but any local process may
    /// connect to it. Must be called in a tokio runtime.
    ///
    /// The server sees all connections come from a Unix socket, so it does not learn the addresses
    /// of its clients. After [`Life::retired`], no further connections arrive, and the server may
    /// be told to stop when [`Life::closing`] resolves.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if no
    /// descriptor is free.
    pub fn private_listener(&self, name: &str) -> Result<UnixListener, Error> {
        let acceptor = self.acceptor(name)?;
        let address = address().map_err(Error::system("name a private listener"))?;
        let listener = UnixListener::bind_addr(&address)
            .map_err(Error::system("listen on a private socket"))?;
        // The task ends with the last connection, which the drain waits for, or with the runtime.
        drop(tokio::spawn(forward(acceptor, address)));
        Ok(listener)
    }
}

/// Returns an abstract address that no other listener of any process has.
fn address() -> io::Result<SocketAddr> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from_abstract_name(format!("handoffd-private-{}-{number}", std::process::id()))
}

/// Forwards the connections of the acceptor to the private listener until all of them have ended.
async fn forward(mut acceptor: Acceptor, address: SocketAddr) {
    let mut running = JoinSet::new();
    while let Some((client, _)) = acceptor.accept().await {
        running.spawn(copy(client, address.clone()));
        while running.try_join_next().is_some() {}
    }
    drop(acceptor);
    while running.join_next().await.is_some() {}
}

async fn copy(mut client: Stream, address: SocketAddr) {
    let copied = async {
        // The call waits while the backlog of the server is full, so it needs a thread.
        let connect = move || std::os::unix::net::UnixStream::connect_addr(&address);
        let server = tokio::task::spawn_blocking(connect).await.map_err(io::Error::other)??;
        server.set_nonblocking(true)?;
        let mut server = UnixStream::from_std(server)?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    };
    if let Err(error) = copied.await {
        tracing::debug!(
            event = "connection.copy_failed", %error,
            "a connection to a private listener has ended with an error: {error}"
        );
    }
}
