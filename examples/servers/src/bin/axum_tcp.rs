use axum::{Router, routing::get};
use handoffd::{Builder, Error};

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let greeting = format!("generation {}\n", life.generation());
        let app = Router::new().route("/", get(|| async { greeting }));
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
