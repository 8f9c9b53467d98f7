//! The settings of a program that serves the listeners. Each is both a key of the table `[program]`
//! and a flag of the command `run`.

use std::fmt;
use std::marker::PhantomData;

use clap::Args;
use handoffd::listen::Address;
use handoffd::program::{Attach, ProgramConfig, Ready};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::kinds::{FilePath, Time, Wait};
use super::mistake::{Mistake, SettingSource};
use super::program_kinds::{Ending, InstanceCount, ListenerKey, ProgramArgument, Variable};
use super::relay::RelaySettings;
use super::value::{Given, list, set, value};

/// The settings of a program. A field that is `None` was not given.
///
/// Each field declares both a key of the file and a flag. The key has the field's name, and the
/// flag has the same name with dashes. The field's comment is the help text, which ends with the
/// default. `docs/handoffd-run.toml` explains each setting.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProgramSettings {
    /// The program and its arguments
    ///
    /// These placeholders are replaced in the arguments: {fd} and {fd:NAME} by the descriptor
    /// number of a listener, {address} and {address:NAME} by its address, {port} by a private port,
    /// {socket} by the path of a private Unix socket, {generation} and {instance} by their numbers.
    #[arg(id = "command", last = true, required = true, value_name = "PROGRAM")]
    #[serde(deserialize_with = "list")]
    pub(super) command: Option<Vec<Given<ProgramArgument>>>,

    /// How clients reach the program: inherit (the program accepts on the listeners), port or
    /// socket (handoffd forwards to a private port or socket of the program), or detect (handoffd
    /// finds out) [default: what the command or a variable mentions, else detect]
    #[arg(long, value_name = "WAY")]
    attach: Option<Given<Attach>>,

    /// How the program reports that it is ready: notify, alive, connect, http:/PATH, descriptor:N
    /// or after:TIME [default: notify or alive; a private program: connect]
    #[arg(long, value_name = "CONDITION")]
    ready: Option<Given<Ready>>,

    /// A command that succeeds when the program is ready, instead of --ready; a word `;` ends it
    /// [default: none]
    #[arg(long, value_name = "WORD", num_args = 1.., value_terminator = ";")]
    #[arg(allow_hyphen_values = true)]
    #[serde(deserialize_with = "list")]
    ready_command: Option<Vec<Given<ProgramArgument>>>,

    /// How often to check that a ready program is still healthy; a check that fails before the old
    /// generation retires causes a rollback [default: never]
    #[arg(long, value_name = "TIME")]
    check_interval: Option<Given<Wait>>,

    /// What happens when the program ends: always (it is started again) or never
    /// [default: always]
    #[arg(long, value_name = "WHEN")]
    restart: Option<Given<Ending>>,

    /// The signal that asks the program to end [default: TERM]
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<Given<handoffd::program::StopSignal>>,

    /// How long the program may take to end after the signal, before it is killed [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(super) stop_timeout: Option<Given<Time>>,

    /// How many processes of the program run at once [default: 1]
    #[arg(long, value_name = "COUNT")]
    instances: Option<Given<InstanceCount>>,

    /// An environment variable for the program, as in NAME=VALUE; the value may contain
    /// placeholders; may be given several times [default: none]
    #[arg(id = "environment", long = "env", value_name = "NAME=VALUE")]
    #[serde(deserialize_with = "variables")]
    environment: Option<Vec<Given<Variable>>>,

    /// A file with environment variables for the program, read at each start [default: none]
    #[arg(long = "env-file", id = "environment_file", value_name = "FILE")]
    environment_file: Option<Given<FilePath>>,

    /// The working directory of the program; its symbolic links are resolved at each start
    /// [default: that of handoffd]
    #[arg(long, value_name = "PATH")]
    working_directory: Option<Given<FilePath>>,

    /// The file mode creation mask of the program, as in 0027 [default: that of handoffd]
    #[arg(long, value_name = "MASK")]
    umask: Option<Given<handoffd::program::Umask>>,

    /// The listener that the program gets as its standard input [default: none]
    #[arg(long, value_name = "NAME")]
    stdin: Option<Given<ListenerKey>>,

    #[command(flatten)]
    #[serde(skip)]
    pub(super) relay: RelaySettings,
}

