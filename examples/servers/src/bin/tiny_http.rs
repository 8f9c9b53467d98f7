use std::thread;

use handoffd::Builder;
use tiny_http::{Response, Server};

fn main() -> Result<(), handoffd::Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let listener = life.private_listener("http")?;
        let tiny = Server::from_listener(listener, None).map_err(|error| error.to_string())?;
        thread::spawn(move || {
            for request in tiny.incoming_requests() {
                let _ = request.respond(Response::from_string("generation\n"));
            }
        });
        life.ready();
        // The library waits for the connections, which the thread serves until they end.
        life.draining().await;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(())
}
