//! Clients that open one short connection after another and count the outcomes.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::view::pause;
use super::{Client, Event, Line};

/// Flags that keep a generation draining until the test releases its connections, see
/// [`Line::hold`].
pub(crate) const SLOW_DRAIN: [&str; 4] = ["--drain-timeout", "60s", "--first-request-grace", "60s"];

impl Line {
    /// Connects a client that sends nothing. With [`SLOW_DRAIN`] it keeps the accepting generation
    /// draining until it sends a request.
    pub(crate) fn hold(&self) -> Client {
        let client = Client::connect(&self.address()).unwrap();
        // The backlog is in order: when this second client is served, the first has been accepted.
        let mark = self.mark();
        self.assert_serves();
        self.wait_since(mark, "the end of a connection", |record| {
            record.is_event(Event::ConnectionEnded)
        });
        client
    }
}

/// Clients that keep calling until they are told to stop.
#[derive(Debug)]
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Calls>>,
}

/// How many calls had each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Calls that were answered completely.
    pub(crate) served: usize,
    /// Calls whose connection was refused.
    pub(crate) refused: usize,
    /// Calls that were accepted but not answered completely.
    pub(crate) broken: usize,
}

impl Callers {
    /// Starts `count` clients of an echo service.
    pub(crate) fn start(address: &str, count: usize) -> Self {
        Self::start_with(address, count, call_once)
    }

    /// Starts `count` clients. Each runs `talk` on a new connection for every call.
    pub(crate) fn start_with(
        address: &str,
        count: usize,
        talk: fn(&mut Client) -> io::Result<()>,
    ) -> Self {
        Self::start_paced(address, count, 0, talk)
    }

    /// Starts clients as [`Callers::start_with`] does. Each pauses for `pace` milliseconds before a
    /// call.
    pub(crate) fn start_paced(
        address: &str,
        count: usize,
        pace: u64,
        talk: fn(&mut Client) -> io::Result<()>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (stop, address) = (Arc::clone(&stop), address.to_owned());
            std::thread::spawn(move || call(&address, pace, talk, &stop))
        };
        Self { threads: (0..count).map(caller).collect(), stop }
    }

    /// Waits for the calls in progress, stops the clients, and returns the totals.
    pub(crate) fn finish(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).fold(
            Calls::default(),
            |all, one| Calls {
                served: all.served + one.served,
                refused: all.refused + one.refused,
                broken: all.broken + one.broken,
            },
        )
    }
}

/// Calls an echo service: sends a request, reads the reply, and ends the connection.
pub(crate) fn call_once(client: &mut Client) -> io::Result<()> {
    client.echo(b"are you there?")?;
    client.half_close()?;
    client.expect_end()
}

/// Calls until told to stop, and once more after that: at least one call covers the test's last
/// step.
fn call(
    address: &str,
    pace: u64,
    talk: fn(&mut Client) -> io::Result<()>,
    stop: &AtomicBool,
) -> Calls {
    let mut calls = Calls::default();
    loop {
        pause(pace);
        let is_last = stop.load(Ordering::Relaxed);
        match Client::connect(address) {
            Ok(mut client) => match talk(&mut client) {
                Ok(()) => calls.served += 1,
                Err(error) if error.kind() == ErrorKind::Other => {
                    panic!("the reply was altered: {error}")
                }
                Err(_) => calls.broken += 1,
            },
            Err(_) => calls.refused += 1,
        }
        if is_last {
            return calls;
        }
    }
}
