//! A private listener for a server that needs a blocking listener and accepts by itself, such as
//! tiny_http.
//!
//! The listening socket of the service must stay non-blocking, because other generations share it.
//! So the library accepts the connections, and copies their bytes to and from a socket on which the
//! server listens alone. This costs some processor time for each byte. The library knows when the
//! connections have ended, whatever the server does with them.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::acceptor::Acceptor;
use crate::error::Error;
use crate::lifecycle::life::Life;
use crate::net::Stream;
use crate::sys::temporary_folder::TemporaryFolder;

impl Life {
    /// Returns a blocking Unix listener that gets the connections of the listener called `name`. It
    /// lies in a folder for temporary files that only this user may enter. Must be called in a
    /// tokio runtime.
    ///
    /// The server sees all connections come from a Unix socket, so it does not learn the addresses
    /// of its clients. After [`Life::retired`], no further connections arrive, and the server may
    /// be told to stop when [`Life::closing`] resolves.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if no
    /// descriptor is free or the folder cannot be created.
    pub fn private_listener(&self, name: &str) -> Result<UnixListener, Error> {
        let acceptor = self.acceptor(name)?;
        let folder = TemporaryFolder::create(None)
            .map_err(Error::system("create a folder for a private socket"))?;
        let path = folder.path().join("listener");
        let listener =
            UnixListener::bind(&path).map_err(Error::system("listen on a private socket"))?;
        // The task ends with the last connection, which the drain waits for, or with the runtime.
        drop(tokio::spawn(async move {
            forward(acceptor, &path).await;
            drop(folder);
        }));
        Ok(listener)
    }
}

/// Forwards the connections of the acceptor to the private listener until all of them have ended.
async fn forward(mut acceptor: Acceptor, path: &Path) {
    let mut running = JoinSet::new();
    while let Some((client, _)) = acceptor.accept().await {
        running.spawn(copy(client, path.to_owned()));
        while running.try_join_next().is_some() {}
    }
    drop(acceptor);
    while running.join_next().await.is_some() {}
}

async fn copy(mut client: Stream, path: PathBuf) {
    let copied = async {
        // The call waits while the backlog of the server is full, so it needs a thread.
        let connect = move || BlockingStream::connect(path);
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