impl ProgramSettings {
    /// Returns the configuration of a program whose listeners have these addresses.
    pub(super) fn into_config(
        self,
        source: SettingSource,
        addresses: &[&Address],
    ) -> Result<ProgramConfig, Mistake> {
        let words = |list: Vec<Given<ProgramArgument>>| -> Vec<String> {
            list.into_iter().map(|word| word.value).collect()
        };
        let place = self.command.as_ref().and_then(|command| command.first()?.offset);
        let command = words(self.command.unwrap_or_default());
        let mut config =
            ProgramConfig::new(command).map_err(|error| Mistake::at(place, error.to_string()))?;
        check_one_ready(self.ready.as_ref(), self.ready_command.as_deref(), source)?;
        let ready_place = self.ready.as_ref().and_then(|ready| ready.offset);
        config.ready = value(self.ready).or(self.ready_command.map(words).map(Ready::Command));
        let interval_place = self.check_interval.as_ref().map(|interval| interval.offset);
        config.check_interval = value(self.check_interval);
        set(&mut config.restart, self.restart);
        set(&mut config.stop_signal, self.stop_signal);
        set(&mut config.stop_timeout, self.stop_timeout);
        set(&mut config.instances, self.instances);
        config.environment =
            self.environment.unwrap_or_default().into_iter().map(|one| one.value).collect();
        let values = config.environment.iter().map(|(_, value)| value);
        config.attach = Attach::of_words(config.command.iter().chain(values));
        set(&mut config.attach, self.attach);
        config.environment_file = value(self.environment_file);
        config.working_directory = value(self.working_directory);
        config.umask = value(self.umask);
        config.stdin = value(self.stdin);
        check_ready(&config, ready_place, interval_place)?;
        if let (Attach::Inherit, Some((setting, place))) = (config.attach, self.relay.first_given())
        {
            let (setting, attach) = (source.name(setting), source.name("attach"));
            let what = format!(
                "{setting} has no effect, because the program itself accepts connections: expected \
                {attach} port or socket as well"
            );
            return Err(Mistake::at(place, what));
        }
        self.relay.apply(&mut config.relay, source, addresses)?;
        Ok(config)
    }
}

/// Checks that `ready` and `ready_command` are not both given, because there is only one ready
/// condition.
fn check_one_ready(
    ready: Option<&Given<Ready>>,
    command: Option<&[Given<ProgramArgument>]>,
    source: SettingSource,
) -> Result<(), Mistake> {
    let (Some(_), Some(command)) = (ready, command) else { return Ok(()) };
    let (ready, setting) = (source.name("ready"), source.name("ready_command"));
    let what = format!("{ready} and {setting} are both given, expected only one of them");
    Err(Mistake::at(command.first().and_then(|word| word.offset), what))
}

/// Checks that the ready condition works with the setting `attach`, and that it can be checked
/// repeatedly if there is a check interval.
fn check_ready(
    config: &ProgramConfig,
    ready_place: Option<usize>,
    interval_place: Option<Option<usize>>,
) -> Result<(), Mistake> {
    if config.attach == Attach::Inherit
        && matches!(config.ready, Some(Ready::Connect | Ready::Http(_)))
    {
        let what = "a program that inherits the listeners cannot be checked by a connection, \
            because the old program may answer: expected another ready condition, or attach = \
            \"port\"";
        return Err(Mistake::at(ready_place, what));
    }
    if let Some(place) = interval_place.filter(|_| !config.ready().is_repeatable()) {
        let what = "a program cannot be checked again with this ready condition: expected \
            connect, http:/PATH or a ready command";
        return Err(Mistake::at(place, what));
    }
    Ok(())
}

/// Deserializes a table of variables.
fn variables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Given<Variable>>>, D::Error> {
    deserializer.deserialize_any(VariableTable(PhantomData)).map(Some)
}

struct VariableTable(PhantomData<Variable>);

impl<'de> Visitor<'de> for VariableTable {
    type Value = Vec<Given<Variable>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of variables, as in { NAME = \"value\" }")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut variables: M) -> Result<Self::Value, M::Error> {
        let mut all = Vec::new();
        while let Some((name, value)) = variables.next_entry::<String, Given<ProgramArgument>>()? {
            if name.is_empty() || name.contains(['=', '\0']) {
                let what = format!("bad variable {name:?}: expected a name without \"=\"");
                return Err(serde::de::Error::custom(what));
            }
            all.push(Given { value: (name, value.value), offset: value.offset });
        }
        Ok(all)
    }
}
