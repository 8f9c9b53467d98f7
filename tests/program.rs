//! Tests that a handoff executes the current file at the path by which the daemon was started,
//! however that path was given.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Event, Line, REAL};

const FLAGS: [&str; 6] = ["--log", "debug", "--listen", "127.0.0.1:0", "--bake", "0"];

/// Returns the file that the generation executes, with links resolved.
fn image(line: &Line, generation: u64) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", line.pid_of(generation))).unwrap()
}

/// Copies the daemon to `path` by another process: see `Line::put_file`.
fn copy_to(path: &std::path::Path) {
    assert!(Command::new("cp").arg(REAL).arg(path).status().unwrap().success());
}

#[test]
fn a_program_replaced_by_rename_takes_effect() {
    let line = Line::serve(&["--bake", "0"]);
    for generation in 1..=3 {
        // A new file each time, as a package manager installs it.
        let draft = line.folder().join("draft");
        copy_to(&draft);
        fs::rename(&draft, line.program()).unwrap();
        line.hand_over_from(generation);
        assert_eq!(image(&line, generation + 1), line.program());
        line.assert_serves();
    }
}

/// A successor runs the release that the link points to. When the link is dangling, the handoff
/// fails and the active generation keeps serving.
#[test]
fn a_flipped_link_takes_effect_and_a_dangling_one_fails() {
    let line = Line::start_by(|folder| {
        for release in ["r1", "r2"] {
            fs::create_dir(folder.join(release)).unwrap();
            copy_to(&folder.join(release).join("handoffd"));
        }
        symlink("r1", folder.join("current")).unwrap();
        let mut command = Command::new(folder.join("current/handoffd"));
        command.args(FLAGS);
        command
    });
    line.wait_for(1, Event::GenerationServing);
    let flip = |release: &str| {
        symlink(release, line.folder().join("next")).unwrap();
        fs::rename(line.folder().join("next"), line.folder().join("current")).unwrap();
    };
    let folder = line.folder().canonicalize().unwrap();
    assert_eq!(image(&line, 1), folder.join("r1/handoffd"));
    flip("r2");
    line.hand_over_from(1);
    assert_eq!(image(&line, 2), folder.join("r2/handoffd"));
    flip("r3");
    let failure = line.fail_to_hand_over_from(2);
    assert!(
        failure.text.contains("current/handoffd: No such file or directory"),
        "{}",
        failure.text
    );
    line.assert_serves();
    flip("r1");
    line.hand_over_from(2);
    assert_eq!(image(&line, 3), folder.join("r1/handoffd"));
}

/// Starts the daemon with a misleading or unusual name as `start` says, and hands over twice.
fn assert_finds_itself(start: impl FnOnce(&mut Command)) {
    let line = Line::start_by(|folder| {
        fs::create_dir(folder.join("bin")).unwrap();
        copy_to(&folder.join("bin/handoffd"));
        let mut command = Command::new("bash");
        command.current_dir(folder);
        start(&mut command);
        command
    });
    line.wait_for(1, Event::GenerationServing);
    let started = fs::read(format!("/proc/{}/cmdline", line.pid_of(1))).unwrap();
    for generation in 1..=2 {
        line.hand_over_from(generation);
        assert_eq!(image(&line, generation + 1), line.folder().join("bin/handoffd"));
        assert_eq!(
            fs::read(format!("/proc/{}/cmdline", line.pid_of(generation + 1))).unwrap(),
            started
        );
        line.assert_serves();
    }
}

/// Has bash run the script `text` with [`FLAGS`] as its arguments.
fn script(command: &mut Command, text: &str) {
    command.args(["-c", text, "bash"]).args(FLAGS);
}

#[test]
fn a_program_started_by_a_relative_path_finds_itself() {
    assert_finds_itself(|command| script(command, r#"exec bin/handoffd "$@""#));
    assert_finds_itself(|command| script(command, r#"cd bin; exec ./handoffd "$@""#));
    assert_finds_itself(|command| script(command, r#"cd bin; exec ../bin/./handoffd "$@""#));
}

#[test]
fn a_program_found_in_path_finds_itself() {
    assert_finds_itself(|command| script(command, r#"PATH="$PWD/bin:$PATH"; exec handoffd "$@""#));
    // `PATH` has a relative folder, in which a process with another working directory finds
    // nothing.
    assert_finds_itself(|command| script(command, r#"PATH="bin:$PATH"; exec handoffd "$@""#));
}

#[test]
fn a_misleading_argv0_is_ignored() {
    assert_finds_itself(|command| {
        script(command, r#"PATH="$PWD/bin:$PATH"; exec -a funny handoffd "$@""#)
    });
    assert_finds_itself(|command| script(command, r#"exec -a /bin/false bin/handoffd "$@""#));
    assert_finds_itself(|command| script(command, r#"exec -a "" bin/handoffd "$@""#));
    assert_finds_itself(|command| {
        *command = {
            let folder = command.get_current_dir().unwrap().to_owned();
            let mut other = Command::new(folder.join("bin/handoffd"));
            other.arg0("-handoffd").args(FLAGS).current_dir(folder);
            other
        };
    });
}
