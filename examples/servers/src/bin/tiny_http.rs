use std::sync::Arc;
use std::thread;

use handoffd::Builder;
use tiny_http::{Header, Response, Server};

fn main() -> Result<(), handoffd::Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let listener = life.private_listener("http")?;
        let tiny = Server::from_listener(listener, None).map_err(|error| error.to_string())?;
        let tiny = Arc::new(tiny);
        life.ready();
        let (requests, watched) = (Arc::clone(&tiny), life.clone());
        thread::spawn(move || {
            for request in requests.incoming_requests() {
                let mut reply = Response::from_string("generation\n");
                if watched.has_retired() {
                    // The last reply on this connection.
                    reply.add_header(Header::from_bytes("Connection", "close").expect("valid"));
                }
                let _ = request.respond(reply);
            }
        });
        life.closing().await;
        tiny.unblock();
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
