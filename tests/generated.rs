//! The shell completions and the man pages cover every flag of every command in `--help`.

use std::fs;
use std::process::Command;

use crate::support::{REAL, Refusal};

/// A command, and what its `--help` shows.
#[derive(Debug)]
struct Help {
    /// The words of the command, such as `check proxy`; empty for the daemon.
    words: Vec<String>,
    subcommands: Vec<String>,
    /// The long flags, without their dashes.
    flags: Vec<String>,
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Returns the standard output of a command, which succeeds.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the help of a command and of all commands below it.
fn help_of(words: &[String]) -> Vec<Help> {
    let text = output(Command::new(REAL).args(words).arg("--help"));
    let section = |title: &'static str| {
        let lines = text.lines().skip_while(move |line| *line != title).skip(1);
        lines.take_while(|line| line.is_empty() || line.starts_with(' '))
    };
    let subcommands: Vec<_> = section("Commands:")
        .filter_map(|line| line.split_whitespace().next())
        .map(ToOwned::to_owned)
        .collect();
    let flags: Vec<_> = section("Options:")
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split("--").nth(1)?.split([' ', '[']).next().map(ToOwned::to_owned))
        .collect();
    assert!(flags.contains(&"help".to_owned()), "{text}");
    let below =
        subcommands.iter().flat_map(|name| help_of(&[words, std::slice::from_ref(name)].concat()));
    let below: Vec<_> = below.collect();
    let mut all = vec![Help { words: words.to_vec(), subcommands, flags }];
    all.extend(below);
    all
}

/// Returns the help of the daemon and of all commands.
fn every_command() -> Vec<Help> {
    let all = help_of(&[]);
    assert!(all.iter().any(|help| help.words == ["check", "proxy"]), "{all:?}");
    all
}

fn completions(shell: &str) -> String {
    output(Command::new(REAL).args(["completions", shell]))
}

#[test]
fn bash_completes_every_flag_of_every_command() {
    let folder = folder();
    let script = folder.path().join("handoffd.bash");
    fs::write(&script, completions("bash")).unwrap();
    let complete = |words: &[String], started: &str| {
        let ask = "source \"$1\"; started=$2; shift 2; COMP_WORDS=(handoffd \"$@\" \"$started\")
            COMP_CWORD=$(($# + 1)); _handoffd handoffd \"$started\" \"\"
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        output(bash.args(["-c", ask, "bash"]).arg(&script).arg(started).args(words))
    };
    for Help { words, subcommands, flags } in every_command() {
        let offered = complete(&words, "--");
        let mut offered: Vec<_> = offered.lines().collect();
        let mut expected: Vec<_> = flags.iter().map(|flag| format!("--{flag}")).collect();
        offered.sort_unstable();
        expected.sort_unstable();
        assert_eq!(offered, expected, "{words:?}");
        for name in subcommands {
            assert!(complete(&words, &name).lines().any(|offer| offer == name), "{words:?} {name}");
        }
    }
}

#[test]
fn zsh_completes_every_flag_of_every_command() {
    let script = completions("zsh");
    for Help { words, flags, .. } in every_command() {
        let mut rest = script.split_once("_arguments ").unwrap().1;
        for word in &words {
            let start = format!("({word})\n_arguments ");
            rest = rest.split_once(&start).unwrap_or_else(|| panic!("{words:?} is missing")).1;
        }
        let block = rest.split("&& ret=0").next().unwrap();
        for flag in flags {
            let is_there = [format!("--{flag}["), format!("--{flag}=[")]
                .iter()
                .any(|spec| block.contains(spec.as_str()));
            assert!(is_there, "{words:?} --{flag}: {block}");
        }
    }
}

#[test]
fn fish_completes_every_flag_of_every_command() {
    let script = completions("fish");
    for Help { words, subcommands, flags } in every_command() {
        let condition = match (&words[..], &subcommands[..]) {
            ([], _) => "__fish_handoffd_needs_command\"".to_owned(),
            ([word], []) => format!("__fish_handoffd_using_subcommand {word}\""),
            ([word], _) => format!("__fish_handoffd_using_subcommand {word}; and not "),
            ([word, below], _) => format!(
                "__fish_handoffd_using_subcommand {word}; and __fish_seen_subcommand_from {below}\""
            ),
            _ => panic!("this test does not know how fish finds {words:?}"),
        };
        let start = format!("complete -c handoffd -n \"{condition}");
        let lines: Vec<_> = script.lines().filter(|line| line.starts_with(&start)).collect();
        for flag in flags {
            let option = format!(" -l {flag} ");
            assert!(lines.iter().any(|line| line.contains(&option)), "{words:?} --{flag}");
        }
        for name in subcommands {
            let argument = format!(" -a \"{name}\" ");
            assert!(lines.iter().any(|line| line.contains(&argument)), "{words:?} {name}");
        }
    }
}

#[test]
fn every_command_has_a_man_page_with_every_flag() {
    let folder = folder();
    assert_eq!(output(Command::new(REAL).arg("man").arg(folder.path())), "");
    let all = every_command();
    for Help { words, flags, .. } in &all {
        let name = [&["handoffd".to_owned()], &words[..]].concat().join("-");
        let page = fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1 ")), "{page}");
        for flag in flags {
            let option = format!("\\fB\\-\\-{}\\fR", flag.replace('-', "\\-"));
            let options = page.split("\n.SH OPTIONS\n").nth(1).unwrap();
            assert!(options.contains(&option), "{name} --{flag}: {options}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), all.len());
    let page = fs::read_to_string(folder.path().join("handoffd.1")).unwrap();
    assert!(page.contains("\nExit codes:\n   0  "), "{page}");
}

#[test]
fn a_shell_or_a_man_directory_that_is_wrong_is_named() {
    Refusal::to(&["completions"]).names(64, &["<SHELL>"]);
    Refusal::to(&["completions", "tcsh"]).names(64, &["'tcsh'", "expected bash, zsh or fish"]);
    Refusal::to(&["completions", "bash", "zsh"]).names(64, &["'zsh'"]);
    Refusal::to(&["man"]).names(64, &["<DIR>"]);
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    for (directory, why) in [(path("gone"), "No such file"), (path("file"), "Not a directory")] {
        Refusal::to(&["man", &directory]).names(74, &["man page", &directory, why]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
