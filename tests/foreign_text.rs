//! Untrusted text in the log and on the operator's terminal: one line, escaped, and of limited
//! length.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use crate::support::operator::Answered;
use crate::support::{Event, Line, Operator, REAL, Refusal};

/// Text that would clear a terminal, begin new lines and end a C string.
const HOSTILE: &str = "\u{1b}[2J\r\u{9b}\0end";
const ESCAPED: &str = "\\u{1b}[2J\\r\\u{9b}\\u{0}end";

/// The maximum length of a line in the log or on the terminal. A reason is cut at 4,000 bytes.
const LINE_MAX: usize = 5000;

fn assert_harmless(text: &str) {
    for line in text.lines() {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.len() < LINE_MAX, "{} bytes", line.len());
    }
}

fn assert_all_harmless(answered: &Answered) {
    assert_harmless(&answered.out);
    assert_harmless(&answered.err);
}

#[test]
fn a_successors_text_is_escaped_and_cut() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let long = "$(head -c 100000 /dev/zero | tr '\\0' x)";
    let hostile = r"\033[2J\r\302\233\000end";
    let all = [
        format!(r#"say "VERSION=2\nKIND=failed\nREASON={hostile} {long}\n""#),
        format!(r#"say "VERSION=2\nKIND=ready\nCLOSED={hostile}{long}\n""#),
        format!(r#"say "{hostile}{long}\n""#),
        format!(r#"say "VERSION=2\nKIND=exec-failed\nERRNO={hostile}{long}\n""#),
    ];
    for (round, said) in all.iter().enumerate() {
        line.put_script(&format!("{said}; exec sleep 1000"));
        let answered = line.asked(&["reload"]);
        assert_eq!(answered.code, 70, "{answered:?}");
        assert_all_harmless(&answered);
        line.wait_for_count(2 * round + 1, Event::HandoffFailed);
        let record = line.fail_to_hand_over_from(1);
        assert_harmless(&record.text);
        assert_all_harmless(&line.asked(&["status"]));
    }
    line.put_script(&format!(
        r#"say "VERSION=2\nKIND=failed\nREASON={hostile}\n"; exec sleep 1000"#
    ));
    line.asked(&["reload"]).names(70, &[&format!("the new process reported an error: {ESCAPED}")]);
}

/// Starts a fake daemon that sends each client one reply.
fn daemon_that_answers(path: &Path, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<()> {
    let daemon = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut client, _) = daemon.accept().unwrap();
            BufReader::new(&client).read_line(&mut String::new()).unwrap();
            let _ = client.write_all(&answer);
        }
    })
}

#[test]
fn a_daemons_status_is_escaped_and_cut() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let json = line.asked(&["status", "--json"]).well();
    let mut status: serde_json::Value = serde_json::from_str(&json).unwrap();
    status["generations"][0]["version"] = HOSTILE.into();
    status["listeners"][0]["name"] = HOSTILE.into();
    status["listeners"][0]["address"] = HOSTILE.into();
    status["last_handoff"] = serde_json::json!(
        {"unix_ms": 1, "successor": 2, "outcome": "failed", "reason": HOSTILE.repeat(10_000)}
    );
    let status = serde_json::json!({"status": status}).to_string() + "\n";
    let refused =
        serde_json::json!({"refused": {"why": "failed", "reason": HOSTILE.repeat(10_000)}})
            .to_string()
            + "\n";
    let unexpected = serde_json::json!({"refused": HOSTILE.repeat(10_000)}).to_string() + "\n";
    let answers = [
        status.as_bytes(),
        status.as_bytes(),
        refused.as_bytes(),
        unexpected.as_bytes(),
        b"\x1b[2J\x00\n",
    ];
    let path = line.folder().join("theirs");
    let daemon = daemon_that_answers(&path, answers.map(<[u8]>::to_vec).to_vec());
    let ask = |word: &[&str]| {
        let mut command = Command::new(REAL);
        command.args(word).arg("--control").arg(&path);
        Operator::start(command).wait()
    };
    let table = ask(&["status"]);
    assert!(table.out.contains(ESCAPED), "{table:?}");
    let all =
        [table, ask(&["status", "--watch"]), ask(&["reload"]), ask(&["reload"]), ask(&["reload"])];
    all.iter().for_each(assert_all_harmless);
    daemon.join().unwrap();
}

/// The test plays a daemon whose reply never ends a line and is sent as fast as the client reads.
#[test]
fn a_client_rejects_an_endless_reply() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("control");
    let daemon = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(REAL);
    command.args(["status", "--control"]).arg(&path);
    let status = Operator::start(command);
    let (mut client, _) = daemon.accept().unwrap();
    let mut taken = 0;
    while client.write_all(&[b'x'; 65_536]).is_ok() {
        taken += 65_536;
        assert!(taken < 128 << 20, "the client keeps reading");
    }
    status.wait().names(69, &["invalid answer from", "longer than 64 MiB"]);
}

#[test]
fn an_invalid_request_is_quoted_on_one_line() {
    let line = Line::serve_controlled(&[]);
    for request in
        ["{\"\\u001b[2J\\r\\n\":{}}".to_owned(), HOSTILE.to_owned(), HOSTILE.repeat(1000)]
    {
        let mut client = UnixStream::connect(line.control()).unwrap();
        client.write_all((request + "\n").as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_harmless(answer["refused"]["reason"].as_str().unwrap());
    }
}

#[test]
fn a_long_command_line_is_quoted_on_one_line_and_cut() {
    let long = "x".repeat(120_000);
    let path = "/no/such/\u{1b}[2J\r\u{9b}\n/path";
    for (arguments, code) in [
        (&["--bake", &long][..], 64),
        (&["--listen", &long], 64),
        (&["--config", &long], 78),
        (&["--config", path], 78),
        (&["status", "--control", path], 69),
        (&["reload", "--control", path], 69),
        (&["status", "--control", &long], 69),
        (&["check", "--pid-file", path], 78),
        (&["doctor", "\u{1b}[2J.service"], 71),
    ] {
        let refusal = Refusal::to(arguments);
        refusal.names(code, &[]);
        assert_harmless(&refusal.said);
    }
}
