//! Tests of other programs behind the proxy: sessions of the PostgreSQL and OpenSSH clients do not
//! notice a handoff.
//!
//! A lost, repeated or altered byte ends an SSH session by its checksums and a database session by
//! its protocol. Each handoff happens while the session is at work. A statement waits for a lock, a
//! result has not been read, or requests follow each other until the handoff is over.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::generations::{Generations, since};
use crate::pattern::Pattern;
use crate::servers::{Postgres, Sshd};
use crate::support::{DEADLINE, Event, Record, assert_becomes};
use crate::talk::Talk;

const HANDOFFS: u64 = 20;

#[test]
fn a_busy_database_session_survives_twenty_handoffs() {
    const WHO: &str = "select pg_backend_pid(), pg_current_xact_id(), pg_my_temp_schema();\n";
    const EACH: u64 = HANDOFFS / 4;
    let start = Instant::now();
    let server = Postgres::start();
    let mut line =
        Generations::carrying(&["proxy", "--listen", "127.0.0.1:0", "--to", &server.socket()]);
    let mut bystander = server.direct_session();
    let mut session = server.session(&line.line.address());
    session.ask("create table kept (number bigint, text text);\nselect 'made';\n", "made\n");
    session
        .ask("begin;\ncreate temporary table noted (number bigint);\nselect 'begun';\n", "begun\n");
    session.mouth.say(WHO.as_bytes());
    let who = session.ear.line();
    let backend = who.split('|').next().unwrap();

    for number in 0..EACH {
        a_statement_waits(&mut line, &mut session, &mut bystander, backend, number);
    }
    a_result_is_on_its_way(&mut line, &mut session, EACH);
    let mut noted = 0;
    for _ in 0..EACH {
        noted = rows_are_counted_one_by_one(&mut line, &mut session, noted);
    }
    let kept = rows_are_on_their_way(&mut line, &mut session, EACH);
    println!("{noted} questions, {kept} rows up");

    session.ask(WHO, &who);
    session.ask(
        "select count(*), sum(number) from noted;\n",
        &format!("{noted}|{}\n", noted * (noted + 1) / 2),
    );
    // No other session has seen any of the rows so far.
    bystander.ask("select count(*) from kept;\n", "0\n");
    session.ask("commit;\nselect 'committed';\n", "committed\n");
    let texts: u64 = (1..=kept)
        .map(|number| row(number).len() as u64 - number.to_string().len() as u64 - 2)
        .sum();
    bystander.ask(
        "select count(*), count(distinct number), sum(number), sum(length(text)) from kept;\n",
        &format!("{kept}|{kept}|{}|{texts}\n", kept * (kept + 1) / 2),
    );
    session.finish();
    bystander.finish();
    let took = line.took();
    assert_carried(&line.stop(), 1);
    server.stop();
    println!("{:?}; {took}", since(start));
}

