//! Is what the daemon is measured beside: the shortest echo server that tokio allows, in a process of its own.
//!
//! The bench executes itself with [`ARGUMENT`]. The runtime is the daemon's: multi-threaded, a worker for each core.
//! The accept loop is spawned as the daemon's is, which is faster than running it in `block_on`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The argument by which a bench learns that it is to be the bare server.
const ARGUMENT: &str = "bare-echo";

/// The bare server, until it is dropped.
pub(crate) struct Bare {
    child: Child,
    address: SocketAddr,
}

impl Bare {
    /// Starts it and waits until it listens.
    pub(crate) fn start() -> Self {
        let program = std::env::current_exe().expect("our own path");
        let mut command = Command::new(program);
        let mut child =
            command.arg(ARGUMENT).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start the bare server");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its standard output");
        BufReader::new(stdout).read_line(&mut line).expect("hear where it listens");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves, if this process was started to: then it never returns.
pub(crate) fn serve_if_asked() {
    if std::env::args().nth(1).as_deref() != Some(ARGUMENT) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        writeln!(std::io::stdout(), "{address}").expect("say where");
        tokio::spawn(accept(listener)).await.expect("the accept loop");
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
