//! Fuzz targets for the parsers of data that a parent process or another generation sends. The
//! fuzzers in `fuzz/` call these functions.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::announcement::announced_channel;
use super::inheritance::{check_descriptors, ordinal};
use super::message::Message;
use super::passed::{announced, identities};
use super::payload::Hello;
use super::program::Program;
use super::variables::{LISTEN_PID, RUNTIME_DIRECTORY, TAKEN_OUT};
use crate::error::Error;
use crate::generation::Generation;
use crate::sys::env::Environment;

/// A placeholder for the value of `LISTEN_PID`. The fuzz target replaces it with the pid of the
/// fuzzer process.
const OURSELVES: &[u8] = b"self";

/// Decodes a message of the handoff protocol and returns whether its kind is known.
pub(crate) fn message(packet: &[u8]) -> bool {
    let Ok(message) = Message::decode(packet) else { return false };
    if let Message::Unrecognised { kind, .. } = message {
        let answer = Message::Unknown { kind };
        assert_eq!(Message::decode(&answer.encode()), Ok(answer));
        return false;
    }
    let again = Message::decode(&message.encode());
    match (&message, &again) {
        // Accept a reason that was cut off, because the encoder shortens a long reason.
        (Message::Failed { reason }, Ok(Message::Failed { reason: cut }))
        | (Message::Rollback { reason }, Ok(Message::Rollback { reason: cut })) => {
            assert!(reason.starts_with(cut))
        }
        _ => assert_eq!(again.as_ref(), Ok(&message)),
    }
    let counters = if let Message::Counted(counters) = message {
        *counters
    } else if let Message::Draining(report) | Message::Report(report) = message {
        report.counters
    } else {
        return true;
    };
    // Check that adding up counters does not panic. The active generation adds up the counters that
    // other generations have sent.
    let mut sum = counters.clone();
    sum.add(&counters);
    sum.settle();
    true
}

/// The values that a new process reads from its environment.
#[derive(Debug, PartialEq, Eq)]
struct BirthInput {
    count: usize,
    channel: Option<RawFd>,
    generation: Generation,
}

/// Reads environment variables from `bytes`. An empty variable ends the list, and the remaining
/// bytes are the hello message, which is a predecessor's first message. Returns the program that
/// this process would start as its successor.
pub(crate) fn birth(bytes: &[u8]) -> Option<Program> {
    let end = bytes.windows(2).position(|pair| pair == b"\0\0").unwrap_or(bytes.len());
    let environment = environment(bytes[..end].split(|byte| *byte == 0));
    let hello = match Message::decode(bytes.get(end + 2..).unwrap_or_default()) {
        Ok(Message::Hello(hello)) => hello,
        _ => Hello::default(),
    };
    read(&environment, &hello).ok()
}

fn read(environment: &Environment, hello: &Hello) -> Result<Program, Error> {
    let birth = parts(environment)?;
    if let Some(channel) = birth.channel {
        check_descriptors(hello, birth.count, channel)?;
    }
    let program = Program::of_this_process(environment)?;
    let _ = environment.kept(RUNTIME_DIRECTORY).and_then(crate::sys::env::first_folder);
    let identities = identities(environment, birth.count, hello)?;
    assert_eq!(identities.len(), birth.count);

    // Pass the channel separately, because `count` is the number of the passed sockets only.
    let (count, channel) =
        (birth.count, birth.channel.filter(|channel| *channel > 2).unwrap_or(RawFd::MAX));
    let variables = program.environment_for(birth.generation, count, channel);
    let passed_on = self::environment(variables.iter().map(|variable| variable.as_bytes()));
    assert_eq!(parts(&passed_on).ok(), Some(BirthInput { channel: Some(channel), ..birth }));
    let next = Program::of_this_process(&passed_on)?;
    assert_eq!(
        (next.notify_socket(), next.watchdog()),
        (program.notify_socket(), program.watchdog())
    );
    assert_eq!(
        next.environment_for(birth.generation, count, channel),
        variables,
        "the environment grows"
    );
    Ok(program)
}

fn parts(environment: &Environment) -> Result<BirthInput, Error> {
    let count = announced(environment)?;
    let channel = announced_channel(environment, count)?;
    Ok(BirthInput { count, channel, generation: ordinal(environment)? })
}

fn environment<'a>(variables: impl Iterator<Item = &'a [u8]>) -> Environment {
    let variables = variables.filter_map(|variable| {
        // Look for the equals sign after the first byte. As in the C library, the first byte always
        // belongs to the name, even if it is an equals sign.
        let equals = variable.iter().skip(1).position(|byte| *byte == b'=')? + 1;
        let (name, value) = (OsStr::from_bytes(&variable[..equals]), &variable[equals + 1..]);
        let is_ours = name == LISTEN_PID && value == OURSELVES;
        let value =
            if is_ours { std::process::id().to_string().into_bytes() } else { value.to_vec() };
        Some((name.to_owned(), OsString::from_vec(value)))
    });
    Environment::new(&TAKEN_OUT, variables.collect())
}

