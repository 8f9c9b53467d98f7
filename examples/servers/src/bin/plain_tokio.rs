use handoffd::listen::Stream;
use handoffd::{Builder, Error};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Answers one line of the client.
async fn answer(client: Stream) -> std::io::Result<()> {
    let (mut client, mut line) = (BufReader::new(client), String::new());
    client.read_line(&mut line).await?;
    client.write_all(line.to_uppercase().as_bytes()).await
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("lines=127.0.0.1:7003")?;
    server.serve_with(async |life| {
        let mut acceptor = life.acceptor("lines")?;
        life.ready();
        while let Some((client, _)) = acceptor.accept().await {
            tokio::spawn(answer(client));
        }
        Ok::<_, Error>(())
    })?;
    Ok(())
}
