//! Tests that flags, the configuration file and the documented example agree, and that every
//! setting takes effect.

mod program;

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::cli;
use clap::{Args, Command, Parser};

/// The documented example of all settings.
const EXAMPLE: &str = include_str!("../../../../docs/handoffd.toml");

/// A file that gives every setting a value other than its default.
const ALL: &str = "\
ready_timeout = 2
bake = '3s'
drain_timeout = '1h'
carry = false
first_request_grace = '5ms'
max_generations = 6
pid_file = 'run/pid'
control = '/run/control'
log = 'debug'
log_format = 'json'
workers = 7
metrics = '127.0.0.1:9'
[listener.web]
address = '/run/web.sock'
service = 'proxy'
max_connections = 8
carry = false # here
mode = '0600'
user = '33'
group = 'www-data'
upstreams = ['@a', '127.0.0.1:9', '/b']
resolve_interval = '11s'
balance = 'least-connections'
connect_timeout = '1s'
connect_patience = 0
idle_timeout = '2s'
lifetime = '3s'
send_proxy_header = 'v1'
accept_proxy_header_from = ['unix', '::1']
proxy_header_timeout = '4s'
keep_alive = '5s'
user_timeout = '6s'
eject_after = 7
eject_for = '8s'
check_interval = '9s'
check_timeout = '10s'
";

/// The listener settings that have no equivalent flag. `--listen` gives the address, the command
/// gives the service, and `--carry` is a setting of the daemon.
const IN_FILE_ONLY: [&str; 3] = ["address", "service", "carry"];

fn parse(text: &str) -> Result<FileSettings, Failure> {
    ConfigFile::of("a.toml".into(), text.into()).parse()
}

/// Formats all settings as text, so that a test can compare two configurations.
fn described(FileSettings { daemon, listeners, services, program, .. }: FileSettings) -> String {
    let DaemonSettings { workers, log, log_format, metrics, .. } = daemon.clone();
    let config = daemon.into_config(listeners, None);
    format!("{workers:?} {log:?} {log_format:?} {metrics:?} {config:#?} {services:#?} {program:#?}")
}

/// Returns the example with its commented-out settings enabled. Such a setting is a line with `#`
/// and no space after it.
fn with_all_settings() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|letter: char| letter.is_ascii_lowercase()) => {
            setting.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(|line| uncomment(line) + "\n").collect()
}

/// Returns the named flags that `T` declares: the key, the flag and the help text of each.
fn flags<T: Args>() -> Vec<(String, String, String)> {
    let flags = T::augment_args(Command::default());
    let told = flags.get_arguments().map(|flag| {
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        (flag.get_id().to_string(), format!("--{}", flag.get_long().unwrap()), help)
    });
    told.filter(|(key, ..)| key != "no_carry").collect()
}

fn values(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::Array(list) => list.iter().flat_map(values).collect(),
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Integer(number) => vec![number.to_string()],
        toml::Value::Boolean(truth) => vec![truth.to_string()],
        other @ (toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_)) => {
            panic!("{other:?} is no value of a setting")
        }
    }
}

/// Converts the keys of a table in the file to the equivalent flags.
fn as_flags<T: Args>(table: &toml::Table) -> Vec<String> {
    let flags = flags::<T>();
    let flag = |key: &str| flags.iter().find(|(known, ..)| known == key).map(|(_, flag, _)| flag);
    let given = table.iter().filter_map(|(key, value)| Some((flag(key)?, values(value))));
    given
        .flat_map(|(flag, values)| values.into_iter().map(move |value| format!("{flag}={value}")))
        .collect()
}

#[derive(Parser)]
struct ProxyLine {
    #[command(flatten)]
    flags: ProxyFlags,
}

/// Every key of the file has a flag with the same name, except those in `IN_FILE_ONLY`. The flag
/// has the same effect as the key.
#[test]
fn flags_and_keys_say_the_same() {
    let table: toml::Table = ALL.parse().unwrap();
    let listener = table["listener"]["web"].as_table().unwrap();
    let known: Vec<_> = flags::<DaemonSettings>().into_iter().map(|(key, ..)| key).collect();
    for key in table.keys().filter(|key| *key != "listener") {
        assert!(known.contains(key), "{key} is no flag of the daemon");
    }
    let known = [flags::<ListenFlags>(), flags::<ProxySettings>()].concat();
    for key in listener.keys().filter(|key| !IN_FILE_ONLY.contains(&key.as_str())) {
        assert!(known.iter().any(|(known, ..)| known == key), "{key} is no flag of a proxy");
    }
    let line = [
        vec!["proxy".to_owned(), "--listen=web=/run/web.sock".to_owned()],
        as_flags::<DaemonSettings>(&table),
        as_flags::<ListenFlags>(listener),
        as_flags::<ProxySettings>(listener),
    ]
    .concat();
    let ProxyFlags { proxy, listen, daemon, .. } = ProxyLine::parse_from(line).flags;
    let listeners = listen.read().unwrap();
    let Listeners::Named(named) = &listeners else { panic!("no listener") };
    let proxy = proxy.into_config(SettingSource::Flags, &[&named.as_slice()[0].address]).unwrap();
    let services = vec![("web".parse().unwrap(), ServiceConfig::Proxy(Box::new(proxy)))];
    let said =
        described(FileSettings { daemon, listeners, services, program: None, stop_timeout: None });
    assert_eq!(said, described(parse(&ALL.replace("carry = false # here\n", "")).unwrap()));
}

