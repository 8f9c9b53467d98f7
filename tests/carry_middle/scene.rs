//! A daemon whose carry is stopped in the middle, and the clients of both processes.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::view::is_asleep;
use crate::support::{
    Client, Echoing, Event, Gate, Line, REAL, Upstream, assert_becomes, exit_code, freeze,
    raise_descriptor_limit, thaw,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Echo,
    Proxy,
}

/// A daemon that carries connections, and the clients of its first generation.
pub(super) struct Scene {
    pub(super) line: Line,
    pub(super) clients: Vec<Client>,
    _upstream: Option<Echoing>,
}

/// Returns the two requests of a client, different for each client. The second is sent during the
/// carry.
fn requests(client: usize) -> [Vec<u8>; 2] {
    let bytes = |from: usize, count: usize| {
        (from..from + count).map(|at| ((at * 31) ^ (at >> 8)).to_le_bytes()[0])
    };
    [bytes(client * 7, 100).collect(), bytes(client * 11 + 5, 3_000).collect()]
}

impl Scene {
    /// Starts a daemon with `count` clients that have been served once.
    pub(super) fn set(kind: Kind, count: usize, arguments: &[&str]) -> Self {
        Self::set_with(kind, count, |command| {
            command.args(arguments);
        })
    }

    /// Does the same as [`Self::set`], but the caller adds arguments to the command.
    pub(super) fn set_with(kind: Kind, count: usize, add: impl FnOnce(&mut Command)) -> Self {
        raise_descriptor_limit();
        let upstream = (kind == Kind::Proxy).then(Upstream::tcp);
        let to = upstream.as_ref().map(Upstream::address);
        let line = Line::start_program(Path::new(REAL), |command, folder| {
            if let Some(to) = &to {
                command.args(["proxy", "--to", to]);
            }
            command.args([
                "--listen",
                "127.0.0.1:0",
                "--log",
                "debug",
                "--carry",
                "--workers",
                "1",
                "--bake",
                "0",
            ]);
            command.arg("--control").arg(folder.join("control"));
            add(command);
        });
        let upstream = upstream.zip(to).map(|(upstream, to)| Echoing::on(upstream, &to));
        line.wait_for(1, Event::GenerationServing);
        let mut clients: Vec<_> =
            (0..count).map(|_| Client::connect(&line.address()).unwrap()).collect();
        clients.iter_mut().for_each(|client| client.echo(b"there").unwrap());
        Self { line, clients, _upstream: upstream }
    }

    /// Begins a handoff, and stops both processes when the successor is ready. Then each client
    /// sends its first request. Returns the successor's process id.
    pub(super) fn hold_before_carry(&mut self) -> u32 {
        let mut gate = Gate::before_successor(&self.line, "\"$@\"");
        self.line.signal(1, Signal::SIGHUP);
        let successor = gate.wait(&self.line);
        freeze(self.line.first_pid());
        gate.open();
        self.line.wait_for(2, Event::GenerationStep.with("to", "probation"));
        // The record is written before the successor reports that it is ready.
        asleep(successor);
        freeze(successor);
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.write_all(&requests(number)[0]).unwrap();
        }
        successor
    }

    /// Lets the predecessor commit and send as many connections as may be in transit. Then each
    /// client sends its second request. Most of the requests find no process that reads.
    pub(super) fn send(&mut self) {
        thaw(self.line.first_pid());
        self.line.wait_for(1, Event::DrainStarted);
        asleep(self.line.first_pid());
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.write_all(&requests(number)[1]).unwrap();
        }
    }

    /// Begins a handoff, and stops the predecessor when it has sent as many connections as may be
    /// in transit. The successor has received all of them. Returns the successor's process id.
    pub(super) fn take(&mut self) -> u32 {
        let successor = self.hold_before_carry();
        self.send();
        freeze(self.line.first_pid());
        thaw(successor);
        self.line.wait_for(2, Event::GenerationServing);
        asleep(successor);
        successor
    }

    /// Returns how many clients receive all outstanding replies and are still served. All others
    /// must get an end of stream or a reset. No byte may be wrong.
    pub(super) fn heard(&mut self) -> usize {
        let hear = |(number, client): (usize, &mut Client)| {
            let owed = requests(number).concat();
            match client.expect(&owed).and_then(|()| client.echo(b"and on")) {
                Ok(()) => true,
                Err(error) if is_end(error.kind()) => false,
                Err(error) => panic!("client {number}: {error}"),
            }
        };
        self.clients.iter_mut().enumerate().map(hear).filter(|is_served| *is_served).count()
    }

    /// Asserts that every client receives all outstanding replies and then an end of stream.
    pub(super) fn assert_all_end_in_order(&mut self) {
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.expect(&requests(number).concat()).unwrap();
            // Behind a proxy, one of the two sides must end the conversation. The other side may
            // have ended it already.
            let _ = client.half_close();
            client.expect_end().unwrap();
        }
    }

    /// Returns a counter of the daemon's listener.
    pub(super) fn counted(&self, name: &str) -> usize {
        usize::try_from(self.line.counter("listener-1", name)).unwrap()
    }

    /// Asserts that the old generation is active again, and that its next handoff carries `carries`
    /// connections.
    pub(super) fn assert_recalled(&self, mark: usize, carries: usize) {
        let line = &self.line;
        line.put_real();
        line.wait_since(mark, "serving again", |record| record.is(1, Event::GenerationServing));
        line.assert_serves();
        let recalled = line.mark();
        line.signal(1, Signal::SIGHUP);
        let taken =
            line.wait_since(recalled, "a takeover", |record| record.is(2, Event::CarryTakenOver));
        assert_eq!(taken.field("taken"), Some(&*carries.to_string()), "{}", line.text());
        assert_eq!(exit_code(line.first_pid()), 0);
    }
}

fn is_end(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Waits until a process has nothing left to do.
pub(super) fn asleep(pid: u32) {
    assert_becomes(&true, || is_asleep(pid).unwrap());
}
