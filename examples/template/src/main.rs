//! A server that is replaced without losing a request: change `app`, build, and reload.

use axum::Router;
use axum::routing::get;
use handoffd::embed::Life;
use handoffd::{Builder, Error};

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    server.serve_with(async |life| handoffd::axum::serve(&life, "http", app(&life)).await)?;
    Ok(())
}

fn app(life: &Life) -> Router {
    let greeting = format!("hello from generation {}\n", life.generation());
    Router::new().route("/", get(|| async { greeting }))
}
