//! Tests that every setting of a program works as a key and a flag, and is in the example.

use clap::{Args, Command, Parser};

use super::*;
use crate::settings::relay::RelaySettings;

/// The documented example of the settings of a program.
const PROGRAM: &str = include_str!("../../../../../docs/handoffd-run.toml");

/// A file that gives every setting of a program a value other than its default.
const EVERY_PROGRAM_SETTING: &str = "\
[listener.web]
address = '127.0.0.1:0'
[program]
command = ['a', 'b']
attach = 'port'
ready = 'http:/up'
check_interval = '1s'
restart = 'never'
stop_signal = 'INT'
stop_timeout = '2s'
instances = 3
environment = { A = 'b' }
environment_file = '/e'
working_directory = '/w'
umask = '0027'
stdin = 'web'
balance = 'in-order'
connect_timeout = '1s'
connect_patience = 0
idle_timeout = '2s'
lifetime = '3s'
send_proxy_header = 'v1'
accept_proxy_header_from = ['::1']
proxy_header_timeout = '4s'
keep_alive = '5s'
user_timeout = '6s'
";

/// Returns the arguments that `T` declares, including positional ones: the id, the flag and the
/// help text of each.
fn all_flags<T: Args>() -> Vec<(String, String, String)> {
    let flags = T::augment_args(Command::default());
    let told = flags.get_arguments().map(|flag| {
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        (flag.get_id().to_string(), flag.get_long().unwrap_or_default().to_owned(), help)
    });
    told.collect()
}

#[derive(Parser)]
struct RunLine {
    #[command(flatten)]
    flags: RunFlags,
}

#[test]
fn every_setting_of_a_program_is_a_flag_and_has_an_effect() {
    let with_all = parse(EVERY_PROGRAM_SETTING).unwrap();
    let table: toml::Table = EVERY_PROGRAM_SETTING.parse().unwrap();
    let relay = as_flags::<RelaySettings>(table["program"].as_table().unwrap());
    let line = "run --listen=web=127.0.0.1:0 --attach=port --ready=http:/up --check-interval=1s \
                --restart=never --stop-signal=INT --stop-timeout=2s --instances=3 --env=A=b \
                --env-file=/e --working-directory=/w --umask=0027 --stdin=web";
    let line = line.split_whitespace().map(str::to_owned).chain(relay);
    let line = line.chain(["--", "a", "b"].map(str::to_owned));
    let RunFlags { program, listen, .. } = RunLine::parse_from(line).flags;
    let listeners = listen.read().unwrap();
    let by_flags = program.into_config(SettingSource::Flags, &addresses(&listeners)).unwrap();
    assert_eq!(format!("{by_flags:?}"), format!("{:?}", with_all.program.as_ref().unwrap()));
    let with_all = described(with_all);
    for line in EVERY_PROGRAM_SETTING.lines().skip(4) {
        let without = parse(&EVERY_PROGRAM_SETTING.replace(&format!("{line}\n"), ""));
        assert!(without.map_or(true, |file| described(file) != with_all), "{line} has no effect");
    }
    let command =
        parse("[listener.web]\naddress = '@a'\n[program]\ncommand = ['a']\nready_command = ['b']");
    let ready = command.unwrap().program.unwrap().ready();
    assert_eq!(format!("{ready:?}"), "Command([\"b\"])");
}

#[test]
fn the_example_of_a_program_shows_and_explains_every_setting() {
    let short =
        "[listener.web]\naddress = '0.0.0.0:8080'\n[program]\ncommand = ['gunicorn', 'app:app']";
    assert_eq!(described(parse(PROGRAM).unwrap()), described(parse(short).unwrap()));
    let lines: Vec<_> = PROGRAM.lines().map(|line| line.trim_start_matches('#')).collect();
    let of_handoffd_toml = flags::<RelaySettings>();
    let is_here = |key: &String| !of_handoffd_toml.iter().any(|(known, ..)| known == key);
    for (key, flag, help) in
        all_flags::<ProgramSettings>().into_iter().filter(|(key, ..)| is_here(key))
    {
        let place = lines.iter().position(|line| line.starts_with(&format!("{key} = ")));
        let place = place.unwrap_or_else(|| panic!("the example has no {key}"));
        let comment = lines[..place].iter().rev().take_while(|line| line.starts_with(' '));
        let comment: Vec<_> = comment.map(|line| line.trim()).collect();
        let comment = comment.into_iter().rev().collect::<Vec<_>>().join(" ");
        match comment.rsplit_once("Default: ") {
            Some((_, default)) => {
                let default = format!("[default: {}]", default.strip_suffix('.').unwrap());
                assert!(help.ends_with(&default), "{flag} {key}: {default} is not in {help}");
            }
            None => assert!(comment.ends_with("Required."), "{key} has no default"),
        }
    }
}

#[test]
fn a_wrong_program_is_refused_at_its_place() {
    for (text, expected) in [
        ("[program]\n", "1:1: the program has no command"),
        ("program = 1\n", "1:11: not a table"),
        ("[program]\ncommand = []\n[listener.web]\naddress = '@a'", "1:1: bad command []"),
        (
            "[program]\ncommand = ['a', '{fd:api}']\n[listener.web]\naddress = '@a'",
            "1:1: there is no listener named \"api\"",
        ),
        (
            "[program]\ncommand = ['a', '{fd}']\nattach = 'port'\n[listener.web]\naddress = '@a'",
            "1:1: bad placeholder {fd}",
        ),
        (
            "[program]\ncommand = ['a', '{fd}']\nlifetime = '1s'\n[listener.web]\naddress = '@a'",
            "3:12: lifetime has no effect, because the program itself accepts connections",
        ),
        (
            "[program]\ncommand = ['a']\nproxy_header_timeout = '1s'\n[listener.web]\naddress = '@a'",
            "3:24: proxy_header_timeout has no effect on its own",
        ),
        (
            "[program]\ncommand = ['a']\nready = 'alive'\nready_command = ['b']\n\
            [listener.web]\naddress = '@a'",
            "4:18: ready and ready_command are both given",
        ),
        (
            "[program]\ncommand = ['a', '{fd}']\n[listener.web]\naddress = '@a'\n\
            max_connections = 1",
            "1:1: bad max_connections 1: expected no limit",
        ),
        (
            "[program]\ncommand = ['a']\nready = 'soon'",
            "3:9: bad ready condition \"soon\": expected notify",
        ),
        ("[program]\ncommand = ['a']\nenvironment = { '' = 'x' }", "bad variable \"\""),
        ("[program]\ncommand = ['a']\nenvironment = { 'A=B' = 'x' }", "bad variable \"A=B\""),
        (
            "[program]\ncommand = ['a']\n[listener.web]\naddress = '@a'\nservice = 'echo'",
            "5:11: the program in [program] serves",
        ),
    ] {
        let said = parse(text).unwrap_err().to_string();
        assert!(said.contains(expected), "{text:?}: {said}");
    }
}
