//! The settings of the daemon. Each is both a flag and a top-level key of the configuration file.

use std::path::Path;

use clap::Args;
use handoffd::control::default_control_path;
use handoffd::listen::{Address, Listeners, OnHandoff};
use handoffd::program::{ProgramConfig, Ready};
use handoffd::{Config, MaxGenerations};
use serde::Deserialize;
use tracing_subscriber::filter::Targets;

use super::kinds::{FilePath, LogFormat, SocketPath, Time, Wait, WorkerCount};
use super::mistake::{Mistake, SettingSource};
use super::value::{Given, set, value};

/// The settings of the daemon. A field that is `None` was not given.
///
/// Each field declares both a key of the file and a flag. The key has the field's name, and the
/// flag has the same name with dashes. The field's comment is the help text, which ends with the
/// default. `docs/handoffd.toml` explains each setting.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DaemonSettings {
    /// How long a new generation may take to become ready [default: 30s]
    #[arg(long, value_name = "TIME")]
    ready_timeout: Option<Given<Wait>>,

    /// How long the old and the new generation both accept connections; a failure in this time is
    /// rolled back [default: 1s]
    #[arg(long, value_name = "TIME")]
    bake: Option<Given<Time>>,

    /// How long connections may take to end by themselves before they are cut [default: 30s]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<Given<Time>>,

    /// Whether live connections move to the new generation; otherwise the old one drains them. A
    /// listener's own `carry` in the file wins over this flag [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    carry: Option<Given<OnHandoff>>,

    /// The same as --carry=false
    #[arg(long, conflicts_with = "carry")]
    #[serde(skip)]
    no_carry: bool,

    /// During a drain, how long a new client may take to send its first request, counted from when
    /// it was accepted [default: 1s]
    #[arg(long, value_name = "TIME")]
    first_request_grace: Option<Given<Time>>,

    /// How many generations may serve or drain at once; beyond that, the oldest cuts its
    /// connections [default: 8]
    #[arg(long, value_name = "COUNT")]
    max_generations: Option<Given<MaxGenerations>>,

    /// A file that always contains the pid of the process to signal [default: none]
    #[arg(long, value_name = "PATH")]
    pid_file: Option<Given<FilePath>>,

    /// Serve metrics on this address, in the OpenMetrics format: GET /metrics. Needs --control
    /// [default: none]
    ///
    /// If a parent passes in a socket named `metrics`, that socket is used instead.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<Given<Address>>,

    /// Path of the control socket for `reload` and `status` [default: $RUNTIME_DIRECTORY/control
    /// under systemd, otherwise none]
    #[arg(long, value_name = "PATH")]
    control: Option<Given<SocketPath>>,

    /// How many threads serve connections [default: one per core]
    #[arg(long, value_name = "COUNT")]
    pub(super) workers: Option<Given<WorkerCount>>,

    /// The log level: error, warn, info, debug, trace or off, also for a single module, as in
    /// info,handoffd=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub(super) log: Option<Given<Targets>>,

    /// The format of log records on standard error: text, or json for one JSON object per line; the
    /// journal always gets separate fields [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub(super) log_format: Option<Given<LogFormat>>,
}

impl DaemonSettings {
    /// Takes every setting that no flag has given from `file`.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            ready_timeout: self.ready_timeout.or(file.ready_timeout),
            bake: self.bake.or(file.bake),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            carry: self.carry.or(file.carry),
            no_carry: self.no_carry,
            first_request_grace: self.first_request_grace.or(file.first_request_grace),
            max_generations: self.max_generations.or(file.max_generations),
            pid_file: self.pid_file.or(file.pid_file),
            metrics: self.metrics.or(file.metrics),
            control: self.control.or(file.control),
            workers: self.workers.or(file.workers),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
        }
    }

    /// Checks that a program that counts as ready after a time can be ready before the timeout. A
    /// new process has a little less time than the timeout, so that it can report a failure.
    pub(super) fn check_ready_time(&self, program: &ProgramConfig) -> Result<(), Mistake> {
        let Some(Ready::After(time)) = program.ready else { return Ok(()) };
        let given = self.ready_timeout.as_ref();
        let timeout = given.map_or(Config::default().ready_timeout, |timeout| timeout.value);
        if time <= timeout / 10 * 9 {
            return Ok(());
        }
        let what = format!(
            "the program counts as ready only after {} s, which is too late for a ready_timeout of \
            {} s: expected at most nine tenths of it, or a longer ready_timeout",
            time.as_secs_f64(),
            timeout.as_secs_f64()
        );
        Err(Mistake::at(given.and_then(|timeout| timeout.offset), what))
    }

    /// Checks that a program gets the time that `stop_timeout` promises. At the end of
    /// `drain_timeout`, this process kills its program and ends. The connections of a program on a
    /// private address may take half of this time, which is not checked.
    pub(super) fn check_stop_timeout(
        &self,
        stop_timeout: Option<&Given<Time>>,
        source: SettingSource,
    ) -> Result<(), Mistake> {
        let default = Config::default().drain_timeout;
        let limit = self.drain_timeout.as_ref().map_or(default, |given| given.value);
        let Some(stop) = stop_timeout.filter(|stop| stop.value > limit) else { return Ok(()) };
        let (setting, drain) = (source.name("stop_timeout"), source.name("drain_timeout"));
        let what = format!(
            "{setting} has no effect beyond {drain} ({}), because the program is killed then: \
            expected a longer {drain} as well",
            humantime::format_duration(limit)
        );
        Err(Mistake::at(stop.offset, what))
    }

    /// Returns the configuration of a generation with these settings and listeners.
    /// `runtime_directory` is the default directory of the control socket.
    pub(super) fn into_config(
        self,
        listeners: Listeners,
        runtime_directory: Option<&Path>,
    ) -> Config {
        let mut config = Config::default();
        config.listeners = listeners;
        set(&mut config.ready_timeout, self.ready_timeout);
        set(&mut config.bake, self.bake);
        set(&mut config.drain_timeout, self.drain_timeout);
        set(&mut config.on_handoff, self.carry);
        if self.no_carry {
            config.on_handoff = OnHandoff::Drain;
        }
        set(&mut config.first_request_grace, self.first_request_grace);
        set(&mut config.max_generations, self.max_generations);
        config.pid_file = value(self.pid_file);
        let default = runtime_directory.map(|folder| default_control_path(Some(folder)));
        config.control = value(self.control).or(default);
        config
    }
}