#[test]
fn a_busy_ssh_session_survives_twenty_handoffs() {
    let start = Instant::now();
    let server = Sshd::start();
    let mut line =
        Generations::carrying(&["proxy", "--listen", "127.0.0.1:0", "--to", &server.address]);
    let address = line.line.address();
    // The command runs at a terminal on the server with its echo switched off.
    let squares = "stty -echo -onlcr; echo ready; while read -r n; do echo $((n * n)); done";
    let mut typist = server.session(&address, &["-tt"], squares);
    let mut stream = server.session(&address, &["-T"], "cat");
    let mut files = server.files(&address);
    typist.ear.hear(b"ready\n");
    copy(&server, &mut files, 0);

    let (is_over, echoed) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mouth, ear) = (&mut stream.mouth, &mut stream.ear);
    let (typed, sent, copies) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let _fallen = Over(&is_over);
            let mut sent = 0;
            let mut piece = vec![0; 32 * 1024];
            while !is_over.load(Ordering::Relaxed) {
                PATTERN.fill(sent, &mut piece);
                mouth.say(&piece);
                sent += piece.len() as u64;
            }
            mouth.close();
            sent
        });
        scope.spawn(|| {
            let _fallen = Over(&is_over);
            let mut piece = vec![0; 32 * 1024];
            while let length @ 1.. = ear.some(&mut piece) {
                PATTERN.check(echoed.load(Ordering::Relaxed), &piece[..length]).unwrap();
                echoed.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let copier = scope.spawn(|| {
            let _fallen = Over(&is_over);
            let copies = (1..).find(|number| {
                copy(&server, &mut files, *number);
                is_over.load(Ordering::Relaxed)
            });
            copies.unwrap()
        });
        let over = Over(&is_over);
        let mut typed = 0;
        for _ in 0..HANDOFFS {
            hand_over_during(&mut line, || {
                typed += 1;
                typist.ask(&format!("{typed}\n"), &format!("{}\n", typed * typed));
            });
            // Each generation relays a part of the bytes.
            let due = echoed.load(Ordering::Relaxed) + 256 * 1024;
            assert_becomes(&true, || {
                echoed.load(Ordering::Relaxed) >= due || is_over.load(Ordering::Relaxed)
            });
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        drop(over);
        (typed, sender.join().unwrap(), copier.join().unwrap())
    });
    assert_eq!((line.generation, echoed.into_inner()), (HANDOFFS + 1, sent));
    println!("{typed} lines typed, {sent} bytes there and back, {copies} files there and back");
    typist.mouth.say(b"\x04"); // Ctrl-D, the end of input at a terminal
    for session in [typist, stream, files] {
        session.finish();
    }
    let took = line.took();
    assert_carried(&line.stop(), 3);
    server.stop();
    println!("{:?}; {took}", since(start));
}

/// The bytes that the SSH sessions send and receive.
const PATTERN: Pattern = Pattern::of(7);

/// Hands over while a statement waits for a lock that another session holds.
fn a_statement_waits(
    line: &mut Generations,
    session: &mut Talk,
    bystander: &mut Talk,
    backend: &str,
    lock: u64,
) {
    bystander.ask(&format!("select 'held' from pg_advisory_lock({lock});\n"), "held\n");
    session.mouth.say(format!("select 'waited' from pg_advisory_xact_lock({lock});\n").as_bytes());
    let question =
        format!("select wait_event_type = 'Lock' from pg_stat_activity where pid = {backend};\n");
    let mut answer = String::new();
    let until = Instant::now() + DEADLINE;
    while answer != "t\n" {
        assert!(Instant::now() < until, "the statement does not wait");
        bystander.mouth.say(question.as_bytes());
        answer = bystander.ear.line();
    }
    line.hand_over();
    bystander.ask(&format!("select pg_advisory_unlock({lock});\n"), "t\n");
    session.ear.hear(b"waited\n");
}

/// Hands over while a large result is read. In each handoff so little is read that more is left
/// than any queue holds.
fn a_result_is_on_its_way(line: &mut Generations, session: &mut Talk, handoffs: u64) {
    const PART: u64 = 30_000;
    const REST: u64 = 200_000;
    let count = PART * handoffs + REST;
    let what = "n, repeat(chr(97 + (n % 26)::int), (n % 200)::int)";
    session.mouth.say(
        format!("copy (select {what} from generate_series(1::bigint, {count}) n) to stdout;\n")
            .as_bytes(),
    );
    let mut hear = |rows: &mut dyn Iterator<Item = u64>| {
        session.ear.hear(rows.map(row).collect::<String>().as_bytes())
    };
    for part in 0..handoffs {
        let mut rows = PART * part + 1..=PART * (part + 1);
        hand_over_during(line, || hear(&mut rows.by_ref().take(1_000)));
        // The rest of the part comes through the next generation.
        hear(&mut rows);
    }
    hear(&mut (PART * handoffs + 1..=count));
}

/// Inserts rows during a handoff, and counts all rows after each. Returns how many there are.
fn rows_are_counted_one_by_one(line: &mut Generations, session: &mut Talk, mut noted: u64) -> u64 {
    hand_over_during(line, || {
        noted += 1;
        session.ask(
            &format!(
                "insert into noted values ({noted});\nselect count(*), sum(number) from noted;\n"
            ),
            &format!("{noted}|{}\n", noted * (noted + 1) / 2),
        );
    });
    noted
}

/// Hands over while one statement copies rows into a table. Returns how many rows it copied.
fn rows_are_on_their_way(line: &mut Generations, session: &mut Talk, handoffs: u64) -> u64 {
    let mut kept = 0;
    session.mouth.say(b"copy kept from stdin;\n");
    for _ in 0..handoffs {
        hand_over_during(line, || {
            let text: String = (kept + 1..=kept + 1_000).map(row).collect();
            session.mouth.say(text.as_bytes());
            kept += 1_000;
        });
    }
    session.ask("\\.\nselect count(*) from kept;\n", &format!("{kept}\n"));
    kept
}

/// Returns a row as COPY transfers it.
fn row(number: u64) -> String {
    let letter = char::from(b'a' + u8::try_from(number % 26).unwrap());
    format!("{number}\t{}\n", String::from(letter).repeat(usize::try_from(number % 200).unwrap()))
}

/// Copies a file to the server and back, and compares both copies.
fn copy(server: &Sshd, files: &mut Talk, number: u64) {
    let mut bytes = vec![0; 4 * 1024 * 1024];
    Pattern::of(number).fill(0, &mut bytes);
    let (from, there, back) = (server.here("from"), server.at_home("there"), server.here("back"));
    fs::write(&from, &bytes).unwrap();
    let put = format!("put {} {}\n", from.display(), there.display());
    let get = format!("get {} {}\n", there.display(), back.display());
    // sftp prints each command that it reads from a pipe.
    let told = format!("{put}{get}!echo {number}\n");
    let repeated: String = told.lines().map(|line| format!("sftp> {line}\n")).collect();
    files.ask(&told, &format!("{repeated}{number}\n"));
    for copy in [there, back] {
        assert!(fs::read(&copy).unwrap() == bytes, "copy {number} differs: {}", copy.display());
        fs::remove_file(copy).unwrap();
    }
}

/// Hands over while `work` runs: repeatedly until the handoff is over, and once more.
fn hand_over_during(line: &mut Generations, mut work: impl FnMut()) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = Over(&is_over);
            line.hand_over();
        });
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    });
    work();
}

/// Sets the flag when dropped, also after a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asserts that each old generation carried `connections`, and that none ended or was cut.
fn assert_carried(records: &[Record], connections: u64) {
    let ended = records.iter().filter(|record| record.is_event(Event::GenerationEnded));
    let fields = |record: &Record| {
        ["carried", "cut"].map(|name| record.field(name).unwrap().parse::<u64>().unwrap())
    };
    let all: Vec<_> = ended.map(fields).collect();
    let olds = usize::try_from(HANDOFFS).unwrap();
    assert_eq!(all, [vec![[connections, 0]; olds], vec![[0, 0]]].concat());
}