#[test]
fn every_setting_has_an_effect() {
    let with_all = described(parse(ALL).unwrap());
    let keys: Vec<_> = ALL.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    for (key, ..) in
        [flags::<DaemonSettings>(), flags::<ListenFlags>(), flags::<ProxySettings>()].concat()
    {
        assert!(key == "listen" || keys.contains(&&*key), "{key} is not in this test");
    }
    for line in ALL.lines().filter(|line| line.contains(" = ")) {
        let without = parse(&ALL.replace(&format!("{line}\n"), ""));
        assert!(without.map_or(true, |file| described(file) != with_all), "{line} has no effect");
    }
}

#[test]
fn the_example_shows_defaults_and_required_settings() {
    let required = "log = 'info'\nlog_format = 'text'\n[listener.web]\naddress = '0.0.0.0:8080'\n\
                    service = 'proxy'\nupstreams = ['127.0.0.1:9000', '/run/app.sock', '@app']\n";
    assert_eq!(described(parse(EXAMPLE).unwrap()), described(parse(required).unwrap()));
}

/// The comment above each setting of the example ends with the default, and the help text of the
/// flag names the same default.
#[test]
fn the_example_and_the_help_name_the_same_defaults() {
    let all = with_all_settings();
    let lines: Vec<_> = all.lines().collect();
    let told =
        [flags::<DaemonSettings>(), flags::<ListenFlags>(), flags::<ProxySettings>()].concat();
    let mut different = Vec::new();
    for (key, flag, help) in told.into_iter().filter(|(key, ..)| key != "listen") {
        let place = lines.iter().position(|line| line.starts_with(&format!("{key} = ")));
        let place = place.unwrap_or_else(|| panic!("the example has no {key}"));
        let comment = lines[..place].iter().rev().take_while(|line| line.starts_with("# "));
        let comment: Vec<_> = comment.map(|line| &line[2..]).collect();
        let comment = comment.into_iter().rev().collect::<Vec<_>>().join(" ");
        if comment.ends_with("Required.") {
            assert!(!help.contains("[default:"), "{flag}: {help}");
            continue;
        }
        let default = comment.rsplit_once("Default: ").map(|(_, default)| default);
        let default = default.unwrap_or_else(|| panic!("{key} has no default")).replace('"', "");
        let default = default.strip_suffix('.').unwrap();
        if !help.ends_with(&format!("[default: {default}]")) {
            different.push(format!("{key}: {default}; {flag}: {help}"));
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}

/// Returns the documents for users, each with its path.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let all = pages.chain([root.join("README.md")]);
    all.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the code blocks of a document that are in a given language, such as `toml`.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    let blocks = document.split(start.as_str()).skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_configurations_in_the_documents_are_valid() {
    let mut count = 0;
    for (path, document) in documents() {
        for block in blocks(&document, "toml").into_iter().filter(|block| !block.contains("[dep")) {
            parse(block).unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 2, "the documents have no configuration");
}

#[test]
fn the_commands_in_the_documents_are_valid() {
    let mut count = 0;
    for (path, document) in documents() {
        for block in blocks(&document, "sh") {
            let block = block.replace("\\\n", " ");
            for line in block.lines().filter(|line| line.starts_with("handoffd ")) {
                let command = line.split(['#', '>', '|', '&']).next().unwrap();
                let words = command.split_whitespace().map(|word| word.trim_matches('\''));
                cli::parse_words(words)
                    .unwrap_or_else(|error| panic!("{}: {line}\n{error}", path.display()));
                count += 1;
            }
        }
    }
    assert!(count >= 10, "the documents have no commands");
}

#[test]
fn omitted_settings_have_their_defaults() {
    let file = parse("[listener.web]\naddress = '@web'\nservice = 'echo'\n").unwrap();
    let mut config = Config::default();
    config.listeners = file.listeners.clone();
    assert!(file.daemon.workers.is_none() && file.daemon.log.is_none());
    assert!(file.daemon.metrics.is_none() && file.daemon.log_format.is_none());
    let said = format!("{:?}", file.daemon.into_config(file.listeners, None));
    assert_eq!(said, format!("{config:?}"));
}

#[test]
fn listeners_stay_in_the_order_of_the_file() {
    let table = |name| format!("[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'echo'\n");
    let file = parse(&["b", "c", "a"].map(table).concat()).unwrap();
    let names: Vec<_> = file.services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

#[test]
fn a_byte_order_mark_does_not_count_as_a_character() {
    let said = parse("\u{feff}bake = no").unwrap_err().to_string();
    assert!(said.starts_with("a.toml:1:8: "), "{said}");
    let file = ConfigFile::of("a.toml".into(), b"# \xc3\xbc\nx\xff".to_vec());
    let said = file.parse().unwrap_err().to_string();
    assert_eq!(said, "a.toml:2:2: not UTF-8, expected UTF-8 text");
}

/// Returns all files of the fuzzing corpus.
fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config_file");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 10, "the fuzzing corpus is missing");
    files
}

#[test]
fn every_corpus_file_is_valid_or_its_error_has_a_position() {
    for path in corpus() {
        fuzz::read(&fs::read(&path).unwrap());
    }
}
