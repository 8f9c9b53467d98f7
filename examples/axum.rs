//! An axum server with zero-downtime restarts. Any server with an accept loop can be run this way.
//!
//! Run `cargo run --example axum -- 127.0.0.1:7001`, then `curl 127.0.0.1:7001`. The reply contains
//! a process id; send that process SIGHUP to replace it.

use std::error::Error;
use std::io::IsTerminal;
use std::time::Duration;

use axum::Router;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use handoffd::embed::{Acceptor, AfterDrain, Retirement};
use handoffd::listen::{Peer, Stream};
use handoffd::{Builder, Config, Inheritance};

/// How long a keep-alive connection may wait for its next request after the successor has taken
/// over.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    // Do this first: it changes the environment, which is sound only while the process has one
    // thread.
    let inheritance = Inheritance::take()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    // Browsers open connections in advance; give them time to send a request.
    let patient = |config: &mut Config| config.first_request_grace = Duration::from_secs(10);
    let server = Builder::new(inheritance).listen(&format!("http={address}"))?.configure(patient);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(server))
}

async fn serve(server: Builder) -> Result<(), Box<dyn Error>> {
    let starting = server.start()?;
    let whoami = format!("generation {} process {}\n", starting.generation(), std::process::id());
    let app = Router::new().route("/", get(move || async { whoami }));
    let mut serving = starting.ready()?;
    loop {
        // The server stops accepting as soon as the successor has taken over. Each reply from then
        // on closes its connection. Connections without a request are closed after `KEEP_ALIVE`.
        let listener = UntilRetired(serving.acceptor("http")?);
        let retirement = serving.retirement();
        let app = app.clone().layer(map_response(move |reply| announce(retirement.clone(), reply)));
        let server = axum::serve(listener, app).with_graceful_shutdown(serving.closing(KEEP_ALIVE));
        tokio::select! {
            ended = server => ended?,
            // At the drain deadline, the remaining connections are cut when the server is dropped.
            () = serving.cut() => {}
        }
        match serving.drained().await? {
            AfterDrain::Exit => return Ok(()),
            // The successor died before our last connection ended, so we are the active generation
            // again.
            AfterDrain::AcceptAgain(again) => serving = again,
        }
    }
}

/// Tells the client to send no further requests on this connection. Hyper closes it after the
/// reply.
async fn announce(retirement: Retirement, mut reply: Response) -> Response {
    if retirement.has_begun() {
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}

/// Adapts an `Acceptor` to the listener trait of axum.
struct UntilRetired(Acceptor);

impl axum::serve::Listener for UntilRetired {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match self.0.accept().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Peer> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
