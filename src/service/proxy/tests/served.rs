//! A stand-in for the server. It serves one connection with a proxy, and relays the connection's
//! bytes in a separate relay plane.

use std::sync::Mutex;

use tokio::net::UnixStream;

use super::*;
use crate::net::ByteCounts;
use crate::plane::{Expired, Plane, RelayEnd, RelayEntry, RelayOwner, settle};

/// A connection that is already established when it is added to the relay plane.
struct Entered(UpstreamCount);

impl RelayOwner for Entered {
    fn connect_deadline(&self) -> Option<tokio::time::Instant> {
        None
    }

    fn connected(&mut self) -> Limits {
        unreachable!("it is connected already")
    }

    fn transferred(&self, _client: ByteCounts, upstream: ByteCounts) {
        self.0.add(upstream);
    }
}

/// A relay plane that resets its connections when it is dropped, as the server's relay planes do.
struct PlaneGuard(Plane<Entered>);

impl Drop for PlaneGuard {
    fn drop(&mut self) {
        self.0.cut().iter().for_each(RelayEntry::reset_on_drop);
    }
}

/// Serves a connection to its end, or until the server asks it to move. Dropping the future resets
/// the connection.
pub(super) async fn serve(proxy: &Proxy, connection: &mut Connection) -> io::Result<()> {
    proxy.serve(connection).await?;
    let Some(established) = connection.take_established() else { return Ok(()) };
    let Established { upstream, relay, limits, count } = *established;
    let nothing = Socket::from(UnixStream::pair()?.0.into_std()?);
    let stream =
        std::mem::replace(&mut connection.stream, Stream::new(nothing, Peer::Unix).unwrap());
    let client = stream.into_relay_socket()?;
    let plane = PlaneGuard(Plane::new()?);
    let entry = RelayEntry { client, upstream, relay, limits, owner: Entered(count) };
    assert!(plane.0.admit(entry).is_ok(), "the plane takes no connection");
    let ended = Mutex::new(None);
    let is_asked = tokio::select! {
        biased;
        () = connection.asked() => true,
        error = plane.0.run(|entry, end| *ended.lock().unwrap() = Some((entry, end))) => {
            return Err(error.unwrap_err());
        }
        () = becomes(|| ended.lock().unwrap().is_some()) => false,
    };
    if is_asked {
        let (entry, _) = plane.0.take(&mut 0, |_| true).expect("it is in the plane");
        let RelayEntry { client, upstream, relay, limits, owner: Entered(count) } = entry;
        let established = Established { upstream, relay, limits, count };
        connection.detach(established.into_state(client.transferred(), Duration::ZERO));
        connection.stream = client.into_stream()?;
        return Ok(());
    }
    let (mut entry, end) = ended.into_inner().unwrap().unwrap();
    let (broken, error) = match end {
        RelayEnd::Expired(Expired::Lifetime) => {
            entry.reset_on_drop();
            return Err(Expired::Lifetime.into());
        }
        RelayEnd::Finished | RelayEnd::PeerClosed(_) | RelayEnd::Expired(Expired::Idle) => {
            entry.upstream.half_close_if_shared();
            connection.stream = entry.client.into_stream()?;
            return Ok(());
        }
        RelayEnd::ClientBroke(error) => (Side::Client, error),
        RelayEnd::UpstreamBroke(error) => (Side::Upstream, error),
        RelayEnd::NotConnected(_) | RelayEnd::ClientLeft => unreachable!("it is connected"),
    };
    let RelayEntry { client, upstream, relay, .. } = &mut entry;
    settle(relay, client, upstream, broken, |_, _| {}).await;
    entry.reset_on_drop();
    Err(error)
}
