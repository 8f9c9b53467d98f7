//! The pid file always names a living process that heeds SIGHUP.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::{Event, Line, Refusal, SLOW_DRAIN, exit_code, install, signal};

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

#[test]
fn the_pid_file_changes_hands_by_rename_when_the_successor_takes_over_and_not_before() {
    let line = serve("60s");
    // Open, so that its inode is not used again.
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
    // Neither the file nor a draft of it.
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
        line.wait_since(mark, "a ready one", |record| record.is(1, Event::SuccessorReady));
        signal(successor, number);
        line.wait_since(mark, "a rollback", |record| record.is(1, Event::HandoffFailed));
        exit_code(successor);
        assert_eq!(named(&path(&line)), line.first_pid());
    }
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

#[test]
fn whoever_reads_the_pid_file_at_any_time_finds_a_living_process_that_heeds_a_hangup() {
    const HANDOFFS: u64 = 20;
    let line = serve("0");
    let path = path(&line);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let pid = named(&path);
                // It may end between the two looks; then the file names another by now.
                assert!(heeds_hangups(pid) || named(&path) != pid, "{pid}\n{}", line.text());
                reads += 1;
            }
            reads
        });
        for generation in 1..=HANDOFFS {
            // By the file alone, as an operator does; and not before it has changed, or the hangup
            // is for the old one.
            signal(named(&path), Signal::SIGHUP);
            line.wait_for(generation + 1, Event::GenerationServing);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > HANDOFFS);
    });
    assert_eq!(named(&path), line.pid_of(HANDOFFS + 1));
}

/// Whoever may make files in the folder may make a link of any name that can be guessed.
#[test]
fn a_link_at_the_name_of_a_draft_is_not_followed() {
    let line = Line::start_with(|command, folder| {
        fs::write(folder.join("victim"), "precious").unwrap();
        // The daemon has the number of this shell.
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

/// A full disk, a folder that is being moved: whatever it was, the file is right when it is over.
#[test]
fn a_write_that_fails_is_tried_until_the_file_is_right() {
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
    // Said once for each generation, however often it was tried.
    assert_eq!(line.count(Event::PidFileFailed), 2);
}

/// `check` and the start agree, and neither touches what is there.
#[test]
fn a_pid_file_replaces_nothing_but_a_pid_file() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("precious"), "precious").unwrap();
    symlink("precious", path("link")).unwrap();
    symlink(folder.path(), path("folder")).unwrap();
    let (socket, control) = (path("socket"), path("control"));
    for (pid_file, reason) in [
        (path("precious"), "something else than a process id"),
        (path("link"), "a symbolic link"),
        ("/dev/null".to_owned(), "no file"),
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

/// Whether it lives and catches SIGHUP, proc_pid_status(5).
fn heeds_hangups(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
    let is_zombie = status.lines().any(|line| line.starts_with("State:\tZ"));
    !is_zombie && u64::from_str_radix(caught, 16).unwrap() & 1 == 1
}
