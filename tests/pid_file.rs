//! Tests of the pid file: it always names a living process that handles SIGHUP.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::{
    Event, Line, Refusal, SLOW_DRAIN, Tracer, assert_becomes, exit_code, install, signal,
};

fn serve(bake: &str) -> Line {
    let line = Line::start_with(|command, folder| {
        command
            .args(["--listen", "127.0.0.1:0", "--bake", bake, "--pid-file"])
            .arg(folder.join("pid"))
            .args(SLOW_DRAIN);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

fn path(line: &Line) -> PathBuf {
    line.folder().join("pid")
}

fn named(path: &Path) -> u32 {
    fs::read_to_string(path).unwrap().strip_suffix('\n').unwrap().parse().unwrap()
}

/// The file is replaced by rename at the commit and not before. The last generation removes it.
#[test]
fn the_pid_file_is_replaced_when_the_successor_takes_over() {
    let line = serve("60s");
    // Kept open, so that the kernel does not reuse its inode.
    let before = fs::File::open(path(&line)).unwrap();
    let inode = before.metadata().unwrap().ino();
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    assert_eq!(
        (named(&path(&line)), fs::metadata(path(&line)).unwrap().ino()),
        (line.first_pid(), inode)
    );
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::HandoffCommitted);
    assert_eq!(named(&path(&line)), line.pid_of(2));
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(named(&path(&line)), line.pid_of(2));
    assert_ne!(fs::metadata(path(&line)).unwrap().ino(), inode);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(named(&path(&line)), line.pid_of(2));
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    // Neither the pid file nor a draft of it is left.
    let left: Vec<_> =
        fs::read_dir(line.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["handoffd"]);
}

#[test]
fn a_rollback_leaves_the_pid_file_as_it_was() {
    let line = serve("60s");
    for number in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGQUIT] {
        let mark = line.mark();
        line.signal(1, Signal::SIGHUP);
        let successor = line
            .wait_since(mark, "a successor", |record| record.is(2, Event::GenerationAccepting))
            .pid;
        line.wait_since(mark, "a ready successor", |record| record.is(1, Event::SuccessorReady));
        signal(successor, number);
        line.wait_since(mark, "a rollback", |record| record.is(1, Event::HandoffFailed));
        exit_code(successor);
        assert_eq!(named(&path(&line)), line.first_pid());
    }
}

/// Returns whether the first generation has written a draft of the pid file, but not renamed it.
fn has_draft(line: &Line) -> bool {
    let draft = format!("pid.{}-", line.first_pid());
    let mut names = fs::read_dir(line.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_str().unwrap().starts_with(&draft))
}

/// The successor dies while its predecessor writes the pid file, just before the commit message.
#[test]
fn a_successor_that_dies_at_the_commit_has_not_taken_over() {
    let line = Line::start_with(|command, folder| {
        command.args(["--listen", "127.0.0.1:0", "--bake", "0", "--pid-file"]);
        command.arg(folder.join("pid")).arg("--control").arg(folder.join("control"));
    });
    line.wait_for(1, Event::GenerationServing);
    let delay = "inject=?rename,?renameat,?renameat2:delay_enter=1000000:when=1";
    let tracer = Tracer::attach(&line, line.first_pid(), &["-e", delay]);
    let reload = line.ask(&["reload"]);
    assert_becomes(&true, || has_draft(&line));
    signal(line.pid_of(2), Signal::SIGKILL);
    reload.wait().names(76, &["the new process ended after it was ready"]);
    tracer.detach();
    assert_eq!(line.count(Event::HandoffCommitted), 0);
    line.wait_for(1, Event::GenerationResumed);
    assert_becomes(&line.first_pid(), || named(&path(&line)));
    line.assert_serves();
    line.asked(&["reload"]).well();
}

#[test]
fn a_generation_that_accepts_again_puts_its_own_pid_back() {
    let line = serve("0");
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    assert_eq!(named(&path(&line)), line.pid_of(2));
    let mark = line.mark();
    line.signal(2, Signal::SIGKILL);
    line.wait_since(mark, "serving", |record| record.is(1, Event::GenerationServing));
    assert_eq!(named(&path(&line)), line.first_pid());
    drop(held);
}

#[test]
fn a_successor_whose_predecessor_died_takes_the_pid_file() {
    let line = serve("60s");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(1, Signal::SIGKILL);
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(named(&path(&line)), line.pid_of(2));
}

/// A thread reads the file all the time while generations replace each other. Every process id that
/// it reads must be alive and catch SIGHUP.
#[test]
fn the_pid_file_always_names_a_process_handling_sighup() {
    const HANDOFFS: u64 = 20;
    let line = serve("0");
    let path = path(&line);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let pid = named(&path);
                // The process may end between the two checks; then the file must name another
                // process by now.
                assert!(heeds_hangups(pid) || named(&path) != pid, "{pid}\n{}", line.text());
                reads += 1;
            }
            reads
        });
        for generation in 1..=HANDOFFS {
            // The test finds the process by the file alone, as an operator does. It first waits
            // until the file has changed, or it would signal the old generation.
            signal(named(&path), Signal::SIGHUP);
            line.wait_for(generation + 1, Event::GenerationServing);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > HANDOFFS);
    });
    assert_eq!(named(&path), line.pid_of(HANDOFFS + 1));
}

