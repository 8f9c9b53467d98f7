//! Support for tonic (gRPC) servers.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tonic::transport::server::Connected;

use crate::embed::{Acceptor, Life};
use crate::error::Error;
use crate::listen::{Peer, Stream};

/// The stream of one listener's connections. Create it with [`incoming`], and pass it to
/// `serve_with_incoming_shutdown` of a tonic router.
pub struct IncomingConnections(NextConnection);

type NextConnection = Pin<Box<dyn Future<Output = (Acceptor, Option<Stream>)> + Send>>;

/// Returns the connections of the listener called `name`, and reports that the server is ready.
///
/// The stream does not end when the generation stops accepting, because tonic would then drop its
/// connections. Pass [`Life::draining_of`] as the shutdown signal. When this signal resolves, tonic
/// sends GOAWAY, which asks the clients to end their connections:
///
/// ```ignore
/// let incoming = handoffd::tonic::incoming(&life, "grpc")?;
/// Server::builder().add_service(service)
///     .serve_with_incoming_shutdown(incoming, life.draining_of("grpc")?).await
/// ```
///
/// A method that streams a long reply must end it when [`Life::closing`] resolves. By then, GOAWAY
/// has told the client to send its next request on another connection.
///
/// # Errors
/// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the socket
/// cannot be registered for events.
pub fn incoming(life: &Life, name: &str) -> Result<IncomingConnections, Error> {
    let acceptor = life.acceptor(name)?;
    life.ready();
    Ok(IncomingConnections(next(acceptor)))
}

fn next(mut acceptor: Acceptor) -> NextConnection {
    Box::pin(async move {
        let accepted = acceptor.accept().await;
        (acceptor, accepted.map(|(stream, _)| stream))
    })
}

impl futures_core::Stream for IncomingConnections {
    type Item = io::Result<Stream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (acceptor, accepted) = ready!(self.0.as_mut().poll(cx));
        match accepted {
            Some(stream) => {
                self.0 = next(acceptor);
                Poll::Ready(Some(Ok(stream)))
            }
            None => {
                drop(acceptor);
                self.0 = Box::pin(std::future::pending());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for IncomingConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IncomingConnections")
    }
}

/// A gRPC method gets the address of its client from the request's extensions, as a [`Peer`].
impl Connected for Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer().unwrap_or(Peer::Unix)
    }
}
