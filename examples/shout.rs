//! A custom service in place of the echo service: it replies in capital letters.
//!
//! Run `cargo run --example shout -- 127.0.0.1:7000` and connect with `nc 127.0.0.1 7000`. To
//! replace the process while you talk to it, send SIGHUP to the process id that it logs.

use std::error::Error;
use std::io::IsTerminal;
use std::time::Duration;

use handoffd::{Builder, Config, Connection, Inheritance, Next, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Shout;

impl Service for Shout {
    async fn serve(&self, connection: &mut Connection) -> std::io::Result<()> {
        let mut request = [0; 1024];
        // During a drain, a connection may end only between two requests; `next_request` then says
        // so.
        while connection.next_request().await? == Next::Read {
            let length = connection.stream.read(&mut request).await?;
            if length == 0 {
                break;
            }
            request[..length].make_ascii_uppercase();
            connection.stream.write_all(&request[..length]).await?;
        }
        Ok(())
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
    // A person at a terminal connects first and thinks about the first line afterwards.
    let patient = |config: &mut Config| config.first_request_grace = Duration::from_secs(10);
    let server = Builder::new(inheritance).listen(&address)?.configure(patient);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(server.run(Shout))?;
    Ok(())
}
