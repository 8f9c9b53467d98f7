//! Zero-downtime restarts for Linux servers.
//!
//! A process takes its listening sockets from systemd, from another parent or from its predecessor.
//! On SIGHUP it starts the binary that is now at its own path, usually a new version. It passes the
//! listening sockets to the new process. Then it moves its live connections to the new process, and
//! gives the other connections time to end. Clients notice nothing. If the new process fails, the
//! old process keeps serving without interruption.
//!
//! # Your own service
//!
//! ```no_run
//! use handoffd::{Builder, Connection, Inheritance, Next, Service};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! struct Shout;
//!
//! impl Service for Shout {
//!     async fn serve(&self, connection: &mut Connection) -> std::io::Result<()> {
//!         let mut request = [0; 1024];
//!         while connection.next_request().await? == Next::Read {
//!             let length = connection.stream.read(&mut request).await?;
//!             if length == 0 {
//!                 break;
//!             }
//!             request[..length].make_ascii_uppercase();
//!             connection.stream.write_all(&request[..length]).await?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let inheritance = Inheritance::take()?; // comes first: it changes the environment
//!     let server = Builder::new(inheritance).listen("127.0.0.1:7000")?;
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(server.run(Shout))?;
//!     Ok(())
//! }
//! ```
//!
//! # Your own server
//!
//! [`Builder::serve_with`] runs a server that accepts connections itself. It calls your function
//! with a [`Life`](embed::Life), which tells the server when to stop accepting, when to end its
//! connections, and when to drop them. The features `actix`, `axum`, `hyper`, `tonic` and `tower`
//! connect handoffd to these libraries. `docs/servers.md` has a complete program for each library.
//!
//! ```no_run
//! use handoffd::{Builder, Error};
//! use tokio::io::AsyncWriteExt;
//!
//! fn main() -> Result<(), Error> {
//!     let server = Builder::from_env()?.listen("hello=127.0.0.1:7000")?;
//!     server.serve_with(async |life| {
//!         let mut acceptor = life.acceptor("hello")?;
//!         life.ready();
//!         while let Some((mut client, _)) = acceptor.accept().await {
//!             tokio::spawn(async move { client.write_all(b"hello\n").await });
//!         }
//!         Ok::<_, Error>(())
//!     })?;
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! | module | for |
//! |---|---|
//! | [`embed`] | a server that accepts connections itself |
//! | [`listen`] | the addresses, names and settings of listeners |
//! | [`carry`] | a service whose connections move to the new process |
//! | [`control`] | a program that asks a running server for a reload or its status |
//! | [`status`] | what a server reports about its generations |
//! | `actix`, `axum`, `hyper`, `tonic`, `tower` | these libraries, each with its feature |
//! | `proxy` | the proxy as a service, with the feature `proxy` |
//! | [`text`] | printing text from other programs |
//!
//! `docs/architecture.md` describes the implementation: the layers, the guarantees, and the order
//! in which to read the code.
#![forbid(unsafe_op_in_unsafe_fn)]

mod address;
pub mod carry;
mod config;
pub mod control;
mod data_plane;
mod drain;
mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod generation;
mod glue;
mod handoff;
mod ledger;
mod lifecycle;
mod net;
mod notify;
#[cfg(feature = "proxy")]
mod plane;
mod report;
mod server;
mod service;
mod sys;
pub mod text;

pub use config::{Config, MaxGenerations};
pub use error::{Error, ExitStatus};
pub use generation::Generation;
pub use handoff::Inheritance;
pub use lifecycle::{Builder, run};
pub use server::Workers;
pub use service::{Connection, Echo, Next, Service};

/// Zero-downtime restarts for a server that accepts its connections itself.
///
/// [`Builder::serve_with`] runs such a server. [`Life`](embed::Life) tells the server when to stop,
/// and [`Acceptor`](embed::Acceptor) accepts its connections. The connections of a
/// [`CarryAcceptor`](embed::CarryAcceptor) move to the new process at a handoff.
pub mod embed {
    pub use crate::drain::{DrainReport, DrainWatch};
    pub use crate::lifecycle::{
        Acceptor, BlockingListener, CarryAcceptor, CarryClient, CarryHandle, CarryOutcome,
        CarryPermit, Handshakes, Life, Stop, Tracked,
    };
    pub use crate::net::Handshake;
}

/// Types for listeners: their addresses, names and settings, and the streams that they accept.
pub mod listen {
    pub use crate::address::Address;
    pub use crate::config::{
        DEFAULT_ADDRESS, ListenerConfig, ListenerName, Listeners, METRICS_LISTENER, OnHandoff,
        SocketAccess, SocketMode, TakenAddresses, UniqueListeners,
    };
    pub use crate::net::{Binding, Listener, ListenerSet, Origin, Peer, Stream};
}

#[cfg(feature = "actix")]
pub use glue::actix;
#[cfg(feature = "axum")]
pub use glue::axum;
#[cfg(feature = "hyper")]
pub use glue::hyper;
#[cfg(feature = "tonic")]
pub use glue::tonic;
#[cfg(feature = "tower")]
pub use glue::tower;

#[cfg(feature = "program")]
pub mod program;

/// A service that forwards each connection to an upstream.
#[cfg(feature = "proxy")]
pub mod proxy {
    pub use crate::config::{
        Balance, Check, Ejection, HeaderVersion, HostPort, Loop, Network, ProxyConfig,
        UpstreamTarget, Upstreams, find_loop,
    };
    pub use crate::service::Proxy;
}

/// What a service reports about each of its processes: the state, the connections and the counters.
pub mod status {
    pub use crate::lifecycle::RunReport;
    pub use crate::report::{
        Connections, Counters, GenerationState, HandoffCounters, Identity, LastHandoff,
        ListenerCounters, ListenerReport, Outcome, ProgramCounters, ProgramReport, ProgramState,
        Report, Settings, Status, UpstreamCounters,
    };
}
