//! The flags that set the addresses of listeners and the access rights of socket paths.

use std::num::NonZeroUsize;

use clap::Args;
use handoffd::listen::{ListenerConfig, Listeners, SocketAccess, SocketMode};
use handoffd::{Error, parse_user_or_group};

use crate::cli::Answer;

#[derive(Debug, Args)]
pub(crate) struct ListenFlags {
    /// Listen on this address; may be given several times.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, tcp6:[IPV6]:PORT (IPv6 only), /PATH or @NAME (abstract). If
    /// a parent passes in a socket named NAME, that socket is used instead. Without this flag, all
    /// sockets that are passed in are served, or else 127.0.0.1:48879.
    #[arg(long, value_name = "[NAME=]ADDRESS")]
    listen: Vec<String>,

    /// Permissions of the paths of --listen, in octal digits, as in 0660 [default: 0777 less the
    /// umask]
    #[arg(long, value_name = "MODE", requires = "listen", value_parser = socket_mode)]
    socket_mode: Option<SocketMode>,

    /// User of the paths of --listen: a name or a number [default: the user of this process]
    #[arg(long, value_name = "USER", requires = "listen", value_parser = parse_user_or_group)]
    socket_user: Option<String>,

    /// Group of the paths of --listen: a name or a number [default: the group of this process]
    #[arg(long, value_name = "GROUP", requires = "listen", value_parser = parse_user_or_group)]
    socket_group: Option<String>,
}

impl ListenFlags {
    /// Returns the listeners that the flags describe, each with this connection limit.
    pub(crate) fn read(self, max_connections: Option<NonZeroUsize>) -> Result<Listeners, Answer> {
        let said = SocketAccess {
            mode: self.socket_mode,
            user: self.socket_user,
            group: self.socket_group,
        };
        let parse = |text: &String| {
            let listener: ListenerConfig = text.parse()?;
            let access = if listener.address.path().is_some() {
                said.clone()
            } else {
                SocketAccess::default()
            };
            Ok(ListenerConfig { max_connections, access, ..listener })
        };
        let listeners = self.listen.iter().map(parse).collect::<Result<Vec<_>, Error>>()?;
        if !said.is_default() && listeners.iter().all(|listener| listener.access.is_default()) {
            let why = "--socket-mode, --socket-user and --socket-group need a path in --listen, \
                as in /run/web.sock";
            return Err(Answer::usage(why.to_owned()));
        }
        Ok(Listeners::new(listeners)?)
    }
}

fn socket_mode(text: &str) -> Result<SocketMode, &'static str> {
    text.parse().map_err(|_| "expected three octal digits, as in 0660")
}