/// A user who can create files in the folder can place a link at any name that can be guessed.
#[test]
fn a_link_at_the_name_of_a_draft_is_not_followed() {
    let line = Line::start_with(|command, folder| {
        fs::write(folder.join("victim"), "precious").unwrap();
        // The daemon gets the process id of this shell.
        install(folder, r#"ln -s victim "$FOLDER/pid.$$"; exec "$REAL" "$@""#);
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0", "--pid-file"])
            .arg(folder.join("pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    line.hand_over_from(1);
    assert_eq!(fs::read_to_string(line.folder().join("victim")).unwrap(), "precious");
    assert_eq!(named(&path(&line)), line.pid_of(2));
    let link = line.folder().join(format!("pid.{}", line.first_pid()));
    assert_eq!(fs::read_link(link).unwrap(), Path::new("victim"));
}

/// The folder of the pid file is moved away for a while. When it is back, the file names the right
/// process.
#[test]
fn a_failed_write_is_retried_until_it_succeeds() {
    let line = Line::start_with(|command, folder| {
        fs::create_dir(folder.join("run")).unwrap();
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "60s", "--pid-file"])
            .arg(folder.join("run/pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    let (run, away) = (line.folder().join("run"), line.folder().join("away"));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    fs::rename(&run, &away).unwrap();
    line.signal(1, Signal::SIGTERM);
    for generation in 1..=2 {
        line.wait_for(generation, Event::PidFileFailed);
    }
    line.assert_serves();
    fs::rename(&away, &run).unwrap();
    let written = line.wait_for(2, Event::PidFileWritten);
    assert!(written.text.contains(&line.pid_of(2).to_string()), "{}", written.text);
    assert_eq!(named(&run.join("pid")), line.pid_of(2));
    assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
    // Each generation logs the failure once, however often it retries.
    assert_eq!(line.count(Event::PidFileFailed), 2);
}

/// The start and `check` reject the same paths, and neither changes the files there.
#[test]
fn a_pid_file_replaces_only_a_pid_file() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("precious"), "precious").unwrap();
    symlink("precious", path("link")).unwrap();
    symlink(folder.path(), path("folder")).unwrap();
    let (socket, control) = (path("socket"), path("control"));
    for (pid_file, reason) in [
        (path("precious"), "something other than a pid"),
        (path("link"), "a symbolic link"),
        ("/dev/null".to_owned(), "not a regular file"),
        (folder.path().to_str().unwrap().to_owned(), "is a directory"),
        (socket.clone(), "the listener web has the same path"),
        (path("folder/socket"), "the listener web has the same path"),
        (control.clone(), "the control socket has the same path"),
    ] {
        let listener = format!("web={socket}");
        let flags = ["--listen", &listener, "--control", &control, "--pid-file", &pid_file];
        for command in [&[][..], &["check"]] {
            Refusal::to(&[command, &flags].concat()).names(78, &["pid file", &pid_file, reason]);
        }
    }
    assert_eq!(fs::read_to_string(path("precious")).unwrap(), "precious");
    assert!(!Path::new(&socket).exists() && !Path::new(&control).exists());
}

/// The limit on the file size stands for a full disk: the daemon can create a file, but not write
/// it.
#[test]
fn a_full_disk_does_not_stop_a_start() {
    let full = "trap '' XFSZ; ulimit -S -f 0; exec \"$0\" \"$@\"";
    let line = Line::start_under(&["bash", "-c", full], |command, folder| {
        command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(folder.join("pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    line.wait_for(1, Event::PidFileFailed);
    line.assert_serves();
    assert!(!path(&line).exists());
    let pid = line.first_pid().to_string();
    let freed = Command::new("prlimit").args(["--fsize=unlimited", "--pid", &pid]).status();
    assert!(freed.unwrap().success());
    line.wait_for(1, Event::PidFileWritten);
    assert_eq!(named(&path(&line)), line.first_pid());
}

/// Returns whether the process is alive and catches SIGHUP, by proc_pid_status(5).
fn heeds_hangups(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
    let is_zombie = status.lines().any(|line| line.starts_with("State:\tZ"));
    !is_zombie && u64::from_str_radix(caught, 16).unwrap() & 1 == 1
}
