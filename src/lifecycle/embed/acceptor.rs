//! A source of connections from one listener, which ends when the generation stops accepting.
//!
//! A listener usually has one socket. But systemd gives all sockets of a unit the same name, for
//! example one for IPv4 and one for IPv6. Then a listener has several sockets.

mod socket;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use tokio::time::timeout;

use crate::error::Error;
use crate::lifecycle::life::{Life, LifeState, ServedListener, StopOrder};
use crate::net::{Peer, Stream};

use socket::SocketAcceptor;

/// A source of connections from one listener. It returns connections until the generation retires,
/// that is, stops accepting.
#[derive(Debug)]
pub struct Acceptor {
    pub(super) state: Arc<LifeState>,
    /// The first socket with the name of the listener.
    served: Arc<ServedListener>,
    /// All sockets with the name of the listener, at least one. Their order changes after each
    /// connection, so that a busy socket does not hold up the other sockets.
    sockets: Vec<SocketAcceptor>,
}

impl Life {
    /// Returns an acceptor for the listener called `name`, TCP or Unix. It accepts connections
    /// until this generation retires. If no generation will accept on the listener again, the
    /// acceptor then accepts the clients that are left in the backlog, and closes the listener.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the
    /// socket cannot be registered for events.
    pub fn acceptor(&self, name: &str) -> Result<Acceptor, Error> {
        let all = self.served_all(name)?;
        let served = Arc::clone(&all[0]);
        let sockets = all.into_iter();
        let sockets =
            sockets.map(|served| SocketAcceptor::new(self, served)).collect::<Result<_, _>>()?;
        Ok(Acceptor { state: Arc::clone(&self.state), served, sockets })
    }

    /// Returns the first socket of the listener called `name`, with its connections.
    pub(in crate::lifecycle) fn served(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let served = self.state.served.get();
        served.ok_or_else(|| Error::no_such_listener(name, [""; 0]))?.get(name)
    }

    /// Returns all sockets of the listener called `name`, and records that the server uses them.
    pub(in crate::lifecycle) fn served_all(
        &self,
        name: &str,
    ) -> Result<Vec<Arc<ServedListener>>, Error> {
        let served = self.state.served.get();
        let all = served.ok_or_else(|| Error::no_such_listener(name, [""; 0]))?.get_all(name)?;
        all.iter().for_each(|one| one.set_used());
        Ok(all)
    }

    /// Waits until it is time to ask the connections of the listener called `name` to end. Waits
    /// as [`Life::draining`] does, but longer for a listener that stops last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn draining_of(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Error> {
        Ok(self.draining_in(self.served(name)?.order))
    }

    /// Waits until it is time to ask the connections of the listeners with this stop order to end.
    /// See [`Life::draining_of`].
    pub(super) fn draining_in(
        &self,
        order: StopOrder,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (draining, term, state) = (self.draining(), self.term(), Arc::clone(&self.state));
        async move {
            if order == StopOrder::First {
                return draining.await;
            }
            term.last_retired().await;
            term.drain_begun().await;
            let heard = term.last_awaiting().wait();
            let _ = timeout(state.limits().first_request, heard).await;
        }
    }

    /// Waits until a server of the listener called `name` must close its idle connections. Waits as
    /// [`Life::closing`] does, but longer for a listener that stops last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn closing_of(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Error> {
        let (all, draining) = (self.served_all(name)?, self.draining_of(name)?);
        let (closing, state) = (self.closing(), Arc::clone(&self.state));
        Ok(async move {
            if all[0].order == StopOrder::First {
                return closing.await;
            }
            draining.await;
            let ended = async {
                for one in &all {
                    one.ended().await;
                }
            };
            let late = all.iter().filter_map(|one| one.late_clients()).max().unwrap_or_default();
            let _ = timeout(state.limits().idle_time(late), ended).await;
        })
    }
}

impl Acceptor {
    /// Waits for the next connection. Returns `None` once the generation has stopped accepting.
    /// Cancel safe.
    ///
    /// The stream is non-blocking. [`Life::draining`] waits until the server has read something
    /// from the stream, but at most for
    /// [`Config::first_request_grace`](crate::Config::first_request_grace).
    pub async fn accept(&mut self) -> Option<(Stream, Peer)> {
        if let [only] = &mut self.sockets[..] {
            return only.accept().await;
        }
        let sockets = self.sockets.iter_mut();
        let mut accepting: Vec<_> = sockets.map(|socket| Box::pin(socket.accept())).collect();
        let accepted = poll_fn(|cx| {
            let mut index = 0;
            while let Some(socket) = accepting.get_mut(index) {
                match socket.as_mut().poll(cx) {
                    Poll::Ready(Some(accepted)) => return Poll::Ready(Some(accepted)),
                    Poll::Ready(None) => drop(accepting.swap_remove(index)),
                    Poll::Pending => index += 1,
                }
            }
            if accepting.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        drop(accepting);
        self.sockets.rotate_left(1);
        accepted
    }

    /// Returns the name of the listener.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.served().name
    }

    /// Returns the address on which the listener listens, as [`Life::address`] does.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.served().address
    }

    /// Returns the first socket of the listener, with its connections.
    pub(super) const fn served(&self) -> &Arc<ServedListener> {
        &self.served
    }

    /// Returns the address of a socket of this listener, not of a client. Fails if the socket is
    /// closed.
    #[cfg(feature = "axum")]
    pub(crate) fn local_address(&self) -> std::io::Result<Peer> {
        let closed = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        self.served().socket().ok_or_else(closed)?.local_address()
    }
}
