//! The recipe for axum, on the address that is given: `cargo bench --bench servers`.

use axum::{Router, routing::get};
use handoffd::{Builder, Error};

fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).expect("an address");
    let server = Builder::from_env()?.listen(&format!("http={address}"))?;
    server.serve_with(async |life| {
        let app = Router::new().route("/", get(|| async { "generation 1\n" }));
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
