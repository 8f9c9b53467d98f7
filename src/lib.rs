//! Replaces a server while it serves.
//!
//! A process takes its listening sockets from systemd, from another parent or from its predecessor;
//! on SIGHUP it starts whatever now lies at its own path, hands the sockets over, and moves its
//! live connections to the new process. Connections that cannot move are drained. Nobody who
//! connects ever notices. If the new process fails, the old one has never stopped.
//!
//! # Your own service
//!
//! ```no_run
//! use handoffd::{Config, Connection, Inheritance, Next, Service};
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
//!     let inheritance = Inheritance::take()?; // first: it changes the environment
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(handoffd::run(Config::default(), inheritance, Shout))?;
//!     Ok(())
//! }
//! ```
//!
//! # Your own server
//!
//! Whatever takes connections can be replaced in the same way: [`Starting::ready`] says that it
//! accepts, [`Serving::acceptor`] gives the connections of a listener by its name until it is time
//! to stop, [`Serving::draining`] tells when to end them, [`Serving::drained`] says that they have
//! ended. `examples/axum.rs` is such a server: its replies announce the end of a connection by
//! [`Serving::retirement`], and [`Serving::closing`] leaves its clients time to hear it.
//!
//! # The house
//!
//! Two planes that do, one core that decides, words and the kernel below; `docs/architecture.md`
//! has the picture, the promise and the order in which to read. A test holds the layers.
//!
//! | module | what it holds |
//! |---|---|
//! | `lifecycle` | decides: the life of a generation as a pure function, and the driver that lives it |
//! | `handoff` | passes sockets on: inheritance, channel, predecessor, successor |
//! | `server` | serves: accept loops and connections |
//! | `notify` | tells the service manager |
//! | `control` | hears an operator and answers |
//! | `service` | what is done with a connection |
//! | `carry` | moves live connections to the successor |
//! | `net`, `drain` | the parts: listeners, streams, the end of connections |
//! | `config_file` | reads the daemon's configuration file |
//! | `config`, `address`, `generation`, `report`, `error` | plain values; a report is what an operator is told |
//! | `text` | makes text from outside fit for a log and a terminal |
//! | `sys` | the kernel: what is not safe, raw descriptors, the environment |
#![forbid(unsafe_op_in_unsafe_fn)]

mod address;
mod carry;
mod config;
#[cfg(feature = "config-file")]
mod config_file;
mod control;
mod drain;
mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod generation;
mod handoff;
mod lifecycle;
mod net;
mod notify;
mod report;
mod server;
mod service;
mod sys;
mod text;

pub use address::Address;
pub use carry::Parcel;
pub use config::{
    Balance, Check, Config, DEFAULT_ADDRESS, Ejection, HeaderVersion, HostPort, ListenerConfig,
    ListenerName, Listeners, MaxGenerations, Network, OnHandoff, ProxyConfig, SocketAccess,
    SocketMode, UniqueListeners, UpstreamTarget, Upstreams,
};
#[cfg(feature = "config-file")]
pub use config_file::{
    ConfigFile, LogFormat, METRICS_LISTENER, Placed, ServiceConfig, parse_log_filter,
    parse_log_format, parse_time, parse_user_or_group, parse_wait, parse_workers,
};
pub use control::{Control, ReloadNews, ReloadOptions, default_control_path};
pub use drain::{DrainReport, DrainWatch};
pub use error::{Error, Exit};
pub use generation::Generation;
pub use handoff::{Inheritance, check_for_init, runtime_directory};
pub use lifecycle::{Acceptor, Drained, Ending, Retirement, Serving, Starting, check, run, run_on};
pub use net::{Listener, ListenerSet, Origin, Peer, Stream};
pub use report::{
    Connections, Counters, HandoffCounters, Identity, LastHandoff, ListenerCounters,
    ListenerReport, Outcome, Report, Settings, Standing, Status, UpstreamCounters,
};
pub use server::Workers;
pub use service::{Connection, Echo, Next, Proxy, Routes, Served, Service};
pub use text::{escaped, one_line};
