//! This module ends a proxied connection that has failed on one side. The other side still receives
//! the bytes that were sent before the failure, and then a reset.
//!
//! This module polls the sockets, because the kernel has no event for the acknowledgement of bytes.
//! Polling is cheap here, because few connections end like this.

use std::time::Duration;

use rustix::event::epoll::EventFlags;
use tokio::time::{Instant, sleep};

use super::direction::BUFFER;
use super::relay::Relay;
use crate::net::{ACKNOWLEDGE_TIMEOUT, ByteCounts, RelaySocket};

/// The pause between two attempts to write.
const PAUSE: Duration = Duration::from_millis(5);

/// A side of a proxied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// Passes on the bytes that `broken`, the failed side, sent before its failure. Returns when the
/// other side has acknowledged them, or accepts no more of them. Calls `count` with the bytes that
/// the client's and the upstream's socket have transferred each time. Must be called within a tokio
/// runtime. Cancel safe.
pub(crate) async fn settle(
    relay: &mut Relay,
    client: &mut RelaySocket,
    upstream: &mut RelaySocket,
    broken: Side,
    count: impl Fn(ByteCounts, ByteCounts),
) {
    let mut buffer = vec![0; BUFFER];
    let mut until = Instant::now() + ACKNOWLEDGE_TIMEOUT;
    let mut last_sent = None;
    loop {
        // Mark both sockets as ready, because no events arrive for them any more. So each pass
        // tries to read and to write.
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        client.note(all);
        upstream.note(all);
        let before = (client.counts(), upstream.counts());
        let (is_done, sink) = match broken {
            Side::Client => (relay.advance_rest_up(&mut buffer, client, upstream), &*upstream),
            Side::Upstream => (relay.advance_rest_down(&mut buffer, client, upstream), &*client),
        };
        let sent = Some(sink.counts().sent);
        count(client.counts() - before.0, upstream.counts() - before.1);
        if is_done {
            sink.acknowledged(ACKNOWLEDGE_TIMEOUT).await;
            return;
        }
        if sent != last_sent {
            (last_sent, until) = (sent, Instant::now() + ACKNOWLEDGE_TIMEOUT);
        } else if Instant::now() >= until {
            return;
        }
        sleep(PAUSE).await;
    }
}
