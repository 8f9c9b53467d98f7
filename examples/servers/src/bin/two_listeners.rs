use axum::{Router, routing::get};
use handoffd::{Builder, Error};

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?
        .listen("http=127.0.0.1:7001")?
        .listen("admin=127.0.0.1:7009")?
        // The health check answers until the last client of `http` is served.
        .last("admin");
    server.serve_with(async |life| {
        let greeting = format!("generation {}\n", life.generation());
        let app = Router::new().route("/", get(|| async { greeting }));
        let admin = Router::new().route("/health", get(|| async { "well\n" }));
        tokio::try_join!(
            handoffd::axum::serve(&life, "http", app),
            handoffd::axum::serve(&life, "admin", admin),
        )
    })?;
    Ok(())
}
