//! The settings of a listener. Each is a key of a table `[listener.NAME]`, and most are also flags
//! that apply to all `--listen` addresses.

use clap::Args;
use handoffd::Error;
use handoffd::listen::{Address, ListenerConfig, Listeners, OnHandoff, SocketAccess, SocketMode};
use serde::Deserialize;

use super::kinds::{Count, ServiceName, UserOrGroup};
use super::value::{Given, value};
use crate::failure::Failure;

/// The settings of a listener that do not depend on its service. A field that is `None` was not
/// given.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenerSettings {
    /// The address and the service of the listener, which only the configuration file sets.
    #[arg(skip)]
    pub(super) address: Option<Given<Address>>,
    #[arg(skip)]
    pub(super) service: Option<Given<ServiceName>>,
    /// What happens to connections of the listener at a handoff. No flag sets this value, because
    /// the flag `--carry` applies to the whole daemon.
    #[arg(skip)]
    carry: Option<Given<OnHandoff>>,

    /// How many connections each listener may have at once; further clients wait in the backlog
    /// [default: no limit]
    #[arg(long, value_name = "COUNT", requires = "listen")]
    max_connections: Option<Given<Count>>,

    /// Permissions of the Unix socket paths in --listen, in octal digits, as in 0660
    /// [default: 0777 minus the umask]
    #[arg(id = "mode", long = "socket-mode", value_name = "MODE", requires = "listen")]
    mode: Option<Given<SocketMode>>,

    /// Owner of the Unix socket paths in --listen: a user name or a number [default: the user of
    /// the daemon]
    #[arg(id = "user", long = "socket-user", value_name = "USER", requires = "listen")]
    user: Option<Given<UserOrGroup>>,

    /// Group of the Unix socket paths in --listen: a group name or a number [default: the group of
    /// the daemon]
    #[arg(id = "group", long = "socket-group", value_name = "GROUP", requires = "listen")]
    group: Option<Given<UserOrGroup>>,
}

impl ListenerSettings {
    /// Applies these settings to a listener.
    pub(super) fn apply(self, listener: &mut ListenerConfig) {
        listener.max_connections = value(self.max_connections);
        listener.on_handoff = value(self.carry);
        listener.access.mode = value(self.mode);
        listener.access.user = value(self.user);
        listener.access.group = value(self.group);
    }
}

/// The flags for the listeners: their addresses, and the settings of each.
#[derive(Debug, Args)]
pub(crate) struct ListenFlags {
    /// Listen on this address; may be given several times.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, tcp6:[IPV6]:PORT (IPv6 only), /PATH or @NAME (abstract). If
    /// a parent passes in a socket named NAME, that socket is used instead. Without this flag, all
    /// sockets that are passed in are served, or else 127.0.0.1:48879.
    #[arg(long, value_name = "[NAME=]ADDRESS")]
    listen: Vec<String>,

    #[command(flatten)]
    settings: ListenerSettings,
}

impl ListenFlags {
    /// Returns the listeners that the flags describe.
    pub(super) fn read(self) -> Result<Listeners, Failure> {
        let parse = |text: &String| {
            let mut listener: ListenerConfig = text.parse()?;
            self.settings.clone().apply(&mut listener);
            Ok(listener)
        };
        let mut listeners = self.listen.iter().map(parse).collect::<Result<Vec<_>, Error>>()?;
        let has_access = listeners.iter().any(|listener| !listener.access.is_default());
        let (paths, others): (Vec<_>, Vec<_>) =
            listeners.iter_mut().partition(|listener| listener.address.path().is_some());
        if has_access && paths.is_empty() {
            let why = "--socket-mode, --socket-user and --socket-group need a path in --listen, \
                as in /run/web.sock";
            return Err(Failure::Usage(why.to_owned()));
        }
        others.into_iter().for_each(|listener| listener.access = SocketAccess::default());
        Ok(Listeners::new(listeners)?)
    }
}
