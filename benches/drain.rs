//! Measures the time from SIGTERM to the exit of a daemon that holds thousands of idle connections.
//!
//! Connections that are idle after a request must end at once. Connections that never sent a
//! request get no grace here, because that wait is intended. The exit is measured in the parent.
//! The clients keep their ends open until then.

mod support;

use nix::sys::signal::Signal;
use support::clients::{Past, idle};
use support::daemon::Daemon;
use support::event::Event;
use support::figures::Figures;
use support::table::{Table, Target};

const TURNS: usize = 9;
const CONNECTIONS: usize = 5_000;

fn main() {
    support::run(|| {
        let mut cases = [
            (0, Past::Silent, Figures::default()),
            (CONNECTIONS, Past::Asked, Figures::default()),
            (CONNECTIONS, Past::Silent, Figures::default()),
        ];
        for _ in 0..TURNS {
            for (connections, past, times) in &mut cases {
                times.push(exit_time(*connections, *past));
            }
        }

        let mut table = Table::new("SIGTERM to exit, ms", &["median", "longest"]);
        for (connections, past, times) in &cases {
            let past = match past {
                Past::Silent => "idle from the first",
                Past::Asked => "idle after a request",
            };
            table.row(
                &format!("{connections} connections, {past}"),
                &[times.median(), times.max()],
                Target::AtMost(100.0),
            );
        }
        table.print();
    });
}

/// Returns the time from SIGTERM to the exit, in milliseconds.
fn exit_time(connections: usize, past: Past) -> f64 {
    let daemon = Daemon::start(1, &["--first-request-grace", "0"]);
    let clients = idle(daemon.address(), connections, past);
    let told = Daemon::signal(daemon.first(), Signal::SIGTERM);
    let ended = daemon.reap(daemon.first());
    drop(clients);
    let report = daemon.await_record(1, Event::GenerationEnded).text;
    assert!(
        report.contains(&format!("ended={connections} carried=0 cut=0")),
        "some connections were cut: {report}"
    );
    (ended - told).as_secs_f64() * 1e3
}
