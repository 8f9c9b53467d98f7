//! The configuration file: the listeners, the service of each listener, and the settings of the
//! daemon.
//!
//! The file is written in TOML. An error message is one line that contains the position, the
//! mistake and the expected value. A new generation reads the file again, and must find every error
//! before it changes anything. Therefore the whole file is checked at once. The module `values`
//! parses single values, and `tables` defines the structure of the file. The module `listeners`
//! puts a listener together. The modules `filter`, `log_format` and `time` parse values that are
//! also used in flags. The module `span` finds the position of an error. Only the configuration
//! file itself is opened.

mod filter;
mod listeners;
mod log_format;
mod span;
mod tables;
mod time;
mod values;

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statfs::{self, FsType, fstatfs};
use tracing_subscriber::filter::Targets;

use crate::address::Address;
use crate::config::{Config, ListenerName, Listeners, ProxyConfig};
use crate::error::Error;
use span::{ConfigError, line_and_column};
use tables::Root;

pub use crate::config::METRICS_LISTENER;
pub use filter::parse_log_filter;
pub use log_format::{LogFormat, parse_log_format};
pub use time::{parse_time, parse_wait};
pub use values::{parse_user_or_group, parse_workers};

/// The maximum size of a configuration file in bytes. A larger file is probably not a configuration
/// file.
const LONGEST: u64 = 1024 * 1024;

/// The file systems whose files have contents that the kernel generates on each read.
const KERNEL_FILES: [FsType; 4] =
    [statfs::PROC_SUPER_MAGIC, statfs::SYSFS_MAGIC, statfs::DEBUGFS_MAGIC, statfs::TRACEFS_MAGIC];

/// The parsed contents of a configuration file.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The configuration of a generation that reads this file. Settings that are missing in the
    /// file have the values of [`Config::default`].
    pub config: Config,
    /// The service of each listener, in the order of the file. Each listener in `config.listeners`
    /// has one entry, and the list is never empty.
    pub services: Vec<(ListenerName, ServiceConfig)>,
    /// How many threads serve connections. `None` if the file does not set the number.
    pub workers: Option<NonZeroUsize>,
    /// The filter for log records. `None` if the file does not set it.
    pub log: Option<Targets>,
    /// The format of log records on standard error. `None` if the file does not set it.
    pub log_format: Option<LogFormat>,
    /// The address of the listener [`METRICS_LISTENER`], which serves the counters. No listener in
    /// `config.listeners` has the same name or the same address.
    pub metrics: Option<Spanned<Address>>,
}

/// A value with its position in the file. Errors that are found after parsing use the position.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The value that was read from the file.
    pub value: T,
    /// The line in which the value begins. The first line is 1.
    pub line: usize,
    /// The column at which the value begins, in characters. The first column is 1.
    pub column: usize,
}

/// The service that runs on a listener.
#[derive(Clone, Debug)]
pub enum ServiceConfig {
    /// The echo service, which sends back all data that it reads.
    Echo,
    /// The proxy service, which forwards connections to upstreams.
    Proxy(Box<ProxyConfig>),
}

impl ConfigFile {
    /// Returns the contents of the file at `path`, for [`ConfigFile::parse`]. The identity of a
    /// generation also contains a digest of these contents.
    ///
    /// # Errors
    /// Returns [`Error::ConfigFileUnreadable`] if the file cannot be read or has more than 1 MiB.
    /// Returns this error also if `path` is not a regular file, because the next generation could
    /// not read such a file again.
    pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
        let refuse = |source| Error::ConfigFileUnreadable { file: path.to_owned(), source };
        let no_file =
            || refuse(io::Error::other("not a regular file: each generation reads it again"));
        // Check the type of the file before opening it, because opening a device may have side
        // effects.
        if !fs::metadata(path).map_err(refuse)?.is_file() {
            return Err(no_file());
        }
        // Open with `O_NONBLOCK`, because someone may have replaced the file by a pipe in the
        // meantime. Without this flag, opening a pipe waits for a writer.
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(refuse)?;
        // Refuse files whose contents the kernel generates. They look like regular files, but
        // reading some of them blocks until data arrives (see proc_kmsg(5)).
        let is_of_kernel =
            fstatfs(&file).is_ok_and(|system| KERNEL_FILES.contains(&system.filesystem_type()));
        if is_of_kernel || !file.metadata().map_err(refuse)?.is_file() {
            return Err(no_file());
        }
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(refuse)?;
        if bytes.len() as u64 > LONGEST {
            return Err(refuse(io::Error::other("it has more than 1 MiB")));
        }
        Ok(bytes)
    }

    /// Parses the contents of a configuration file. `path` is only used in error messages.
    ///
    /// # Errors
    /// Returns [`Error::ConfigFile`] for the first mistake in the file, with its position.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            ConfigError::at(before.len(), "this is not UTF-8, expected text")
                .into_error(path, before)
        })?;
        read(text).map_err(|fault| fault.into_error(path, text))
    }
}