#[cfg(test)]
pub(crate) use seeds::{births, every_message, messages};

#[cfg(test)]
mod seeds {
    use super::*;
    use crate::handoff::payload::{Commit, OnSuccessorDeath, PendingReload};
    use crate::report::{
        Connections, Counters, GenerationState, Identity, ListenerCounters, Report,
        UpstreamCounters,
    };

    /// Returns one message of each kind in the handoff protocol.
    pub(crate) fn every_message() -> Vec<Message> {
        let mut counters = Counters::default();
        counters
            .listeners
            .insert("web".into(), ListenerCounters { accepted: 1, cut: 2, ..Default::default() });
        let upstreams = counters.upstreams.entry("web".into()).or_default();
        upstreams.insert("@up".into(), UpstreamCounters { connected: 3, ..Default::default() });
        let report = Report {
            generation: Generation::FIRST,
            pid: Some(42),
            identity: Identity { version: Some("one\nline".into()), ..Identity::default() },
            state: GenerationState::Retiring,
            since_unix_ms: 1,
            for_ms: Some(2),
            connections: Some(Connections { open: 1, oldest_ms: Some(5), transferred: 6 }),
            counters: counters.clone(),
            drain_left_ms: Some(2),
            programs: Vec::new(),
        };
        vec![
            Message::Hello(hello()),
            commit(PendingReload::None, OnSuccessorDeath::Resume),
            commit(PendingReload::One, OnSuccessorDeath::Resume),
            commit(PendingReload::None, OnSuccessorDeath::Stay),
            commit(PendingReload::One, OnSuccessorDeath::Stay),
            Message::Counted(Box::new(counters)),
            Message::Carry { version: 3 },
            Message::Stop,
            Message::Born,
            Message::ForkFailed { errno: 11 },
            Message::ExecFailed { errno: 2 },
            Message::Ready { closed: vec![3, 5], replaced: vec![5] },
            Message::Failed { reason: "a=b is wrong".into() },
            Message::Rollback { reason: String::new() },
            Message::RolledBack,
            Message::Rollback { reason: "the cache is broken".to_owned() },
            Message::Extend { milliseconds: 1500 },
            Message::Offer { format: "sessions/1".to_owned() },
            Message::Stopping,
            Message::GivenUp { sockets: vec![u64::MAX, 1] },
            Message::Cut,
            Message::Active { pid: 42 },
            Message::Ask,
            Message::Draining(Box::new(report.clone())),
            Message::Report(Box::new(report)),
            Message::File,
            Message::Unknown { kind: "novel".into() },
        ]
    }

    fn commit(pending: PendingReload, on_death: OnSuccessorDeath) -> Message {
        Message::Committed(Commit { pending, on_death })
    }

    fn hello() -> Hello {
        Hello {
            bound: vec![
                (0, "127.0.0.1:0".parse().unwrap()),
                (2, "8:42 /run/a b.sock".parse().unwrap()),
            ],
            draining: vec![(Generation::FIRST, 7), (Generation::FIRST.next(), 8)],
            init: Some(9),
            forecast: [("web".into(), 3), ("admin".into(), 0)].into_iter().collect(),
            names: vec!["web".into(), "admin".into(), "files".into()],
        }
    }

    /// Returns the messages of `every_message` as packets. Each packet has a name made of its
    /// number and its message kind.
    pub(crate) fn messages() -> Vec<(String, Vec<u8>)> {
        let named = |(number, message): (usize, Message)| {
            let packet = message.encode();
            let kind = packet.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
            (format!("{number:02}-{}", String::from_utf8_lossy(&kind[5..])), packet)
        };
        every_message().into_iter().enumerate().map(named).collect()
    }

    /// Returns three environments: of a first generation under systemd, of a successor, and of a
    /// process that inherits nothing. The first environment includes a socket from systemd's file
    /// descriptor store.
    pub(crate) fn births() -> Vec<(String, Vec<u8>)> {
        let first = "PATH=/bin\0LISTEN_FDS=2\0LISTEN_FDNAMES=web:admin=8%3A42%20/run/admin.sock\0LISTEN_PID=self\0\
            RUNTIME_DIRECTORY=/run/a:/run/b\0NOTIFY_SOCKET=/run/systemd/notify\0WATCHDOG_USEC=3000000\0";
        let environment = environment(first.as_bytes().split(|byte| *byte == 0));
        let program = Program::of_this_process(&environment).unwrap();
        let passed_on = program.environment_for(Generation::FIRST.next(), 3, 10);
        let mut successor: Vec<u8> =
            passed_on.iter().flat_map(|variable| variable.as_bytes_with_nul()).copied().collect();
        successor.push(0);
        successor.extend(Message::Hello(hello()).encode());
        vec![
            ("first".to_owned(), first.into()),
            ("successor".to_owned(), successor),
            ("alone".to_owned(), b"A=b\0".into()),
        ]
    }
}
