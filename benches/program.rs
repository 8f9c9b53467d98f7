//! Measures what `handoffd run` adds to a program: the time from SIGHUP until the new program
//! runs, and the memory of the generation process.
//!
//! The program is a shell that writes one line and sleeps. The time of a start by hand, until the
//! same line, is measured in turns with it.

mod support;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::clients::{Past, idle};
use support::daemon::Daemon;
use support::event::Event;
use support::figures::Figures;
use support::table::{Table, Target};
use support::usage::private_memory;

const TURNS: u64 = 31;
/// How many connections a private program has when the memory is measured.
const CONNECTIONS: usize = 100;

fn main() {
    support::run(|| {
        time_to_start();
        memory();
    });
}

fn time_to_start() {
    let folder = tempfile::tempdir().expect("create a folder");
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("create a pipe");
    // Open for writing too, so that the pipe has no end between two programs.
    let mut started = File::options().read(true).write(true).open(&pipe).expect("open the pipe");
    let daemon = run(&["--attach", "inherit", "--ready", "after:0", "--bake", "0"], &pipe);
    wait(&mut started);
    let (mut ours, mut by_hand) = (Figures::default(), Figures::default());
    let mut serving = daemon.first();
    for turn in 1..=TURNS {
        let asked = Daemon::signal(serving, Signal::SIGHUP);
        ours.push_time(wait(&mut started) - asked);
        serving = daemon.await_record(turn + 1, Event::GenerationServing).pid;
        daemon.await_record(turn, Event::GenerationEnded);
        by_hand.push_time(start_by_hand(&pipe, &mut started));
    }
    let (ours, by_hand) = (ours.median(), by_hand.median());
    let mut table =
        Table::new("to the first line of a program, ms", &["SIGHUP", "by hand", "more"]);
    table.row("a shell", &[ours, by_hand, ours - by_hand], Target::None);
    table.print();
}

/// Starts the program that reports to `pipe` under a daemon.
fn run(flags: &[&str], pipe: &Path) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
    command.args(["run", "--listen", "127.0.0.1:0"]).args(flags).arg("--");
    command.args(words(pipe));
    Daemon::start_by(command)
}

/// Returns the command of the program.
fn words(pipe: &Path) -> [String; 3] {
    let script = format!("echo > {}; exec sleep 1000", pipe.display());
    ["/bin/sh".to_owned(), "-c".to_owned(), script]
}

fn wait(started: &mut File) -> Instant {
    started.read_exact(&mut [0]).expect("read the line of the program");
    Instant::now()
}

fn start_by_hand(pipe: &Path, started: &mut File) -> Duration {
    let words = words(pipe);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let begin = Instant::now();
    let mut child = command.spawn().expect("start the program");
    let time = wait(started) - begin;
    child.kill().expect("end the program");
    child.wait().expect("reap the program");
    time
}

fn memory() {
    let mut table = Table::new("private memory of a generation, MB", &["median"]);
    let here = env!("CARGO_BIN_EXE_handoffd");
    let cases = [
        ("beside a program that accepts by itself", "{fd}", 0),
        ("beside a private program", "{port}", 0),
        ("beside a private program with 100 connections", "{port}", CONNECTIONS),
    ];
    for (figure, placeholder, connections) in cases {
        let mut figures = Figures::default();
        for _ in 0..3 {
            let mut command = Command::new(here);
            command.args(["run", "--listen", "web=127.0.0.1:0", "--ready", "after:200ms", "--"]);
            command.args(["/bin/sh", "-c", "exec \"$0\" --listen web=$1 --log off", here]);
            let address = if placeholder == "{fd}" { "127.0.0.1:9" } else { "127.0.0.1:{port}" };
            command.args([address, placeholder]);
            let daemon = Daemon::start_by(command);
            let _connections = idle(daemon.address(), connections, Past::Asked);
            figures.push(private_memory(daemon.first()) / 1e6);
        }
        table.row(figure, &[figures.median()], Target::AtMost(5.0));
    }
    table.print();
}
