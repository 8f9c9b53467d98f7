//! Tests of the load itself: its clients detect every way in which a server can fail.
//!
//! A test is worth only what it can find. Here an echo server alters, loses or repeats some bytes
//! of every connection, or ends the connection too early. Each client must report exactly that
//! fault.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::clients::Kind;
use crate::load::{Load, Service};
use crate::tally::{Loss, Report};

const CLIENTS: usize = 4;
/// How many bytes are echoed correctly before the fault.
const RIGHT: usize = 5_000;

/// The fault in the bytes after the first [`RIGHT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    Alter,
    Drop,
    Repeat,
    Close,
    Reset,
    /// Adds one byte at the end.
    Add,
}

/// Starts an echo with the fault. It runs as long as the returned runtime.
fn start(fault: Fault) -> (Runtime, SocketAddr) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream, fault));
        }
    });
    (runtime, address)
}

async fn echo(mut stream: TcpStream, fault: Fault) -> io::Result<()> {
    let mut buffer = vec![0; 1_000];
    let mut passed = 0;
    let mut is_wrong = false;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        let mut bytes = buffer[..count].to_vec();
        if passed >= RIGHT && !is_wrong && count > 100 {
            is_wrong = true;
            match fault {
                Fault::Nothing | Fault::Add => {}
                Fault::Alter => bytes[50] ^= 1,
                Fault::Drop => drop(bytes.drain(20..27)),
                Fault::Repeat => bytes = [&bytes[..50], &bytes[..]].concat(),
                Fault::Close => {
                    stream.shutdown().await?;
                    // Reads on, because a close with unread bytes would be a reset.
                    while stream.read(&mut buffer).await? > 0 {}
                    return Ok(());
                }
                Fault::Reset => {
                    return SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
                }
            }
        }
        stream.write_all(&bytes).await?;
        passed += count;
    }
    if fault == Fault::Add {
        stream.write_all(&[7]).await?;
    }
    stream.shutdown().await
}

/// Returns what clients of one kind report about the fault.
fn load(kind: Kind, fault: Fault) -> Report {
    let (server, address) = start(fault);
    let mut load = Load::new();
    load.add(Service::Echo, &address.to_string(), kind, CLIENTS);
    match fault {
        Fault::Nothing | Fault::Add => {
            load.settle();
            if kind == Kind::Steady {
                load.wait_for_answers(10 * CLIENTS as u64);
            }
        }
        Fault::Alter | Fault::Drop | Fault::Repeat | Fault::Close | Fault::Reset => {
            load.wait_for_losses(CLIENTS)
        }
    }
    let report = load.end();
    drop(server);
    report
}

/// Asserts that every client reports that loss once, with those words.
fn assert_met(kind: Kind, fault: Fault, loss: Loss, words: &str) {
    let report = load(kind, fault);
    let tally = report.0.values().next().unwrap();
    assert_eq!(
        (report.0.len(), tally.losses.len(), tally.lost(loss)),
        (1, 1, CLIENTS),
        "{fault:?} {report}"
    );
    assert!(report.to_string().contains(words), "{words:?}: {report}");
}

#[test]
fn clients_find_no_fault_in_a_correct_echo() {
    for kind in [Kind::Steady, Kind::Bulk, Kind::SlowReader, Kind::HalfClosed] {
        let report = load(kind, Fault::Nothing);
        report.assert_unnoticed();
        assert!(report.0.values().all(|tally| tally.verified > 0), "{report}");
    }
}

#[test]
fn clients_report_altered_lost_repeated_and_added_bytes() {
    for kind in [Kind::Steady, Kind::Bulk, Kind::SlowReader] {
        assert_met(kind, Fault::Alter, Loss::Wrong, "is not in the pattern nearby");
        assert_met(kind, Fault::Drop, Loss::Wrong, "7 are lost");
        assert_met(kind, Fault::Repeat, Loss::Wrong, "50 are repeated");
        assert_met(kind, Fault::Add, Loss::Wrong, "is not in the pattern nearby");
    }
}

#[test]
fn clients_distinguish_an_early_close_from_a_reset() {
    for kind in [Kind::Steady, Kind::Bulk] {
        assert_met(kind, Fault::Close, Loss::Closed, "the end came after");
        assert_met(kind, Fault::Reset, Loss::Reset, "reset");
    }
}
