//! A private listener for a server that needs a blocking listener and accepts by itself, such as
//! tiny_http.
//!
//! The listening socket of the service must stay non-blocking, because other generations share it.
//! So the library accepts the connections, and connects each of them to a second socket, on which
//! only the server listens. The library copies the bytes in both directions. This costs some
//! processor time for each byte. The library knows when the connections have ended, whatever the
//! server does with them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream as BlockingStream};

use nix::libc::O_PATH;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::acceptor::Acceptor;
use crate::error::Error;
use crate::lifecycle::life::Life;
use crate::net::Stream;
use crate::sys::fd::path_to;
use crate::sys::temporary_folder::TemporaryFolder;

impl Life {
    /// Returns a blocking Unix listener that gets the connections of the listener called `name`. It
    /// has no path in the file system, so no other process can connect to it. Must be called in a
    /// tokio runtime.
    ///
    /// The server sees all connections come from a Unix socket, so it does not learn the addresses
    /// of its clients. Stop the server when [`Life::closing`] resolves, not at [`Life::retired`]:
    /// the library stops accepting by itself, and if the service stops for good, the last clients
    /// arrive after that.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if no
    /// descriptor is free or the socket cannot be created.
    pub fn private_listener(&self, name: &str) -> Result<UnixListener, Error> {
        let acceptor = self.acceptor(name)?;
        let (listener, file) = listen().map_err(Error::system("listen on a private socket"))?;
        // Do not keep a handle to this task: it ends with its last connection, or with the runtime.
        drop(tokio::spawn(forward(acceptor, file)));
        Ok(listener)
    }
}

/// Creates a listener, and returns it with the file of its socket. Removes the path again at once,
/// so that nothing is left behind even if this process is killed. Clients connect through the file.
fn listen() -> io::Result<(UnixListener, File)> {
    let folder = TemporaryFolder::create(None)?;
    let path = folder.path().join("listener");
    let listener = UnixListener::bind(&path)?;
    let file = OpenOptions::new().read(true).custom_flags(O_PATH).open(&path)?;
    Ok((listener, file))
}

/// Forwards the connections of the acceptor to the private listener until all of them have ended.
/// While the backlog of the private listener is full, further clients wait in the backlog of the
/// public listener.
async fn forward(mut acceptor: Acceptor, file: File) {
    let mut running = JoinSet::new();
    while let Some((client, _)) = acceptor.accept().await {
        match connect(&file).await {
            Ok(server) => drop(running.spawn(copy(client, server))),
            Err(error) => log_failed(&error),
        }
        while running.try_join_next().is_some() {}
    }
    drop(acceptor);
    while running.join_next().await.is_some() {}
}

/// Connects to the private listener, and waits while its backlog is full.
async fn connect(file: &File) -> io::Result<UnixStream> {
    let path = path_to(file);
    match UnixStream::connect(&path).await {
        // The kernel reports no event when the backlog has room again, so a thread waits in a
        // blocking connect(2).
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let connect = move || BlockingStream::connect(path);
            let server = tokio::task::spawn_blocking(connect).await.map_err(io::Error::other)??;
            server.set_nonblocking(true)?;
            UnixStream::from_std(server)
        }
        connected => connected,
    }
}

async fn copy(mut client: Stream, mut server: UnixStream) {
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        log_failed(&error);
    }
}

fn log_failed(error: &io::Error) {
    tracing::debug!(
        event = "connection.copy_failed", %error,
        "a client connection to a private listener of the server has ended with an error: {error}"
    );
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Two clients connect to a listener whose backlog has room for only one.
    #[tokio::test]
    async fn every_client_reaches_a_listener_without_a_path() {
        let (listener, file) = listen().unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
        assert!(!path.parent().unwrap().exists());
        let first = connect(&file).await.unwrap();
        let second = tokio::spawn(async move { connect(&file).await.unwrap() });
        let server = tokio::task::spawn_blocking(move || {
            for _ in 0..2 {
                let mut client = listener.accept().unwrap().0;
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                client.write_all(&byte).unwrap();
            }
        });
        for client in [first, second.await.unwrap()] {
            let mut client = client.into_std().unwrap();
            client.set_nonblocking(false).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
        server.await.unwrap();
    }
}
