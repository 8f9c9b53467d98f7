use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;

use handoffd::embed::Tracked;
use handoffd::{Builder, Error};

/// Answers one line of the client.
fn answer(client: Tracked<TcpStream>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(&*client).read_line(&mut line)?;
    (&*client).write_all(line.to_uppercase().as_bytes())
}

fn main() -> Result<(), Error> {
    let server = Builder::from_env()?.listen("lines=127.0.0.1:7003")?;
    server.serve_with(async |life| {
        let listener = life.blocking("lines")?;
        thread::spawn(move || {
            while let Some((client, _)) = listener.accept_tcp() {
                thread::spawn(|| answer(client));
            }
        });
        life.ready();
        life.draining().await;
        Ok::<_, Error>(())
    })?;
    Ok(())
}
