//! A server with its own accept loop and zero-downtime restarts: it answers HTTP requests with its
//! process id. It shows what a server library must do; for axum, hyper and tonic, this is done
//! already (see docs/servers.md).
//!
//! Run `cargo run --example http -- 127.0.0.1:7001`, then `curl 127.0.0.1:7001`. The reply contains
//! a process id; send that process SIGHUP to replace it.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::time::Duration;

use handoffd::Builder;
use handoffd::embed::Life;
use handoffd::listen::Stream;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

fn main() -> Result<(), Box<dyn Error>> {
    // Do this first: it changes the environment, which is sound only while the process has one
    // thread.
    let server = Builder::from_env()?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    server
        .listen(&format!("http={address}"))?
        // Browsers open connections in advance; give them time to send a request.
        .configure(|config| config.first_request_grace = Duration::from_secs(10))
        .serve_with(serve)?;
    Ok(())
}

/// Accepts connections until the successor has taken over. The library then waits for the
/// connections that are still open.
async fn serve(life: Life) -> Result<(), handoffd::Error> {
    let mut acceptor = life.acceptor("http")?;
    life.ready();
    while let Some((client, _)) = acceptor.accept().await {
        tokio::spawn(answer(client, life.clone()));
    }
    Ok(())
}

/// Answers the requests of one client.
async fn answer(client: Stream, life: Life) -> io::Result<()> {
    let body = format!("generation {} process {}\n", life.generation(), std::process::id());
    let mut client = BufReader::new(client);
    let mut closing = Box::pin(life.closing());
    loop {
        tokio::select! {
            input = client.fill_buf() => if input?.is_empty() { return Ok(()) },
            // The client has not sent another request in the meantime.
            () = &mut closing => return Ok(()),
        }
        let head = read_head(&mut client).await?;
        // Tell the client to send no further requests on this connection, which ends now.
        let is_last = life.has_retired() || head.contains("connection: close");
        let connection = if is_last { "close" } else { "keep-alive" };
        let length = body.len();
        let reply = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: {connection}\r\n\r\n{body}"
        );
        client.write_all(reply.as_bytes()).await?;
        if is_last {
            return client.shutdown().await;
        }
    }
}

/// Reads a request up to the empty line, in lower case.
async fn read_head(client: &mut BufReader<Stream>) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await? == 0 || head.len() > 16_384 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head.to_ascii_lowercase())
}