fn read(text: &str) -> Result<ConfigFile, ConfigError> {
    let root = Root::read(text)?;
    let mut taken = listeners::Taken::new();
    let listeners = listeners::read(root.listener, &mut taken)?;
    let metrics = root.metrics;
    if let Some(metrics) = &metrics {
        let place = metrics.span().start;
        let name = METRICS_LISTENER
            .parse()
            .map_err(|error: Error| ConfigError::at(place, error.to_string()))?;
        listeners::take(&mut taken, &metrics.get_ref().0, &name, place)?;
        if listeners.iter().any(|listener| *listener.name() == name) {
            let what = format!(
                "the name of this listener is {METRICS_LISTENER:?}, expected no other of that name"
            );
            return Err(ConfigError::at(place, what));
        }
    }
    let (listeners, services): (Vec<_>, Vec<_>) =
        listeners.into_iter().map(listeners::CheckedListener::split).unzip();
    let default = Config::default();
    let config = Config {
        // This call never fails, because the names and the addresses were checked above. Only
        // there, their positions in the file are known.
        listeners: Listeners::new(listeners)
            .map_err(|error| ConfigError::at(0, error.to_string()))?,
        ready_timeout: root.ready_timeout.map_or(default.ready_timeout, |time| time.0),
        bake: root.bake.map_or(default.bake, |time| time.0),
        drain_timeout: root.drain_timeout.map_or(default.drain_timeout, |time| time.0),
        first_request_grace: root
            .first_request_grace
            .map_or(default.first_request_grace, |time| time.0),
        on_handoff: root.carry.map_or(default.on_handoff, |carry| carry.0),
        max_generations: root.max_generations.map_or(default.max_generations, |count| count.0),
        pid_file: root.pid_file.map(|path| path.0),
        control: root.control.map(|path| path.0),
        identity: default.identity,
    };
    Ok(ConfigFile {
        config,
        services,
        workers: root.workers.map(|count| count.0),
        log: root.log.map(|filter| filter.0),
        log_format: root.log_format.map(|format| format.0),
        metrics: metrics.map(|address| {
            let (line, column) = line_and_column(text, address.span().start);
            Spanned { value: address.into_inner().0, line, column }
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Balance, HeaderVersion};

    fn parse(text: &str) -> Result<ConfigFile, Error> {
        ConfigFile::parse(Path::new("a.toml"), text.as_bytes())
    }

    /// Parses a file whose only listener has these lines in its table, and returns the proxy
    /// settings.
    fn proxy(lines: &str) -> ProxyConfig {
        let text = format!(
            "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['@a', '127.0.0.1:9', '/b']\n{lines}"
        );
        match parse(&text).unwrap().services.remove(0) {
            (_, ServiceConfig::Proxy(config)) => *config,
            (_, ServiceConfig::Echo) => panic!("expected a proxy"),
        }
    }

    #[test]
    fn every_setting_of_the_daemon_arrives() {
        let file = parse(
            "ready_timeout = 2\nbake = '3s'\ndrain_timeout = '1h'\nfirst_request_grace = '5ms'\nmax_generations = 6\n\
             pid_file = 'run/pid'\ncontrol = '/run/control'\nlog = 'debug'\nworkers = 7\n\
             log_format = 'json'\nmetrics = '127.0.0.1:0'\n\
             carry = true\n[listener.web]\naddress = '@web'\nservice = 'echo'\nmax_connections = 8\ncarry = false\n",
        )
        .unwrap();
        let said = format!("{:?}", file.config);
        for word in [
            "ready_timeout: 2s",
            "bake: 3s",
            "drain_timeout: 3600s",
            "first_request_grace: 5ms",
            "MaxGenerations(6)",
            "Some(\"run/pid\")",
            "Some(\"/run/control\")",
            "UnixAbstract(\"web\")",
            "ListenerName(\"web\")",
            "max_connections: Some(8)",
            " on_handoff: Carry",
            "on_handoff: Some(Drain)",
        ] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
        assert_eq!(file.workers.map(NonZeroUsize::get), Some(7));
        assert_eq!(file.log, parse_log_filter("debug").ok());
        assert_eq!(file.log_format, Some(LogFormat::Json));
        let metrics = file.metrics.unwrap();
        assert_eq!(
            (metrics.value.to_string(), metrics.line, metrics.column),
            ("127.0.0.1:0".to_owned(), 11, 11)
        );
        assert!(
            matches!(&file.services[..], [(name, ServiceConfig::Echo)] if name.as_str() == "web")
        );
    }

    #[test]
    fn every_setting_of_a_proxy_arrives() {
        let config = proxy(
            "resolve_interval = '11s'\nbalance = 'least-connections'\nconnect_timeout = '1s'\nconnect_patience = 0\nidle_timeout = '2s'\n\
             lifetime = '3s'\nsend_proxy_header = 'v1'\n\
             accept_proxy_header_from = ['10.0.0.0/8', '::1']\n\
             proxy_header_timeout = '4s'\nkeep_alive = '5s'\nuser_timeout = '6s'\n\
             eject_after = 7\neject_for = '8s'\n\
             check_interval = '9s'\ncheck_timeout = '10s'\n",
        );
        let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs());
        assert_eq!((config.upstreams.as_slice().len(), config.resolve_interval.as_secs()), (3, 11));
        assert_eq!(
            (config.balance, config.send_header),
            (Balance::LeastConnections, Some(HeaderVersion::V1))
        );
        assert_eq!((config.connect_timeout.as_secs(), config.connect_patience.as_secs()), (1, 0));
        assert_eq!((seconds(config.idle_timeout), seconds(config.lifetime)), (Some(2), Some(3)));
        assert_eq!((config.accept_header_from.len(), config.header_timeout.as_secs()), (2, 4));
        assert_eq!((seconds(config.keep_alive), seconds(config.user_timeout)), (Some(5), Some(6)));
        assert_eq!((config.ejection.failures, config.ejection.time.as_secs()), (7, 8));
        let check = config.check.unwrap();
        assert_eq!((check.interval.as_secs(), check.timeout.as_secs()), (9, 10));
    }

    #[test]
    fn omitted_settings_have_their_defaults() {
        let file = parse("[listener.web]\naddress = '@web'\nservice = 'echo'\n").unwrap();
        let config = Config { listeners: file.config.listeners.clone(), ..Config::default() };
        assert_eq!(format!("{:?}", file.config), format!("{config:?}"));
        assert!(file.workers.is_none() && file.log.is_none() && file.metrics.is_none());
        assert_eq!(file.log_format, None);
        let left_out = proxy("");
        assert_eq!(
            format!("{left_out:?}"),
            format!("{:?}", ProxyConfig::to(left_out.upstreams.clone()))
        );
    }

    #[test]
    fn listeners_stay_in_the_order_of_the_file() {
        let table =
            |name| format!("[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'echo'\n");
        let file = parse(&["b", "c", "a"].map(table).concat()).unwrap();
        let names: Vec<_> = file.services.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }

    #[test]
    fn a_byte_order_mark_does_not_count_as_a_character() {
        let place = |text| parse(text).unwrap_err().to_string();
        assert!(
            place("\u{feff}bake = no").starts_with("a.toml:1:8: "),
            "{}",
            place("\u{feff}bake = no")
        );
        let bytes =
            ConfigFile::parse(Path::new("a.toml"), b"# \xc3\xbc\nx\xff").unwrap_err().to_string();
        assert_eq!(bytes, "a.toml:2:2: this is not UTF-8, expected text");
    }
}
