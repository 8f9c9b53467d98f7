//! Failed launches: a successor that cannot be started or never becomes ready changes nothing but
//! the log.
//!
//! The old generation logs the reason and keeps serving, and the next valid handoff succeeds. Bash
//! scripts play the faulty successors.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Event, Gate, Line, REAL, exit_code, signal};

/// The reason for a failed handoff, and a function that causes it.
type Failure<'a> = (&'a str, &'a dyn Fn(&Line));

/// Asserts that handoffs from the first generation fail for each of these reasons, and that a later
/// one succeeds.
fn assert_survives(line: &Line, failures: &[Failure<'_>]) {
    for (reason, put) in failures {
        put(line);
        let failure = line.fail_to_hand_over_from(1);
        assert!(failure.text.contains(reason), "{reason:?} is not in {}", failure.text);
        line.assert_serves();
    }
    assert_recovers(line);
}

/// Asserts that the first generation hands over to the daemon itself, which then serves alone.
pub(crate) fn assert_recovers(line: &Line) {
    line.put_real();
    let mark = line.mark();
    line.signal(1, Signal::SIGHUP);
    line.wait_since(mark, "the next successful handoff", |record| {
        record.is(2, Event::GenerationServing)
    });
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
}

/// Returns a function that installs this script as the next successor.
fn script(text: &'static str) -> impl Fn(&Line) {
    move |line| line.put_script(text)
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let mut foreign = fs::read(REAL).unwrap();
    foreign.truncate(1 << 16);
    // e_machine of elf(5): an architecture that does not exist.
    foreign[18..20].copy_from_slice(&[0xfe, 0xfe]);
    assert_survives(
        &Line::serve(&["--bake", "0"]),
        &[
            ("handoffd: No such file or directory", &|line| {
                fs::remove_file(line.program()).unwrap()
            }),
            ("handoffd: Permission denied", &|line| line.put_file(b"#!/bin/true\n", "644")),
            ("handoffd: Exec format error", &|line| line.put_file(&foreign, "755")),
            ("handoffd: Exec format error", &|line| {
                line.put_file(b"neither a program nor a script", "755")
            }),
            ("handoffd: Exec format error", &|line| line.put_file(b"", "755")),
            ("handoffd: No such file or directory", &|line| {
                line.put_file(b"#!/no/such/interpreter\n", "755")
            }),
            ("handoffd: No such file or directory", &|line| line.put_link("/no/such/program")),
            ("handoffd: Permission denied", &|line| line.put_link("/")),
            ("handoffd: Too many levels of symbolic links", &|line| line.put_link(line.program())),
        ],
    );
}

#[test]
fn a_successor_reports_its_configuration_error() {
    let line = Line::start_with(|command, folder| {
        fs::create_dir(folder.join("run")).unwrap();
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0", "--pid-file"])
            .arg(folder.join("run/pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    let run = |line: &Line| line.folder().join("run");
    assert_survives(
        &line,
        &[
            (
                "the new process reported an error: unexpected argument '--bad-flag'",
                &script(r#"exec "$REAL" "$@" --bad-flag"#),
            ),
            (
                "the new process reported an error: bad address",
                &script(r#"exec "$REAL" --listen here"#),
            ),
            (
                "the new process reported an error: cannot listen on 203.0.113.1:9 (far): Cannot \
                assign requested address",
                &script(r#"exec "$REAL" "$@" --listen far=203.0.113.1:9"#),
            ),
            ("the new process reported an error: cannot write the pid file", &|line| {
                fs::rename(run(line), line.folder().join("away")).unwrap();
                line.put_real();
            }),
            // The old generation still finds the file at its path once the file is restored.
            ("the new process reported an error: inherited descriptor 3", &|line| {
                fs::rename(line.folder().join("away"), run(line)).unwrap();
                line.put_script(r#"exec "$REAL" "$@" 3</dev/null"#);
            }),
        ],
    );
    let named = fs::read_to_string(run(&line).join("pid")).unwrap();
    assert_eq!(named.trim(), line.wait_for(2, Event::GenerationServing).pid.to_string());
}

#[test]
fn a_successor_that_ends_early_leaves_the_predecessor() {
    let ended = "failure=\"ended-early\"";
    assert_survives(
        &Line::serve(&["--bake", "0"]),
        &[
            (ended, &script("exit 0")),
            (ended, &script("exit 1")),
            (ended, &script("kill -KILL $$")),
            (ended, &script("kill -ABRT $$")),
            (ended, &script("kill -SEGV $$")),
            (ended, &script(r#"exec "$REAL" --help"#)),
        ],
    );
}

#[test]
fn a_successor_with_invalid_messages_is_killed() {
    let line = Line::serve(&["--bake", "0"]);
    let garbage = "invalid-message";
    for (says, kind) in [
        ("say garbage", garbage),
        (r"say 'VERSION=2\nKIND=ready\nPI'", garbage),
        (r"say 'VERSION=2\nKIND=ready\nCLOSED=x\n'", garbage),
        (r"say 'VERSION=2\nKIND=active\nPID=-7\n'", garbage),
        (r"say '\377\376\n'", garbage),
        (r"say 'VERSION=2\nKIND=cut\n'", garbage),
        ("head -c 150000 /dev/zero | dd bs=150000 iflag=fullblock status=none >&$fd", garbage),
        // An empty packet looks like the end of the channel.
        (
            r#"perl -e 'open(my $s, "+<&=", $ARGV[0]) or die; defined(send($s, "", 0)) or die' "$fd""#,
            "ended-early",
        ),
        ("exec {fd}>&-", "ended-early"),
    ] {
        line.put_script(&format!("echo $$ >\"$FOLDER/pid\"\n{says}\nexec sleep infinity"));
        let failure = line.fail_to_hand_over_from(1);
        assert_eq!(failure.field("failure"), Some(kind), "{says}: {failure:?}");
        let pid = fs::read_to_string(line.folder().join("pid")).unwrap();
        assert_eq!(exit_code(pid.trim().parse().unwrap()), 128 + Signal::SIGKILL as i32, "{says}");
        line.assert_serves();
    }
    assert_recovers(&line);
}

#[test]
fn an_unknown_message_is_answered_and_not_fatal() {
    let line = Line::serve(&["--bake", "0"]);
    line.put_script(
        r#"say 'VERSION=2\nKIND=novel\nANY=thing\n'; say 'VERSION=9\nKIND=ready\nPID=1\n'; exec "$REAL" "$@""#,
    );
    line.hand_over_from(1);
    line.wait_for(1, Event::MessageUnknown.with("version", 2).with("kind", "novel"));
    line.wait_for(1, Event::MessageUnknown.with("version", 9).with("kind", "ready"));
    line.wait_for(2, Event::MessageUnexpected.mentioning(r#"Unknown { kind: "novel" }"#));
    line.wait_for(2, Event::MessageUnexpected.mentioning(r#"Unknown { kind: "ready" }"#));
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
}

#[test]
fn a_successor_is_killed_at_the_ready_timeout() {
    let line = Line::serve(&["--bake", "0", "--ready-timeout", "2s"]);
    line.put_script("exec sleep infinity");
    let failure = line.fail_to_hand_over_from(1);
    assert_eq!(failure.field("failure"), Some("timed-out"), "{failure:?}");
    // The log has its process id: the script may not have run far enough to write it.
    let killed = line.wait_for(1, Event::SuccessorSignalled);
    let pid = killed.field("successor_pid").unwrap().parse().unwrap();
    assert_eq!(exit_code(pid), 128 + Signal::SIGKILL as i32);
    assert_recovers(&line);
}

#[test]
fn a_successor_forked_by_a_wrapper_takes_over() {
    let line = Line::serve(&["--bake", "0"]);
    line.put_script(r#""$REAL" "$@" & wait"#);
    line.hand_over_from(1);
    line.hand_over_from(2);
    assert_eq!(line.exit_code(1), 0);
    // The second generation is a child of the wrapper, so only the wrapper can reap it.
    line.wait_for(2, Event::GenerationEnded);
    line.assert_serves();
}

#[test]
fn the_death_of_a_wrappers_successor_is_noticed() {
    let line = Line::serve(&["--bake", "60s"]);
    line.put_script(r#""$REAL" "$@" & wait"#);
    line.signal(1, Signal::SIGHUP);
    let ready = line.wait_for(1, Event::SuccessorReady);
    let pid = line.pid_of(2);
    assert_eq!(ready.field("successor_pid"), Some(&*pid.to_string()), "{}", ready.text);
    signal(pid, Signal::SIGKILL);
    let failure = line.wait_for(1, Event::HandoffFailed);
    assert_eq!(failure.field("failure"), Some("ended-late"), "{failure:?}");
    assert!(failure.text.contains("(signal: 9 (SIGKILL))"), "{}", failure.text);
    line.assert_serves();
}

/// A child of the successor holds a copy of the channel, so the channel never reports the end of
/// file.
#[test]
fn a_successors_death_in_the_bake_is_noticed_despite_a_child() {
    let line = Line::serve(&["--bake", "60s"]);
    line.put_script(r#"sleep 600 & echo $! >"$FOLDER/child"; exec "$REAL" "$@""#);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    signal(line.pid_of(2), Signal::SIGKILL);
    let failure = line.wait_for(1, Event::HandoffFailed);
    assert_eq!(failure.field("failure"), Some("ended-late"), "{failure:?}");
    line.assert_serves();
    kill_child(&line);
}

/// As in the previous test, a child of the successor holds a copy of the channel.
#[test]
fn a_successors_death_at_start_is_noticed_despite_a_child() {
    let line = Line::serve(&["--ready-timeout", "60s"]);
    line.put_script(r#"sleep 600 & echo $! >"$FOLDER/child"; exit 3"#);
    let failure = line.fail_to_hand_over_from(1);
    assert_eq!(failure.field("failure"), Some("ended-early"), "{failure:?}");
    line.assert_serves();
    kill_child(&line);
}

/// The kernel reports which process sent a message, because the message itself can claim any
/// process id.
#[test]
fn a_process_id_claimed_by_a_successor_is_not_signalled() {
    let line = Line::serve(&["--bake", "60s"]);
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let claim = format!(r"say 'VERSION=2\nKIND=ready\nPID={}\n'; say garbage", stranger.id());
    line.put_script(&claim);
    line.fail_to_hand_over_from(1);
    line.assert_serves();
    assert!(stranger.try_wait().unwrap().is_none(), "an unrelated process was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// Ends the child that a script has left behind.
fn kill_child(line: &Line) {
    let child = fs::read_to_string(line.folder().join("child")).unwrap();
    signal(child.trim().parse().unwrap(), Signal::SIGKILL);
}

#[test]
fn a_late_forked_successor_does_not_serve() {
    let line = Line::serve(&["--bake", "0", "--ready-timeout", "2s"]);
    let mut gate = Gate::new(&line);
    line.put_script(&format!("( {}; exec \"$REAL\" \"$@\" ) & wait", Gate::PASS));
    let failure = line.fail_to_hand_over_from(1);
    assert_eq!(failure.field("failure"), Some("timed-out"), "{failure:?}");
    // Wait for the wrapper first; otherwise it would reap the late successor.
    assert_eq!(exit_code(gate.wait(&line)), 128 + Signal::SIGKILL as i32);
    gate.open();
    let late = line.wait_for(2, Event::GenerationEnded).pid;
    assert_eq!(exit_code(late), 0);
    assert!(
        !line.records().iter().any(|record| record.is(2, Event::GenerationServing)),
        "{}",
        line.text()
    );
    assert_recovers(&line);
}

#[test]
fn the_exit_status_of_an_early_death_is_reported() {
    let line = Line::serve(&["--bake", "0"]);
    for (script, status) in
        [("exit 3", "(exit status: 3)"), ("kill -9 $$", "(signal: 9 (SIGKILL))")]
    {
        line.put_script(script);
        let failure = line.fail_to_hand_over_from(1);
        assert!(
            failure.text.contains(&format!("ended before it was ready {status}")),
            "{}",
            failure.text
        );
    }
    assert_recovers(&line);
}

/// The predecessor keeps the same descriptors and still hands over after ten failures.
#[test]
fn ten_failed_handoffs_leave_the_predecessor_unchanged() {
    let line = Line::serve(&["--bake", "0"]);
    let mut gate = Gate::new(&line);
    let waiting = format!("say 'VERSION=2\\nKIND=novel\\n'; {}", Gate::PASS);
    // The test looks while a successor waits at the gate and after the predecessor has received its
    // message. At that point the predecessor is idle.
    let mut descriptors = |line: &Line| {
        let mark = line.mark();
        line.put_script(&waiting);
        line.signal(1, Signal::SIGHUP);
        line.wait_since(mark, "a message", |record| record.is(1, Event::MessageUnknown));
        let open = fs::read_dir(format!("/proc/{}/fd", line.first_pid())).unwrap();
        let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
        open.sort();
        gate.open();
        line.wait_since(mark, "a failed handoff", |record| record.is(1, Event::HandoffFailed));
        open
    };
    let before = descriptors(&line);
    for _ in 0..2 {
        line.put_script("exit 1");
        line.fail_to_hand_over_from(1);
        fs::remove_file(line.program()).unwrap();
        line.fail_to_hand_over_from(1);
        line.put_script("say garbage; exec sleep infinity");
        line.fail_to_hand_over_from(1);
        line.put_script(r#"exec "$REAL" --bad-flag"#);
        line.fail_to_hand_over_from(1);
        line.put_script("kill -KILL $$");
        line.fail_to_hand_over_from(1);
    }
    assert_eq!(descriptors(&line), before);
    assert_eq!(line.count(Event::HandoffFailed), 12);
    assert_recovers(&line);
}
