//! Serves a service of one's own in place of the echo: it answers in capitals.
//!
//! Try it: `cargo run --example shout -- 127.0.0.1:7000`, talk to it with `nc 127.0.0.1 7000`, and
//! replace it while you do, with `kill -HUP` and the process id that it logs.

use std::error::Error;
use std::io::IsTerminal;
use std::time::Duration;

use handoffd::{Config, Connection, Inheritance, Listeners, Next, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Shout;

impl Service for Shout {
    async fn serve(&self, connection: &mut Connection) -> std::io::Result<()> {
        let mut request = [0; 1024];
        // Between two requests is where a connection may end; in a drain `next_request` says so.
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
    // First of all: it changes the environment, which is sound only while there is one thread.
    let inheritance = Inheritance::take()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let config = Config {
        listeners: Listeners::exactly(vec![address.parse()?])?,
        // A person at a terminal opens a connection and then begins to think.
        first_request_grace: Duration::from_secs(10),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(handoffd::run(config, inheritance, Shout))?;
    Ok(())
}
