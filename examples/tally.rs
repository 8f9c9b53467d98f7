//! Serves a protocol of one's own that has a state, and takes each connection along when it is
//! replaced: every line is answered by its number.
//!
//! Try it: `cargo run --example tally -- 127.0.0.1:7000`, talk to it with `nc 127.0.0.1 7000`, and
//! replace it while you do, with `kill -HUP` and the process id that it logs: the new process
//! counts on. Who says `stay` is not taken along.

use std::error::Error;
use std::io::IsTerminal;

use handoffd::{Config, Connection, Inheritance, Listeners, Next, OnHandoff, Parcel, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Tally;

/// What is said of a connection to the next process: how many lines there were, as a number.
/// Whoever says it in another way calls that by another name.
const FORMAT: &str = "tally/1";

fn read(parcel: &Parcel) -> Result<u64, String> {
    let lines = || std::str::from_utf8(&parcel.bytes).ok()?.parse().ok();
    let lines = if parcel.format == FORMAT { lines() } else { None };
    lines.ok_or_else(|| {
        format!("{} of {} bytes is not known here", parcel.format, parcel.bytes.len())
    })
}

impl Service for Tally {
    async fn serve(&self, connection: &mut Connection) -> std::io::Result<()> {
        // Where the last process was.
        let taken_up = connection.taken_up();
        let mut lines =
            taken_up.map_or(Ok(0), |parcel| read(&parcel)).map_err(std::io::Error::other)?;
        let mut request = [0; 1024];
        loop {
            match connection.next_request().await? {
                Next::Read => {
                    let length = connection.stream.read(&mut request).await?;
                    if length == 0 {
                        return Ok(());
                    }
                    if &request[..length] == b"stay\n" {
                        // What a service does that begins to speak TLS on a connection: from now on
                        // it cannot be taken along.
                        connection.decline();
                    }
                    // The beginning of a line needs no answer: it is part of the next one.
                    for _ in request[..length].iter().filter(|byte| **byte == b'\n') {
                        lines += 1;
                        connection.stream.write_all(format!("{lines}\n").as_bytes()).await?;
                    }
                }
                Next::End => return Ok(()),
                Next::Carry => {
                    connection.give_up(Parcel::new(FORMAT, lines.to_string().into_bytes()));
                    return Ok(());
                }
            }
        }
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    /// Asked before anything of the connection is touched. One that is refused is drained by the
    /// process that has it.
    fn accepts(&self, _listener: &str, parcel: &Parcel) -> Result<(), String> {
        read(parcel).map(drop)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: it changes the environment, which is sound only while there is one thread.
    let inheritance = Inheritance::take()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let config = Config {
        listeners: Listeners::exactly(vec![address.parse()?])?,
        on_handoff: OnHandoff::Carry,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(handoffd::run(config, inheritance, Tally))?;
    Ok(())
}
