//! A custom stateful service whose connections move to the new process: it answers each line with
//! its number.
//!
//! Run `cargo run --example tally -- 127.0.0.1:7000` and connect with `nc 127.0.0.1 7000`. To
//! replace the process while you talk to it, send SIGHUP to the process id that it logs. The new
//! process continues the count. A client that sends `stay` keeps its connection in the old process.

use std::error::Error;
use std::io::IsTerminal;

use handoffd::carry::{CarriedState, Declined};
use handoffd::{Builder, Connection, Inheritance, Next, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Tally;

/// The format of the carried state: the number of lines so far, as decimal text. A different
/// encoding must use a different name.
const FORMAT: &str = "tally/1";

fn read(saved_state: &CarriedState) -> Result<u64, Declined> {
    let lines = || std::str::from_utf8(&saved_state.bytes).ok()?.parse().ok();
    let lines = if saved_state.format == FORMAT { lines() } else { None };
    lines.ok_or_else(|| {
        format!("{} of {} bytes is not known here", saved_state.format, saved_state.bytes.len())
            .into()
    })
}

impl Service for Tally {
    async fn serve(&self, connection: &mut Connection) -> std::io::Result<()> {
        // Continue where the previous process stopped.
        let taken_up = connection.resumed_state();
        let mut lines = taken_up
            .map_or(Ok(0), |saved_state| read(&saved_state))
            .map_err(std::io::Error::other)?;
        let mut request = [0; 1024];
        loop {
            match connection.next_request().await? {
                Next::Read => {
                    let length = connection.stream.read(&mut request).await?;
                    if length == 0 {
                        return Ok(());
                    }
                    if &request[..length] == b"stay\n" {
                        // A service that starts TLS on a connection would do the same, because such
                        // a connection cannot be carried.
                        connection.opt_out();
                    }
                    // An incomplete line gets no answer until its end arrives.
                    for _ in request[..length].iter().filter(|byte| **byte == b'\n') {
                        lines += 1;
                        connection.stream.write_all(format!("{lines}\n").as_bytes()).await?;
                    }
                }
                Next::End => return Ok(()),
                Next::Carry => {
                    connection.detach(CarriedState::new(FORMAT, lines.to_string().into_bytes()));
                    return Ok(());
                }
            }
        }
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    /// Called before the connection is touched. If this refuses it, the old process keeps the
    /// connection and drains it.
    fn accepts(&self, _listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        read(saved_state).map(drop)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Do this first: it changes the environment, which is sound only while the process has one
    // thread.
    let inheritance = Inheritance::take()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let server = Builder::new(inheritance).listen(&address)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(server.run(Tally))?;
    Ok(())
}
