//! The end of a relayed connection. Depending on how it ends, the last bytes are still on their way
//! to one side. A task then waits for them, because a relay plane never waits.

use std::io;

use tokio::time::timeout_at;

use super::{Carrying, RelayedConnection, UpstreamLink};
use crate::net::ProxiedSocket;
use crate::plane::{Expired, Limits, RelayEntry, RelayOwner, Side, settle};
use crate::server::connection::{EndedConnection, LINGER};
use crate::server::slot::ConnectionEnd;

/// Ends a connection. Closes the socket of the side `closed` at once. Then closes the other socket,
/// but lets its peer receive the last bytes first.
pub(super) async fn close_other_side(entry: RelayEntry<RelayedConnection>, closed: Side) {
    let RelayEntry { client, upstream, owner, limits, .. } = entry;
    let RelayedConnection { mut slot, link, peer, carry } = owner;
    let mut counts = client.counts();
    let (closed_socket, other) = match closed {
        Side::Client => (client, upstream),
        Side::Upstream => (upstream, client),
    };
    closed_socket.half_close_if_shared();
    drop(closed_socket);
    // Keep the connection in the counts of its upstream until the upstream's socket is closed.
    let mut link = (closed == Side::Client).then_some(link);
    let end = match other.into_stream() {
        Ok(mut stream) => {
            match &mut link {
                None => slot.entry.list(stream.traffic(), slot.since),
                Some(UpstreamLink::Established(count)) => {
                    count.list(stream.traffic());
                    slot.list_age(counts);
                }
                Some(UpstreamLink::Connecting(_)) => {}
            }
            let finished = within_lifetime(&limits, stream.finish(LINGER));
            let end = match slot.guard.unless_cut(finished).await {
                Some(Ok(late)) => ConnectionEnd::Finished { late },
                Some(Err(expired)) => ConnectionEnd::Broken(expired.into()),
                None => ConnectionEnd::Cut,
            };
            // Do not reset a connection that is cut: both sides have ended in order, and the kernel
            // delivers the last bytes and the end.
            if matches!(end, ConnectionEnd::Broken(_)) {
                stream.reset_on_drop();
            }
            if closed == Side::Upstream {
                counts = stream.traffic().counts();
            }
            end
        }
        Err(error) => ConnectionEnd::Broken(error),
    };
    EndedConnection { peer, counts }.report(&slot, &end);
    let was_draining = slot.is_draining() || carry == Carrying::Stays;
    slot.end(end, was_draining, None);
}

/// Waits for `ending`, but not beyond the lifetime of the connection.
async fn within_lifetime<T>(
    limits: &Limits,
    ending: impl Future<Output = T>,
) -> Result<T, Expired> {
    match limits.lifetime_end() {
        Some(end) => timeout_at(end, ending).await.map_err(|_| Expired::Lifetime),
        None => Ok(ending.await),
    }
}

/// Passes on the last bytes of the side that has failed, and then resets the other side.
pub(super) async fn settle_other_side(
    mut entry: RelayEntry<RelayedConnection>,
    broken: Side,
    error: io::Error,
) {
    entry.owner.slot.list_age(entry.client.counts());
    let RelayEntry { client, upstream, relay, owner, limits } = &mut entry;
    let count = |client, upstream| owner.transferred(client, upstream);
    let settled = within_lifetime(limits, settle(relay, client, upstream, broken, count));
    let end = match owner.slot.guard.unless_cut(settled).await {
        Some(Ok(()) | Err(_)) => ConnectionEnd::Broken(error),
        None => ConnectionEnd::Cut,
    };
    entry.reset_on_drop();
    finish(entry, end);
}

/// Logs and counts how a connection has ended, and closes its sockets.
pub(super) fn finish(entry: RelayEntry<RelayedConnection>, end: ConnectionEnd) {
    let RelayEntry { client, upstream, owner, .. } = entry;
    let RelayedConnection { slot, link, peer, carry } = owner;
    EndedConnection { peer, counts: client.counts() }.report(&slot, &end);
    // Close the sockets before the counters show that the connection is gone.
    drop((client, upstream, link));
    let was_draining = slot.is_draining() || carry == Carrying::Stays;
    slot.end(end, was_draining, None);
}
