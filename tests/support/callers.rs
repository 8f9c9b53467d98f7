//! Calls the daemon all the time, one short connection after the other, and tells what became of
//! them.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{Client, Event, Line};

/// Flags with which connections keep a generation draining until the test lets go of them, see
/// [`Line::hold`].
pub(crate) const SLOW_DRAIN: [&str; 4] = ["--drain-timeout", "60s", "--first-request-grace", "60s"];

impl Line {
    /// A client that is connected and has said nothing: with [`SLOW_DRAIN`] it keeps the one
    /// generation that accepts now from ending, until it has spoken.
    pub(crate) fn hold(&self) -> Client {
        let client = Client::connect(&self.address()).unwrap();
        // Accepted after it, by the same generation.
        let mark = self.mark();
        self.assert_serves();
        self.wait_since(mark, "the end of a connection", |record| {
            record.is_event(Event::ConnectionEnded)
        });
        client
    }
}

/// Clients that call until they are told to stop.
#[derive(Debug)]
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Calls>>,
}

/// What became of the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Answered in full.
    pub(crate) served: usize,
    /// Nobody listened.
    pub(crate) refused: usize,
    /// Accepted, and not answered.
    pub(crate) broken: usize,
}

impl Callers {
    /// Starts that many, of an echo.
    pub(crate) fn start(address: &str, count: usize) -> Self {
        Self::start_with(address, count, |client| {
            client.echo(b"are you there?")?;
            client.half_close()?;
            client.expect_end()
        })
    }

    /// Starts that many, each of which talks like this over a connection of its own.
    pub(crate) fn start_with(
        address: &str,
        count: usize,
        talk: fn(&mut Client) -> io::Result<()>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (stop, address) = (Arc::clone(&stop), address.to_owned());
            std::thread::spawn(move || call(&address, talk, &stop))
        };
        Self { threads: (0..count).map(caller).collect(), stop }
    }

    /// Has them finish the call that they are in.
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

/// Calls at least once after the word to stop: so that whatever the test did before it, was called
/// upon.
fn call(address: &str, talk: fn(&mut Client) -> io::Result<()>, stop: &AtomicBool) -> Calls {
    let mut calls = Calls::default();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        match Client::connect(address) {
            Ok(mut client) => match talk(&mut client) {
                Ok(()) => calls.served += 1,
                Err(error) if error.kind() == ErrorKind::Other => panic!("altered: {error}"),
                Err(_) => calls.broken += 1,
            },
            Err(_) => calls.refused += 1,
        }
        if is_last {
            return calls;
        }
    }
}
