use futures_util::{SinkExt, StreamExt};
use handoffd::carry::{CarriedState, Declined};
use handoffd::embed::{CarryClient, CarryOutcome};
use handoffd::listen::Stream;
use handoffd::{Builder, Error};
use servers::frames::Frames;
use tokio_tungstenite::tungstenite::{Message, protocol::Role};
use tokio_tungstenite::{WebSocketStream, accept_async};

/// Continues a websocket behind its handshake, between two messages.
async fn open(stream: Stream) -> WebSocketStream<Frames<Stream>> {
    WebSocketStream::from_raw_socket(Frames::new(stream), Role::Server, None).await
}

/// Reads the state of a connection: the number of its messages so far.
fn read(state: &CarriedState) -> Result<u64, Declined> {
    let text = std::str::from_utf8(&state.bytes).ok().filter(|_| state.format == "numbered/1");
    text.and_then(|text| text.parse().ok()).ok_or("the format is unknown".into())
}

/// Sends each message back, with its number.
async fn echo(client: CarryClient) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let CarryClient { stream, state, carry, .. } = client;
    let (stream, mut count) = match state {
        Some(state) => (stream, read(&state)?),
        None => (accept_async(stream).await?.into_inner(), 0),
    };
    let mut socket = open(stream).await;
    loop {
        let is_idle = socket.get_ref().is_between_messages();
        tokio::select! {
            permit = carry.asked(), if is_idle => {
                // Part of another message may have arrived in the meantime: move after it.
                if !socket.get_ref().is_between_messages() {
                    continue;
                }
                let state = CarriedState::new("numbered/1", count.to_string().into_bytes());
                match permit.hand_over(socket.into_inner().into_inner(), state).await {
                    CarryOutcome::Moved => return Ok(()),
                    CarryOutcome::Stayed { stream, .. } => socket = open(stream).await,
                }
            }
            message = socket.next() => match message.transpose()? {
                Some(Message::Text(text)) => {
                    count += 1;
                    socket.send(Message::text(format!("{count} {text}"))).await?;
                }
                Some(Message::Close(_)) => {
                    socket.flush().await?; // the answer to the client's close
                    return Ok(()); // a closed websocket must not move
                }
                Some(_) => socket.flush().await?, // the answer to a ping
                None => return Ok(()),
            },
            () = carry.draining() => {
                socket.close(None).await?;
                // Unread bytes would reset the connection, and the close frame could be lost.
                while let Some(Ok(_)) = socket.next().await {}
                return Ok(());
            }
        }
    }
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("ws=127.0.0.1:7001")?;
    server.serve_with(async |life| {
        let mut clients = life.acceptor("ws")?.carries(|state| read(state).map(drop));
        life.ready();
        while let Some(client) = clients.accept().await {
            tokio::spawn(echo(client));
        }
        Ok::<_, Error>(())
    })?;
    Ok(())
}
