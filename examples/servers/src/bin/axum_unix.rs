use axum::extract::ConnectInfo;
use axum::{Router, routing::get};
use handoffd::{Builder, Error, listen::Peer};

async fn greet(ConnectInfo(client): ConnectInfo<Peer>) -> String {
    format!("hello, {client}\n")
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=/run/app/http.sock")?;
    server.serve_with(async |life| {
        let app = Router::new().route("/", get(greet));
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
