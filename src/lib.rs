//! Zero-downtime restarts for Linux servers.
//!
//! A process takes its listening sockets from systemd, from another parent or from its predecessor.
//! On SIGHUP it starts the program that is now at its own path, and passes the listening sockets to
//! the new process. Then it moves its live connections to the new process, and drains those that
//! cannot move. Clients notice nothing. If the new process fails, the old process keeps serving
//! without interruption.
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
//! A server that accepts connections itself can be restarted in the same way. [`Starting::ready`]
//! tells the predecessor that the server accepts connections. [`Serving::acceptor`] yields the
//! connections of a listener until the server must stop accepting. [`Serving::draining`] resolves
//! when the server must end its open connections. With [`Serving::drained`], the server reports
//! that all connections have ended. `examples/axum.rs` is such a server. With
//! [`Serving::retirement`], its replies announce that the connection will end, and
//! [`Serving::closing`] gives clients time to read the announcement.
//!
//! The lifecycle decides when a generation starts, serves and stops. The data plane (`server`) and
//! the handoff carry out its decisions. The lowest layer consists of plain values and the interface
//! to the kernel. A test enforces the layers. `docs/architecture.md` has a diagram, the guarantees
//! and a reading order.
//!
//! | module | purpose |
//! |---|---|
//! | `lifecycle` | the state machine of a generation, and the driver that carries out its actions |
//! | `handoff` | the inheritance of a process, and the channels to predecessor and successor |
//! | `server` | accept loops and connections |
//! | `notify` | notifications to the service manager |
//! | `control` | the control socket: requests of an operator and their replies |
//! | `service` | the services: echo, proxy, or your own |
//! | `carry` | the move of live connections to the successor |
//! | `net`, `drain` | listeners, streams, and the draining of connections |
//! | `ledger` | the open connections and the sums over all connections |
//! | `config_file` | the parser of the daemon's configuration file |
//! | `config`, `address`, `generation`, `report`, `error` | plain values |
//! | `text` | escaping of untrusted text for a log or a terminal |
//! | `sys` | system calls, unsafe code, raw file descriptors, the environment |
#![forbid(unsafe_op_in_unsafe_fn)]

mod address;
mod carry;
mod config;
#[cfg(feature = "config-file")]
mod config_file;
mod control;
mod data_plane;
mod drain;
mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod generation;
mod handoff;
mod ledger;
mod lifecycle;
mod net;
mod notify;
mod report;
mod server;
mod service;
mod sys;
mod text;

pub use address::Address;
pub use carry::CarriedState;
pub use config::{
    Balance, Check, Config, DEFAULT_ADDRESS, Ejection, HeaderVersion, HostPort, ListenerConfig,
    ListenerName, Listeners, MaxGenerations, Network, OnHandoff, ProxyConfig, SocketAccess,
    SocketMode, UniqueListeners, UpstreamTarget, Upstreams,
};
#[cfg(feature = "config-file")]
pub use config_file::{
    ConfigFile, LogFormat, METRICS_LISTENER, ServiceConfig, Spanned, parse_log_filter,
    parse_log_format, parse_time, parse_user_or_group, parse_wait, parse_workers,
};
pub use control::{Control, ReloadNews, ReloadOptions, default_control_path};
pub use drain::{DrainReport, DrainWatch};
pub use error::{Error, ExitStatus};
pub use generation::Generation;
pub use handoff::{Inheritance, check_for_init, runtime_directory};
pub use lifecycle::{
    Acceptor, AfterDrain, Retirement, RunReport, Serving, Starting, check, run, run_on,
};
pub use net::{Listener, ListenerSet, Origin, Peer, Stream};
pub use report::{
    Connections, Counters, GenerationState, HandoffCounters, Identity, LastHandoff,
    ListenerCounters, ListenerReport, Outcome, Report, Settings, Status, UpstreamCounters,
};
pub use server::Workers;
pub use service::{BuiltinService, Connection, Echo, Next, Proxy, Routes, Service};
pub use text::{escaped, one_line};
