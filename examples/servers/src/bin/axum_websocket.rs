use axum::extract::State;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::{Router, response::Response, routing::get};
use handoffd::embed::Life;
use handoffd::{Builder, Error};

async fn upgrade(upgrade: WebSocketUpgrade, State(life): State<Life>) -> Response {
    upgrade.on_upgrade(|socket| echo(socket, life))
}

async fn echo(mut socket: WebSocket, life: Life) {
    let mut draining = Box::pin(life.draining());
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(message)) => if socket.send(message).await.is_err() { return },
                _ => return,
            },
            // A close frame asks the client to connect again: the successor serves it then.
            () = &mut draining => {
                let _ = socket.send(axum::extract::ws::Message::Close(None)).await;
                // Unread bytes would reset the connection, and the close frame could be lost.
                while let Some(Ok(_)) = socket.recv().await {}
                return;
            }
        }
    }
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("http=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let app = Router::new().route("/", get(upgrade)).with_state(life.clone());
        handoffd::axum::serve(&life, "http", app).await
    })?;
    Ok(())
}
