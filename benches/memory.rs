//! Measures the memory of one more idle connection, beside a bare tokio echo loop.
//!
//! The growth from 1,000 to 5,000 connections excludes the memory that the process needs anyway.
//! Only the process's own pages count, because the kernel's share is the same for every server.

mod support;

use std::net::SocketAddr;

use nix::unistd::Pid;
use support::bare;
use support::clients::{Past, idle};
use support::daemon::Daemon;
use support::figures::Figures;
use support::table::{Table, Target};
use support::usage::private_memory;

const TURNS: usize = 3;
const FEW: usize = 1_000;
const MANY: usize = 5_000;

fn main() {
    bare::serve_if_asked();
    support::run(|| {
        let mut table =
            Table::new("memory of an idle connection, bytes", &["median", "bare", "ratio"]);
        for (figure, past) in
            [("idle from the first", Past::Silent), ("idle after a request", Past::Asked)]
        {
            let (mut ours, mut theirs) = (Figures::default(), Figures::default());
            for _ in 0..TURNS {
                let (daemon, bare) = (Daemon::start(1, &[]), bare::start());
                ours.push(growth(daemon.first(), daemon.address(), past));
                theirs.push(growth(bare.pid(), bare.address(), past));
            }
            let (ours, theirs) = (ours.median(), theirs.median());
            table.row(figure, &[ours, theirs, ours / theirs], Target::AtMost(theirs.round()));
        }
        table.print();
    });
}

/// Returns the memory for each additional connection, in bytes.
fn growth(pid: Pid, address: SocketAddr, past: Past) -> f64 {
    let _few = idle(address, FEW, past);
    let before = private_memory(pid);
    let _more = idle(address, MANY - FEW, past);
    (private_memory(pid) - before) / f64::from(u32::try_from(MANY - FEW).expect("a small number"))
}
