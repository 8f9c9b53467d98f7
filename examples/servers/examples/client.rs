//! The clients of the tests: they put a server under load until standard input ends, and print what
//! became of their requests.
//!
//! `client tls|websocket|moving|sse|unary|streaming ADDRESS`

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{SinkExt, StreamExt};
use servers::Name;
use servers::greeter::greeter_client::GreeterClient;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

type Failure = Box<dyn std::error::Error>;

const CLIENTS: usize = 4;
const MOVING_CLIENTS: usize = 100;
const REUSE: usize = 20;

static STOP: AtomicBool = AtomicBool::new(false);

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (kind, address) = (arguments.next().unwrap(), arguments.next().unwrap());
    std::thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        STOP.store(true, Ordering::Relaxed);
    });
    let count = if kind == "moving" { MOVING_CLIENTS } else { CLIENTS };
    let clients = (0..count).map(|_| client(&kind, &address));
    let (mut served, mut failed) = (0, 0);
    for (one, broken) in futures_util::future::join_all(clients).await {
        served += one;
        failed += broken;
    }
    println!("served={served} failed={failed}");
}

/// Runs one client, and returns how many exchanges succeeded and how many failed.
async fn client(kind: &str, address: &str) -> (usize, usize) {
    let (mut served, mut failed) = (0, 0);
    while !stopped() {
        let ended = match kind {
            "tls" => tls(address, &mut served).await,
            "websocket" => websocket(address, &mut served).await,
            "moving" => moving(address, &mut served).await,
            "sse" => events(address, &mut served).await,
            "unary" => unary(address, &mut served).await,
            "streaming" => streaming(address, &mut served).await,
            other => panic!("{other} is unknown"),
        };
        if let Err(error) = ended {
            failed += 1;
            eprintln!("{kind}: {error}");
        }
    }
    (served, failed)
}

/// Sends up to `REUSE` requests on one TLS connection.
async fn tls(address: &str, served: &mut usize) -> Result<(), Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file("certificate.pem")?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let mut stream = BufReader::new(stream);
    for _ in 0..REUSE {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        stream.flush().await?;
        let (mut length, mut is_last, mut line) = (0, false, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Err("no reply".into());
            }
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
            is_last |= header == "connection: close";
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        *served += 1;
        if is_last {
            break;
        }
    }
    Ok(())
}

/// Sends messages until the server closes the websocket in the orderly way.
async fn websocket(address: &str, served: &mut usize) -> Result<(), Failure> {
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/")).await?;
    while !stopped() {
        let sent = socket.send(Message::text("hello")).await;
        match socket.next().await {
            Some(Ok(Message::Text(_))) => *served += 1,
            Some(Ok(Message::Close(_))) => return Ok(()),
            other => return Err(format!("{other:?} after {sent:?}").into()),
        }
    }
    Ok(())
}

/// Sends messages on one websocket until the end, which only the client may bring about. The server
/// numbers the messages, so none is lost or repeated.
async fn moving(address: &str, served: &mut usize) -> Result<(), Failure> {
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/")).await?;
    let mut count = 0;
    while !stopped() {
        // Several messages at a time: a long one, one in two frames around a ping, and a short one.
        let texts = ["long ".repeat(count % 7 * 5000), "two frames".to_owned(), "short".to_owned()];
        socket.feed(Message::text(texts[0].as_str())).await?;
        for (part, code, is_last) in [("two ", Data::Text, false), ("frames", Data::Continue, true)]
        {
            let frame = Frame::message(part.as_bytes().to_vec(), OpCode::Data(code), is_last);
            socket.send(Message::Frame(frame)).await?;
            if !is_last {
                socket.send(Message::Ping("well?".into())).await?;
            }
        }
        socket.send(Message::text(texts[2].as_str())).await?;
        let mut pongs = 0;
        for text in texts {
            count += 1;
            let reply = loop {
                match socket.next().await {
                    Some(Ok(Message::Pong(_))) => pongs += 1,
                    other => break other,
                }
            };
            match reply {
                Some(Ok(Message::Text(reply))) if reply == format!("{count} {text}") => {}
                other => return Err(format!("{other:?} instead of reply {count}").into()),
            }
            *served += 1;
        }
        if pongs != 1 {
            return Err(format!("{pongs} pongs for one ping").into());
        }
    }
    socket.close(None).await?;
    match socket.next().await {
        Some(Ok(Message::Close(_))) => Ok(()),
        other => Err(format!("{other:?} instead of the end").into()),
    }
}

/// Reads events until the server ends the stream with the last chunk.
async fn events(address: &str, served: &mut usize) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut stream = BufReader::new(stream);
    let mut last = String::new();
    while !stopped() {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(format!("cut after {last:?}").into());
        }
        if line == "0\r\n" {
            return Ok(());
        }
        *served += usize::from(line.starts_with("data:"));
        last = line;
    }
    Ok(())
}

/// Sends requests on one HTTP/2 connection, as long as it lives. The client library connects again
/// by itself.
async fn unary(address: &str, served: &mut usize) -> Result<(), Failure> {
    let mut client = GreeterClient::connect(format!("http://{address}")).await?;
    while !stopped() {
        client.greet(Name { name: "you".to_owned() }).await?;
        *served += 1;
    }
    Ok(())
}

/// Reads messages until the server ends the stream with the status OK.
async fn streaming(address: &str, served: &mut usize) -> Result<(), Failure> {
    let mut client = GreeterClient::connect(format!("http://{address}")).await?;
    while !stopped() {
        let mut greetings = client.greet_often(Name { name: "you".to_owned() }).await?.into_inner();
        while !stopped() && greetings.message().await?.is_some() {
            *served += 1;
        }
    }
    Ok(())
}
