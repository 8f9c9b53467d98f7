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
    let before = private(pid);
    let _more = idle(address, MANY - FEW, past);
    let kibibytes = private(pid) - before;
    kibibytes * 1024.0 / f64::from(u32::try_from(MANY - FEW).expect("a small number"))
}

/// Returns the private memory of a process, in KiB.
fn private(pid: Pid) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .expect("read the memory of a living process");
    let size =
        |line: &str| line.strip_prefix("Private_")?.split_whitespace().nth(1)?.parse::<f64>().ok();
    rollup.lines().filter_map(size).sum()
}
