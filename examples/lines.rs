//! A server with its own accept loop whose connections move to the new process: it answers each
//! line with its number and the process id.
//!
//! Run `cargo run --example lines -- 127.0.0.1:7000` and connect with `nc 127.0.0.1 7000`. To
//! replace the process while you talk to it, send SIGHUP to the process id in the answers. The new
//! process continues the count. A connection with an incomplete line cannot move. A client that
//! sends `stay` keeps its connection in the old process. The tests in tests/moves.rs and
//! tests/life_listeners.rs use all of this, and the files `address`, `inline`, `limit`, `refuse`,
//! `panic` and `hang`.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use handoffd::Builder;
use handoffd::carry::{CarriedState, Declined};
use handoffd::embed::{CarryClient, CarryOutcome};
use handoffd::listen::{ListenerConfig, Listeners};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The format of the carried state: the number of lines so far, as decimal text. Another encoding
/// must use another name.
const FORMAT: &str = "lines/1";

fn main() -> Result<(), Box<dyn Error>> {
    let server = Builder::from_env()?;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let address = fs::read_to_string("address").unwrap_or(address);
    // The bake time and the drain timeout, in milliseconds.
    let bake = arguments.next().map_or(Ok(10), |bake| bake.parse())?;
    let drain = arguments.next().map_or(Ok(30_000), |drain| drain.parse())?;
    // How many connections may be open at once. A successor takes the number in the file `limit`.
    let limit = fs::read_to_string("limit").ok().or_else(|| arguments.next());
    let limit: Option<NonZeroUsize> = limit.map(|limit| limit.parse()).transpose()?;
    let mut lines: ListenerConfig = format!("lines={address}").parse()?;
    lines.max_connections = limit;
    let listeners = Listeners::new(vec![lines])?;
    let server = server.configure(|config| {
        config.listeners = listeners;
        config.bake = Duration::from_millis(bake);
        config.drain_timeout = Duration::from_millis(drain);
    });
    server.serve_with(async |life| {
        // Call `carries` before `ready`: the predecessor's connections arrive soon after.
        let mut clients = life.acceptor("lines")?.carries(accepts);
        life.ready();
        while let Some(client) = clients.accept().await {
            let answered = tokio::spawn(answer(client));
            if Path::new("inline").exists() {
                // Serve one client after another.
                let _ = answered.await;
            }
        }
        Ok::<_, handoffd::Error>(())
    })?;
    Ok(())
}

/// Reads the state that the predecessor has saved.
fn read(state: &CarriedState) -> Result<u64, Declined> {
    let lines = || std::str::from_utf8(&state.bytes).ok()?.parse().ok();
    let lines = if state.format == FORMAT { lines() } else { None };
    lines.ok_or_else(|| format!("the format {} is not known here", state.format).into())
}

/// Decides whether this process takes over a connection. Without the files, the state decides.
fn accepts(state: &CarriedState) -> Result<(), Declined> {
    if Path::new("refuse").exists() {
        return Err("the file `refuse` exists".into());
    }
    assert!(!Path::new("panic").exists(), "the file `panic` exists");
    if Path::new("hang").exists() {
        let _ = File::create("arrived");
        loop {
            std::thread::park();
        }
    }
    read(state).map(drop)
}

/// Answers the lines of one client, until it closes the connection or the successor takes it over.
async fn answer(client: CarryClient) -> io::Result<()> {
    let CarryClient { mut stream, state, carry, .. } = client;
    let mut lines = state.map_or(Ok(0), |state| read(&state)).map_err(io::Error::other)?;
    let (mut line, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        tokio::select! {
            // Only a connection that is between two lines can move.
            permit = carry.asked(), if line.is_empty() => {
                let state = CarriedState::new(FORMAT, lines.to_string().into_bytes());
                match permit.hand_over(stream, state).await {
                    CarryOutcome::Moved => return Ok(()),
                    CarryOutcome::Stayed { stream: kept, .. } => stream = kept,
                }
            }
            length = stream.read(&mut buffer) => {
                let length = length?;
                if length == 0 {
                    return Ok(());
                }
                for byte in &buffer[..length] {
                    line.push(*byte);
                    if *byte == b'\n' {
                        if line == b"stay\n" {
                            carry.opt_out();
                        }
                        line.clear();
                        lines += 1;
                        let reply = format!("{lines} {}\n", std::process::id());
                        stream.write_all(reply.as_bytes()).await?;
                    }
                }
            }
            // An incomplete line still gets its answer, unless the drain deadline comes first.
            () = carry.draining(), if line.is_empty() => return Ok(()),
        }
    }
}
