use std::time::Duration;

use axum::{Router, routing::get};
use handoffd::embed::Stop;
use handoffd::{Builder, Error};

/// Works in one generation only, from its commit to its retirement.
async fn work(stop: Stop) {
    let _lock = servers::lock("worker.lock"); // nobody else holds it
    while !stop.is_requested() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(10)) => {} // a piece of work
            () = stop.requested() => {}
        }
    }
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        life.alone(work);
        let greeting = format!("generation {}\n", life.generation());
        let app = Router::new().route("/", get(|| async { greeting }));
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
