//! A source of connections that can move to the successor, for a server that accepts connections
//! itself.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::acceptor::Acceptor;
use super::handle::CarryHandle;
use crate::carry::{CarriedConnection, CarriedState, Declined, TakesOver};
use crate::ledger::Source;
use crate::lifecycle::life::{Life, ServedListener};
use crate::net::{Peer, Stream};

/// A source of connections that can move to the successor. Made by [`Acceptor::carries`].
///
/// It returns the clients that connect to the listener, and the connections that the predecessor
/// hands over. The following server counts the lines of each client. The count survives each
/// handoff, because it moves to the successor together with the connection:
///
/// ```no_run
/// use handoffd::carry::{CarriedState, Declined};
/// use handoffd::embed::{CarryClient, CarryOutcome};
/// use handoffd::{Builder, Error};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// /// Reads the state that the predecessor has saved.
/// fn read(state: &CarriedState) -> Result<u64, Declined> {
///     let text = std::str::from_utf8(&state.bytes).ok().filter(|_| state.format == "lines/1");
///     text.and_then(|text| text.parse().ok()).ok_or("the format is unknown".into())
/// }
///
/// async fn count(client: CarryClient) -> std::io::Result<()> {
///     let CarryClient { mut stream, state, carry, .. } = client;
///     let mut lines = state.map_or(Ok(0), |state| read(&state)).map_err(std::io::Error::other)?;
///     let mut bytes = [0; 1024];
///     loop {
///         tokio::select! {
///             // The connection is between two messages here, so it can move.
///             permit = carry.asked() => {
///                 let state = CarriedState::new("lines/1", lines.to_string().into_bytes());
///                 match permit.hand_over(stream, state).await {
///                     CarryOutcome::Moved => return Ok(()),
///                     CarryOutcome::Stayed { stream: kept, .. } => stream = kept,
///                 }
///             }
///             length = stream.read(&mut bytes) => match length? {
///                 0 => return Ok(()),
///                 length => {
///                     let new = bytes[..length].iter().filter(|byte| **byte == b'\n');
///                     lines += new.count() as u64;
///                     stream.write_all(format!("{lines}\n").as_bytes()).await?;
///                 }
///             },
///             () = carry.draining() => return Ok(()),
///         }
///     }
/// }
///
/// fn main() -> Result<(), Error> {
///     Builder::from_env()?.listen("lines=127.0.0.1:7003")?.serve_with(async |life| {
///         let mut clients = life.acceptor("lines")?.carries(|state| read(state).map(drop));
///         life.ready();
///         while let Some(client) = clients.accept().await {
///             tokio::spawn(count(client));
///         }
///         Ok::<_, Error>(())
///     })?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct CarryAcceptor {
    acceptor: Acceptor,
    is_accepting: bool,
    arrivals: UnboundedReceiver<CarryClient>,
}

/// A connection that can move to the successor.
#[derive(Debug)]
#[non_exhaustive]
pub struct CarryClient {
    /// The byte stream to and from the client.
    pub stream: Stream,
    /// The address of the client.
    pub peer: Peer,
    /// The state with which the predecessor has handed this connection over. `None` for a new
    /// client.
    pub state: Option<CarriedState>,
    /// The handle with which the server moves the connection to the successor.
    pub carry: CarryHandle,
}

/// The queue for connections of one listener that move here from the predecessor.
pub(in crate::lifecycle) struct ArrivalQueue {
    accepts: Box<Accepts>,
    sender: UnboundedSender<CarryClient>,
}

/// A function that returns `Ok` if the server can continue a connection with this state, or the
/// reason why it cannot.
type Accepts = dyn Fn(&CarriedState) -> Result<(), Declined> + Send + Sync;

