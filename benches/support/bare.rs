//! The server beside which the daemon is measured: the shortest echo server that tokio allows, in
//! its own process.
//!
//! It has the daemon's runtime: multi-threaded, with a worker for each core. The accept loop is
//! spawned like the daemon's, which is faster than running it in `block_on`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::itself::{Itself, is_asked_to_be, say_where};

/// The argument that makes a bench run as the bare server.
const ARGUMENT: &str = "bare-echo";

/// Starts the bare server.
pub(crate) fn start() -> Itself {
    Itself::start(ARGUMENT)
}

/// Serves if this process was started as the bare server, and then never returns.
pub(crate) fn serve_if_asked() {
    if !is_asked_to_be(ARGUMENT) {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        say_where(listener.local_addr().expect("read the address"));
        tokio::spawn(accept(listener)).await.expect("run the accept loop");
    });
}

async fn accept(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        });
    }
}
