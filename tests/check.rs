//! Tests of `handoffd check`: it validates the daemon's command line and file, and names each
//! error.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::config_file::put;
use crate::support::{Operator, REAL, Refusal};

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs `handoffd check` in this folder.
pub(crate) fn check(folder: &Path, arguments: &[&str]) -> crate::support::operator::Answered {
    let mut command = Command::new(REAL);
    command.current_dir(folder).arg("check").args(arguments);
    Operator::start(command).wait()
}

#[test]
fn a_check_accepts_every_valid_daemon_configuration() {
    let folder = folder();
    put(folder.path(), "[listener.web]\naddress = '127.0.0.1:1'\nservice = 'echo'\n");
    let said = check(folder.path(), &["--config", "handoffd.toml", "--bake", "2"]).well();
    assert!(said.contains("would listen on web=127.0.0.1:1"), "{said}");
    let proxy =
        ["proxy", "--listen", "web=127.0.0.1:1", "--to", "127.0.0.1:2", "--max-connections", "3"];
    assert!(check(folder.path(), &proxy).well().contains("web=127.0.0.1:1"));
    let carry = [
        &["--carry"][..],
        &["--config", "handoffd.toml", "--carry"],
        &["proxy", "--to", "@a", "--carry"],
    ];
    carry.iter().for_each(|flags| drop(check(folder.path(), flags).well()));
    check(folder.path(), &["proxy", "--to", "nowhere"]).names(64, &["'nowhere'", "--to"]);
    put(folder.path(), "[listener.web]\naddress = '/no/such/folder/socket'\nservice = 'echo'\n");
    check(folder.path(), &["--config", "handoffd.toml"])
        .names(78, &["web", "/no/such/folder/socket", "No such file"]);
    put(folder.path(), "nope = 1");
    check(folder.path(), &["--config", "handoffd.toml"])
        .names(78, &["handoffd.toml:1:1: unknown field `nope`"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

/// The start refuses these paths too (see `unix_paths.rs` and `pid_file.rs`).
#[test]
fn a_check_finds_a_file_in_the_way_of_a_socket() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "precious").unwrap();
    nix::unistd::mkfifo(path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    // A parent such as systemd may pass the socket.
    std::os::unix::fs::symlink("old.sock", path("link.sock")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(path("old.sock")).unwrap());
    for flag in ["--listen", "--control"] {
        for name in ["file", "pipe", "dangling", "link"] {
            check(folder.path(), &[flag, &path(name)])
                .names(78, &[&path(name), "a file that is not a socket"]);
        }
        for name in ["old.sock", "link.sock"] {
            check(folder.path(), &[flag, &path(name)]).well();
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 6);
}

#[test]
fn a_stop_timeout_beyond_the_drain_timeout_is_refused() {
    let folder = folder();
    let run = |flags: &[&str]| {
        let listen = ["run", "--listen", "web=127.0.0.1:1"];
        check(folder.path(), &[&listen, flags, &["--", "sh", "{port}"]].concat())
    };
    let words = ["--stop-timeout has no effect beyond --drain-timeout (30s)"];
    run(&["--stop-timeout", "31s"]).names(64, &words);
    run(&["--stop-timeout", "31s", "--drain-timeout", "31s"]).well();
    run(&["--drain-timeout", "1s"]).well();
    let program = "command = ['sh', '{port}']\nstop_timeout = '31s'";
    put(folder.path(), &format!("[listener.web]\naddress = '127.0.0.1:1'\n[program]\n{program}"));
    let config = ["--config", "handoffd.toml"];
    check(folder.path(), &config).names(78, &[":5:16: stop_timeout has no effect beyond"]);
    check(folder.path(), &[&config[..], &["--drain-timeout", "31s"]].concat()).well();
}

#[test]
fn contradictory_flags_are_named() {
    for (arguments, words) in [
        (&["--config", "a.toml", "--listen", "127.0.0.1:0"][..], &["--config", "--listen"][..]),
        (&["--config", "a.toml", "--config", "b.toml"], &["--config", "multiple times"]),
        (&["proxy", "--to", "@a", "--config", "a.toml"], &["--config"]),
        (&["proxy", "--listen", "127.0.0.1:0"], &["required", "--to"]),
        (&["proxy", "--to", "@a", "--balance", "fair"], &["--balance", "fair", "round-robin"]),
        (
            &["proxy", "--to", "@a", "--connect-timeout", "0"],
            &["--connect-timeout", "'0'", "more than zero"],
        ),
        (&["proxy", "--to", "@a", "--max-connections", "5"], &["required", "--listen"]),
        (
            &["proxy", "--to", "@a", "--send-proxy-header", "v3"],
            &["--send-proxy-header", "v3", "v1 (text) or v2"],
        ),
        (&["proxy", "--to", "@a", "--to", "@a"], &["@a", "twice"]),
        (
            &["--metrics", "127.0.0.1:0", "--control", "/run/c"],
            &["--metrics", "--listen", "--config"],
        ),
        (&["--workers", "0"], &["--workers", "1 to 1024"]),
        (&["--ready-timeout", "0"], &["--ready-timeout", "more than zero"]),
        (&["reload", "--timeout", "0s"], &["--timeout", "more than zero"]),
        (&["--carry", "--no-carry"], &["--carry", "--no-carry", "cannot be used with"]),
        (&["--carry", "--carry"], &["--carry", "multiple times"]),
        (&["--carry=yes"], &["--carry", "yes"]),
    ] {
        Refusal::to(arguments).names(64, words);
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("long"), "#".repeat(1024 * 1024 + 1)).unwrap();
    nix::unistd::mkfifo(path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, why) in [
        ("gone", "No such file"),
        ("", "not a regular file"),
        ("pipe", "not a regular file"),
        ("long", "larger than 1 MiB"),
    ] {
        check(folder.path(), &["--config", &path(name)])
            .names(78, &["cannot read the configuration", why]);
        Refusal::to(&["--config", &path(name)])
            .names(78, &[&path(name), "cannot read the configuration", why]);
    }
    for of_kernel in ["/proc/kmsg", "/proc/self/status", "/dev/zero", "/dev/stdin"] {
        check(folder.path(), &["--config", of_kernel])
            .names(78, &[of_kernel, "not a regular file"]);
    }
    Refusal::to(&["--config", &path("new\nline")]).names(78, &["new\\nline: cannot read"]);
    fs::write(path("latin"), b"# na\xefve\n").unwrap();
    Refusal::to(&["--config", &path("latin")]).names(78, &["latin:1:5: not UTF-8"]);
}

#[test]
fn check_names_what_is_wrong_with_a_program() {
    for (arguments, words) in [
        (&["--", "no-such-program"][..], &["no-such-program", "not found in PATH"][..]),
        (&["--", "/etc/passwd"], &["/etc/passwd", "Permission denied"]),
        (&["--env-file", "/nonexistent", "--", "true"], &["/nonexistent", "No such file"]),
        (&["--env-file", "/dev/zero", "--", "true"], &["/dev/zero", "not a regular file"]),
        (&["--working-directory", "/nonexistent", "--", "true"], &["/nonexistent"]),
        (&["--working-directory", REAL, "--", "true"], &[REAL, "Not a directory"]),
        (&["--ready-command", "no-such-check", ";", "--", "true"], &["no-such-check"]),
    ] {
        let line = ["check", "run", "--listen", "web=127.0.0.1:0"];
        Refusal::to(&[&line[..], arguments].concat()).names(78, words);
    }
    for (arguments, code, words) in [
        (&["--", "true", "{fd:api}"][..], 78, &["api"][..]),
        (&["--attach", "port", "--", "true", "{fd}"], 64, &["{fd}", "inherits the listeners"]),
        (&["--attach", "socket", "--", "true", "{port}"], 64, &["{port}", "private port"]),
        (&["--ready", "descriptor:3", "--", "true", "{fd}"], 64, &["descriptor:3", "above"]),
        (&["--stdin", "api", "--", "true"], 78, &["api"]),
        (&["--instances", "0", "--", "true"], 64, &["--instances"]),
        (&["--instances", "1025", "--", "true"], 64, &["--instances"]),
        (
            &["--attach", "inherit", "--ready", "connect", "--", "true"],
            64,
            &["the old program may"],
        ),
        (&["--check-interval", "1s", "--", "true", "{fd}"], 64, &["cannot be checked again"]),
        (&["--lifetime", "1s", "--", "true", "{fd}"], 64, &["--lifetime has no effect"]),
        (&["--max-connections", "7", "--", "true", "{fd}"], 64, &["max_connections 7"]),
        (&["--ready", "alive", "--ready-command", "b", ";", "--", "a"], 64, &["both given"]),
        (&["--ready", "after:28s", "--", "true"], 64, &["28 s", "ready_timeout of 30 s"]),
        (&["--ready", "soon", "--", "true"], 64, &["--ready", "expected notify"]),
        (&["--stop-signal", "STOP", "--", "true"], 64, &["--stop-signal"]),
        (&["--env", "=x", "--", "true"], 64, &["--env", "NAME=VALUE"]),
        (&[], 64, &["PROGRAM"]),
    ] {
        let line = ["run", "--listen", "web=127.0.0.1:0"];
        Refusal::to(&[&["check"][..], &line, arguments].concat()).names(code, words);
        // The daemon refuses it as well, before it binds a listener or starts a program.
        Refusal::to(&[&line[..], arguments].concat()).names(code, words);
    }
}
