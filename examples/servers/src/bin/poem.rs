use std::io;

use handoffd::embed::{Acceptor, Life};
use handoffd::listen::{Peer, Stream};
use handoffd::{Builder, Error};
use poem::http::{header::CONNECTION, uri::Scheme};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{EndpointExt, Response, Route, Server, get, handler};

#[handler]
fn hello() -> &'static str {
    "generation\n"
}

/// The connections of a listener, as poem wants them.
struct Connections(Acceptor);

impl poem::listener::Acceptor for Connections {
    type Io = Stream;

    fn local_addr(&self) -> Vec<LocalAddr> {
        Vec::new()
    }

    async fn accept(&mut self) -> io::Result<(Stream, LocalAddr, RemoteAddr, Scheme)> {
        let Some((stream, peer)) = self.0.accept().await else { std::future::pending().await };
        let peer = match peer {
            Peer::Tcp(address) => RemoteAddr(address.into()),
            _ => RemoteAddr(poem::Addr::custom("unix", "")),
        };
        Ok((stream, LocalAddr::default(), peer, Scheme::HTTP))
    }
}

/// Makes the reply the last one on its connection, once the generation has retired.
fn announce(life: &Life, mut reply: Response) -> Response {
    if life.has_retired() {
        reply.headers_mut().insert(CONNECTION, "close".parse().expect("a valid value"));
    }
    reply
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let (connections, closing) =
            (Connections(life.acceptor("http")?), life.closing_of("http")?);
        let watched = life.clone();
        let app = Route::new().at("/", get(hello)).map_to_response().after(move |reply| {
            let life = watched.clone();
            async move { reply.map(|reply| announce(&life, reply)) }
        });
        life.ready();
        Server::new_with_acceptor(connections)
            .run_with_graceful_shutdown(app, closing, None)
            .await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
