//! The recipe for axum without handoffd, to compare the two: `cargo bench --bench servers`.

use axum::{Router, routing::get};

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).expect("an address");
    let listener = tokio::net::TcpListener::bind(address).await.expect("a free address");
    let app = Router::new().route("/", get(|| async { "generation 1\n" }));
    axum::serve(listener, app).await.expect("a server");
}
