//! Tests of bad input: the daemon prints one line that names the mistake. It exits with 64 or 78,
//! or with 75 if a later try may succeed. It changes nothing.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Event, Line, Refusal};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Asserts that the arguments `wrong`, added to valid ones, are rejected with `code` and `words`,
/// and that no file is created.
fn assert_refused(wrong: &[&str], code: i32, words: &[&str]) {
    let folder = folder();
    let (socket, pid_file) = (folder.path().join("well.sock"), folder.path().join("pid"));
    let well = ["--listen", socket.to_str().unwrap(), "--log", "error"];
    let pid_file = ["--pid-file", pid_file.to_str().unwrap()];
    // Leaves out valid flags that `wrong` repeats, because they may be given only once.
    let well = well.into_iter().filter(|_| !wrong.contains(&"--log"));
    let pid_file = pid_file.into_iter().filter(|_| !wrong.contains(&"--pid-file"));
    let arguments: Vec<_> = well.chain(pid_file).chain(wrong.iter().copied()).collect();
    Refusal::to(&arguments).names(code, words);
    assert!(is_empty(folder.path()), "{wrong:?} left something behind");
}

#[test]
fn an_unknown_flag_is_rejected() {
    for wrong in ["--nope", "-x", "--liste", "serve", "-1", "--no\npe"] {
        assert_refused(&[wrong], 64, &[&wrong.replace('\n', "\\n")]);
    }
}

#[test]
fn a_flag_without_a_value_or_given_twice_is_rejected() {
    for flag in [
        "--listen",
        "--ready-timeout",
        "--bake",
        "--drain-timeout",
        "--first-request-grace",
        "--pid-file",
    ] {
        assert_refused(&[flag], 64, &[flag]);
    }
    for (flag, value) in
        [("--bake", "1"), ("--max-generations", "4"), ("--pid-file", "/x"), ("--log", "info")]
    {
        assert_refused(&[flag, value, flag, value], 64, &[flag, "multiple times"]);
    }
    assert_refused(&["--pid-file", ""], 64, &["--pid-file"]);
}

#[test]
fn an_invalid_time_is_rejected() {
    for flag in ["--ready-timeout", "--bake", "--drain-timeout", "--first-request-grace"] {
        for time in ["", "soon", "1.5", "1x", "0x10", "8d", "18446744073709551616", "5 s ago"] {
            assert_refused(&[flag, time], 64, &[flag, &format!("'{time}'")]);
        }
        let negative = format!("{flag}=-1");
        assert_refused(&[&negative], 64, &[flag, "'-1'"]);
        assert_refused(&[flag, "1\n2"], 64, &[flag, "1\\n2"]);
    }
}

#[test]
fn an_invalid_count_is_rejected() {
    for count in ["", "0", "1", "65", "-2", "many", "2.5", "99999999999999999999"] {
        let flag = format!("--max-generations={count}");
        assert_refused(&[&flag], 64, &["--max-generations", &format!("'{count}'"), "2 to 64"]);
    }
}

#[test]
fn an_invalid_log_filter_is_rejected() {
    for filter in ["handoffd=loud", "inof", "handoffd", "info,inof", "info,,debug", "handoffd="] {
        assert_refused(&["--log", filter], 64, &["--log", filter, "expected error, warn, info"]);
        Refusal::to(&["check", "--log", filter]).names(64, &["--log", filter]);
        Refusal::to(&["proxy", "--to", "@a", "--log", filter]).names(64, &["--log", filter]);
    }
    assert_refused(&["--log", ""], 64, &["--log"]);
    assert_refused(&["--log-format", "xml"], 64, &["--log-format", "expected text or json"]);
}

