use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use axum::{Router, extract::State, routing::get};
use futures_util::stream::{Stream, StreamExt};
use handoffd::embed::Life;
use handoffd::{Builder, Error};

async fn ticks(State(life): State<Life>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let generation = life.generation();
    let ticks = async_stream::stream! {
        loop {
            yield Ok(Event::default().data(generation.to_string()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // The stream ends between two events. An EventSource connects again by itself.
    Sse::new(ticks.take_until(life.draining()))
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let app = Router::new().route("/", get(ticks)).with_state(life.clone());
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
