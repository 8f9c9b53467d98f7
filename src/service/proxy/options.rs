//! The socket options of a proxied connection, for both the client's socket and the upstream's
//! socket.
//!
//! The proxy serves a connection even if it cannot set a socket option. It logs only the first
//! failure for each option and side, because every connection fails in the same way.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::ProxyConfig;
use crate::net::ProxiedSocket;
use crate::plane::Side;

/// The socket options of one proxy, and flags that show which failures have been logged.
#[derive(Debug)]
pub(super) struct SocketOptions {
    keep_alive: Option<Duration>,
    user_timeout: Option<Duration>,
    client: Reported,
    upstream: Reported,
}

#[derive(Debug, Default)]
struct Reported {
    keep_alive: AtomicBool,
    user_timeout: AtomicBool,
}

impl SocketOptions {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        let ProxyConfig { keep_alive, user_timeout, .. } = *config;
        Self {
            keep_alive,
            user_timeout,
            client: Reported::default(),
            upstream: Reported::default(),
        }
    }

    /// Sets all socket options. Also disables Nagle's algorithm, because the proxy does not know
    /// whether more bytes will follow.
    pub(super) fn set(&self, socket: &mut impl ProxiedSocket, side: Side, listener: &str) {
        socket.set_nodelay();
        let reported = match side {
            Side::Client => &self.client,
            Side::Upstream => &self.upstream,
        };
        if let Some(Err(error)) = self.keep_alive.map(|time| socket.set_keep_alive(time)) {
            report("keep_alive", &error, &reported.keep_alive, side, listener);
        }
        if let Some(Err(error)) = self.user_timeout.map(|time| socket.set_user_timeout(time)) {
            report("user_timeout", &error, &reported.user_timeout, side, listener);
        }
    }
}

fn report(setting: &str, error: &io::Error, was_reported: &AtomicBool, side: Side, listener: &str) {
    if was_reported.swap(true, Ordering::Relaxed) {
        return;
    }
    let side = match side {
        Side::Client => "clients",
        Side::Upstream => "upstreams",
    };
    tracing::warn!(
        event = "connection.option_failed", listener, setting, side,
        reason = %error,
        "cannot set {setting} on connections with {side}, serving them without it: {error}"
    );
}