#[test]
fn an_invalid_address_is_rejected() {
    let long = format!("/{}", "x".repeat(107));
    let wrong = [
        "",
        "80",
        ":80",
        "localhost:80",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "256.0.0.1:80",
        "::1:80",
        "[::1]",
        "tcp6:127.0.0.1:80",
        "udp:127.0.0.1:80",
        "/",
        "@",
        "unix:",
        "unix:relative.sock",
        "relative.sock",
        "/ends/with/",
        "/new\nline",
        &long,
    ];
    for address in wrong {
        assert_refused(&["--listen", address], 64, &["address", &format!("{address:?}")]);
        let named = format!("web={address}");
        assert_refused(&["--listen", &named], 64, &["address", &format!("{address:?}")]);
    }
}

#[test]
fn an_invalid_listener_name_is_rejected() {
    for name in ["", "with space", "with:colon", "new\nline", "ümlaut", &"x".repeat(256)] {
        assert_refused(
            &["--listen", &format!("{name}=127.0.0.1:0")],
            64,
            &["name", &format!("{name:?}")],
        );
    }
}

#[test]
fn a_duplicate_listener_name_or_address_is_rejected() {
    let twice = ["--listen", "web=127.0.0.1:0", "--listen", "web=127.0.0.1:0"];
    assert_refused(&twice, 64, &["named", "\"web\""]);
    for address in ["127.0.0.1:1", "/run/twice.sock", "@twice"] {
        let twice = ["--listen", address, "--listen", &format!("api={address}")];
        assert_refused(&twice, 64, &["address", address]);
    }
}

#[test]
fn overlapping_addresses_are_rejected() {
    for (one, other) in
        [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "0.0.0.0:1"), ("[::1]:1", "tcp6:[::]:1")]
    {
        let both = ["--listen", one, "--listen", &format!("web={other}")];
        assert_refused(&both, 64, &["overlapping", one, other]);
        Refusal::to(&[&["check"][..], &both].concat()).names(64, &["overlapping", one, other]);
    }
    let metrics =
        ["check", "--listen", "[::]:1", "--metrics", "127.0.0.1:1", "--control", "/run/c"];
    Refusal::to(&metrics).names(64, &["overlapping", "[::]:1", "127.0.0.1:1"]);
}

#[test]
fn a_proxy_that_is_its_own_upstream_is_rejected() {
    for (listener, upstream) in
        [("127.0.0.1:1", "127.0.0.1:1"), ("0.0.0.0:1", "127.0.0.1:1"), ("@a", "@a")]
    {
        let proxy = ["proxy", "--listen", listener, "--to", upstream];
        for arguments in [&proxy[..], &[&["check"][..], &proxy].concat()] {
            Refusal::to(arguments)
                .names(64, &[&format!("the upstream {upstream} leads back"), listener]);
        }
    }
}

#[test]
fn check_rejects_sockets_that_share_a_path() {
    let folder = folder();
    symlink(folder.path(), folder.path().join("link")).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, other) = (path("socket"), path("link/socket"));
    let both = ["check", "--listen", &format!("web={one}"), "--listen", &format!("api={other}")];
    Refusal::to(&both).names(78, &["(api)", "web has the same path"]);
    let control = ["check", "--listen", &format!("web={one}"), "--control", &other];
    Refusal::to(&control).names(78, &["(control)", "web has the same path"]);
}

#[test]
fn an_argument_that_is_not_utf8_is_rejected() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
    command.args(["--listen", "127.0.0.1:0", "--bake"]).arg(OsStr::from_bytes(b"1\xff2"));
    Refusal::of(command).names(64, &["1\\xFF2", "UTF-8"]);
}

#[test]
fn an_address_in_use_is_reported_with_its_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_refused(
        &["--listen", &format!("web={address}")],
        75,
        &[&address, "(web)", "Address already in use"],
    );
    assert_refused(
        &["--listen", &address],
        75,
        &[&address, "(listener-2)", "Address already in use"],
    );
    let name = format!("@handoffd-usage-{}", std::process::id());
    let line = Line::serve(&["--listen", &name]);
    assert_refused(&["--listen", &name], 75, &[&name, "(listener-2)", "Address already in use"]);
    line.assert_serves();
}