impl std::fmt::Debug for ArrivalQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrivalQueue").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Lets the connections of this listener move to the successor at a handoff, and takes over the
    /// predecessor's connections of this listener. Call this function before
    /// [`Life::ready`](crate::embed::Life::ready). Otherwise connections may arrive too early, and
    /// stay in the old process.
    ///
    /// `accepts` checks whether this server can continue a connection with the given state.
    /// `accepts` must be quick, and must not block. If it returns an error or panics, the
    /// predecessor keeps the connection. If several acceptors of a listener call `carries`, the
    /// last one gets the connections of the predecessor.
    ///
    /// If [`Config::on_handoff`](crate::Config::on_handoff) or the setting of the listener is
    /// [`OnHandoff::Drain`](crate::listen::OnHandoff), no connection moves.
    #[must_use]
    pub fn carries(
        self,
        accepts: impl Fn(&CarriedState) -> Result<(), Declined> + Send + Sync + 'static,
    ) -> CarryAcceptor {
        let (sender, arrivals) = unbounded_channel();
        self.served().queue_arrivals(ArrivalQueue { accepts: Box::new(accepts), sender });
        CarryAcceptor { acceptor: self, is_accepting: true, arrivals }
    }
}

impl CarryAcceptor {
    /// Waits for the next connection. Returns `None` once the generation has stopped accepting, and
    /// no more connections arrive from the predecessor. Cancel safe.
    pub async fn accept(&mut self) -> Option<CarryClient> {
        let Self { acceptor, is_accepting, arrivals } = self;
        loop {
            let arriving = acceptor.state.moves.arriving.clone();
            tokio::select! {
                biased;
                Some(client) = arrivals.recv() => return Some(client),
                accepted = acceptor.accept(), if *is_accepting => match accepted {
                    Some((stream, peer)) => {
                        let (state, served) = (Arc::clone(&acceptor.state), acceptor.served());
                        let carry = CarryHandle::new(state, served, peer, Instant::now());
                        return Some(CarryClient { stream, peer, state: None, carry });
                    }
                    None => *is_accepting = false,
                },
                // Look into the queue again, because the last connection may have arrived just now.
                () = arriving.wait(), if !*is_accepting => return arrivals.try_recv().ok(),
            }
        }
    }

    /// Returns the name of the listener.
    #[must_use]
    pub fn name(&self) -> &str {
        self.acceptor.name()
    }

    /// Returns the address on which the listener listens, as [`Life::address`] does.
    #[must_use]
    pub fn address(&self) -> &str {
        self.acceptor.address()
    }
}

/// Takes over connections from the predecessor, for a server that accepts connections itself.
pub(super) struct Arrivals(pub(super) Life);

impl Arrivals {
    /// Returns the listener called `listener`, and the queue for its connections from the
    /// predecessor. Returns `None` if the listener takes over no connections.
    fn queue(&self, listener: &str) -> Option<(Arc<ServedListener>, Arc<ArrivalQueue>)> {
        let served = self.0.served(listener).ok()?;
        let queue = served.arrivals().filter(|queue| !queue.sender.is_closed())?;
        Some((served, queue))
    }
}

impl TakesOver for Arrivals {
    type Prepared = (Arc<ArrivalQueue>, CarryClient);

    fn prepare(&self, connection: CarriedConnection) -> Result<Self::Prepared, Declined> {
        let queue = self.queue(&connection.head.listener);
        let (served, queue) = queue.ok_or_else(|| connection.unknown_listener())?;
        (queue.accepts)(&connection.saved_state)?;
        let permit = served.permit_for_carried(connection.head.max_connections)?;
        let ((mut stream, peer), since, saved_state) = connection.into_stream()?;
        let open = served.admit(Source::Carried, stream.traffic(), since, permit);
        let is_silent = stream.received() == 0 && !stream.peer_has_finished();
        let awaiting = is_silent.then(|| served.awaiting(&self.0.term()));
        stream.belongs_to_server(peer, awaiting, open);
        let carry = CarryHandle::new(Arc::clone(&self.0.state), &served, peer, since);
        Ok((queue, CarryClient { stream, peer, state: Some(saved_state), carry }))
    }

    fn release_reserved(&self) {
        if let Some(served) = self.0.state.served.get() {
            served.release_reserved();
        }
    }

    fn start(&self, (queue, client): Self::Prepared) {
        // Ignore a failure: the server has dropped its acceptor, so it wants no more connections.
        let _ = queue.sender.send(client);
    }
}