#[test]
fn an_address_of_another_machine_is_rejected() {
    // Addresses reserved for documentation by RFC 5737 and RFC 3849.
    for address in ["192.0.2.1:48879", "[2001:db8::1]:48879"] {
        assert_refused(
            &["--listen", &format!("web={address}")],
            75,
            &[address, "(web)", "Cannot assign"],
        );
    }
    // An interface that may appear later.
    let address = "[fe80::1%99999]:48879";
    assert_refused(
        &["--listen", &format!("web={address}")],
        75,
        &[address, "(web)", "No such device"],
    );
}

#[test]
fn a_path_in_a_missing_folder_is_rejected() {
    let folder = folder();
    let path = folder.path().join("gone/web.sock");
    let address = path.to_str().unwrap();
    assert_refused(&["--listen", address], 78, &[address, "(listener-2)", "No such file"]);
    assert!(is_empty(folder.path()));
}

#[test]
fn an_impossible_pid_file_is_rejected() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    for (pid_file, why) in [
        (path("gone/pid"), "No such file"),
        (path("file/pid"), "Not a directory"),
        (path(""), "is a directory"),
    ] {
        assert_refused(&["--pid-file", &pid_file], 78, &["pid file", &pid_file, why]);
    }
    assert_refused(&["--pid-file", &path("new\nline/pid")], 78, &["pid file", r"new\nline/pid"]);
    nix::unistd::mkfifo(path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/dev/null", path("link")).unwrap();
    for no_file in ["pipe", "link"] {
        assert_refused(
            &["--pid-file", &path(no_file)],
            78,
            &["pid file", &path(no_file), "not a regular file"],
        );
        assert!(!fs::symlink_metadata(path(no_file)).unwrap().is_file());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn an_invalid_notify_socket_is_rejected() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
    command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", "relative/socket");
    Refusal::of(command).names(78, &["NOTIFY_SOCKET", "relative/socket"]);
}

#[test]
fn a_failed_start_reports_why_even_with_the_log_off() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for filter in ["off", "tokio=info"] {
        Refusal::to(&["--log", filter, "--listen", &address]).names(75, &[&address, "in use"]);
    }
}

#[test]
fn the_predecessor_logs_bad_input_of_its_successor() {
    for (arguments, reason) in [
        ("--bake soon", "invalid value 'soon' for '--bake"),
        ("--listen nowhere", "bad address \\\"nowhere\\\""),
        ("--listen 127.0.0.1:0 --pid-file /", "cannot write the pid file \"/\""),
    ] {
        let line = Line::serve(&[]);
        line.successor_gets(arguments);
        line.signal(1, Signal::SIGHUP);
        let failed = line.wait_for(1, Event::HandoffFailed);
        assert!(failed.text.replace('\\', "").contains(&reason.replace('\\', "")), "{failed:?}");
        line.assert_serves();
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for flag in ["--help", "-h", "--version", "-V"] {
        let output = Command::new(env!("CARGO_BIN_EXE_handoffd")).arg(flag).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{flag}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("handoffd"), "{flag}");
    }
}

#[test]
fn invalid_arguments_of_a_command_are_rejected() {
    for (arguments, words) in [
        (&["reload", "--timeout", "soon"][..], &["--timeout", "soon", "expected a time"][..]),
        (&["reload", "--expect-generation", "0"], &["--expect-generation", "0", "1 or higher"]),
        (&["reload", "now"], &["unexpected argument 'now'"]),
        (&["status", "--bake", "1s"], &["unexpected argument '--bake'"]),
        (&["levitate"], &["levitate"]),
        (&["--control", "relative"], &["--control", "relative", "absolute path"]),
        (&["--listen", "control=127.0.0.1:0"], &["control", "reserved for the control socket"]),
    ] {
        Refusal::to(arguments).names(64, words);
    }
}
