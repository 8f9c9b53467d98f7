//! The configuration file: what it says is served, and what is wrong with it is said with its place.
//!
//! Each generation reads it anew, so a changed file takes effect with a handoff, and a broken one with none.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use handoffd::{ConfigFile, Error, Exit};
use nix::sys::signal::Signal;

use crate::support::{Callers, Client, Line, Operator, Parent, REAL, Refusal, threads};

/// Puts a file at `FOLDER/handoffd.toml`, whole at once: a generation may read at any time. In it `$F` is the folder.
fn put(folder: &Path, text: &str) {
    let draft = folder.join("draft.toml");
    fs::write(&draft, text.replace("$F", folder.to_str().unwrap())).unwrap();
    fs::rename(draft, folder.join("handoffd.toml")).unwrap();
}

/// Serves by such a file, in its folder, with these flags beside it.
fn serve(text: &str, flags: &[&str]) -> Line {
    let line = Line::start_with(|command, folder| {
        put(folder, text);
        // By a relative path: every generation has the working directory of the first.
        command.current_dir(folder).args(["--config", "handoffd.toml", "--bake", "0"]).args(flags);
        command.arg("--control").arg(folder.join("control"));
    });
    line.wait_for(1, "serving draining");
    line
}

/// An upstream at `FOLDER/NAME.sock`, which says its name to one client after the other until it is given this word.
fn upstream(folder: &Path, name: &'static str) -> JoinHandle<()> {
    let listener = UnixListener::bind(folder.join(format!("{name}.sock"))).unwrap();
    std::thread::spawn(move || {
        loop {
            let (mut client, _) = listener.accept().unwrap();
            let mut word = [0; 4];
            client.read_exact(&mut word).unwrap();
            client.write_all(name.as_bytes()).unwrap();
            if &word == b"last" {
                return;
            }
        }
    })
}

/// Who answers at that listener.
fn who(line: &Line, listener: &str, word: &[u8; 4]) -> String {
    let mut client = Client::connect(&line.address_of(listener)).unwrap();
    client.write_all(word).unwrap();
    client.half_close().unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn echo(address: &str) {
    Client::once(address, b"who is there?").unwrap();
}

const WEB: &str = "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'echo'\n";

#[test]
fn each_listener_of_a_file_has_its_own_service_over_handoffs() {
    let line = serve(
        "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'echo'\n\
         [listener.one]\naddress = '$F/1.sock'\nservice = 'proxy'\nupstreams = ['$F/alpha.sock']\n\
         [listener.two]\naddress = '$F/2.sock'\nservice = 'proxy'\nupstreams = ['$F/beta.sock']\n",
        &[],
    );
    let upstreams = [upstream(line.folder(), "alpha"), upstream(line.folder(), "beta")];
    for generation in 1..3 {
        assert_eq!([who(&line, "one", b"name"), who(&line, "two", b"name")], ["alpha", "beta"]);
        echo(&line.address_of("web"));
        line.hand_over_from(generation);
    }
    assert_eq!([who(&line, "one", b"last"), who(&line, "two", b"last")], ["alpha", "beta"]);
    upstreams.into_iter().for_each(|upstream| upstream.join().unwrap());
}

#[test]
fn a_listener_that_a_new_file_adds_appears_and_one_that_it_leaves_out_goes() {
    let line = serve(&format!("{WEB}[listener.old]\naddress = '$F/old.sock'\nservice = 'echo'\n"), &[]);
    let (old, new) = (line.folder().join("old.sock"), line.folder().join("new.sock"));
    echo(old.to_str().unwrap());
    put(line.folder(), &format!("{WEB}[listener.new]\naddress = '$F/new.sock'\nservice = 'echo'\n"));
    let callers = Callers::start(&line.address_of("web"), 2);
    line.asked(&["reload"]).well();
    assert_eq!(line.exit_code(1), 0);
    echo(new.to_str().unwrap());
    assert!(!old.exists());
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0));
}

#[test]
fn the_service_of_a_listener_changes_with_the_file() {
    let line = serve("[listener.web]\naddress = '$F/web.sock'\nservice = 'echo'\n", &[]);
    assert_eq!(who(&line, "web", b"name"), "name");
    let proxy = |name| {
        put(
            line.folder(),
            &format!("[listener.web]\naddress = '$F/web.sock'\nservice = 'proxy'\nupstreams = ['$F/{name}.sock']\n"),
        );
        line.asked(&["reload"]).well();
    };
    let upstreams = [upstream(line.folder(), "alpha"), upstream(line.folder(), "beta")];
    proxy("alpha");
    assert_eq!(who(&line, "web", b"last"), "alpha");
    proxy("beta");
    assert_eq!(who(&line, "web", b"last"), "beta");
    upstreams.into_iter().for_each(|upstream| upstream.join().unwrap());
}

#[test]
fn a_broken_file_fails_the_reload_with_its_place_and_the_old_generation_serves_on() {
    let line = serve(WEB, &[]);
    for (broken, place) in [
        ("[listener.web]\naddress = 'nowhere'\nservice = 'echo'\n", "handoffd.toml:2:11: bad address \"nowhere\""),
        ("[listener.web\n", "handoffd.toml:1:14: "),
        ("", "handoffd.toml:1:1: there is no listener"),
        ("bake = '8d'", "handoffd.toml:1:8: bad time \"8d\": expected at most 7 days"),
    ] {
        put(line.folder(), broken);
        line.asked(&["reload"]).names(70, &["the new generation did not take over: the successor says: ", place]);
        echo(&line.address_of("web"));
    }
    fs::remove_file(line.folder().join("handoffd.toml")).unwrap();
    line.signal(1, Signal::SIGHUP);
    line.wait_for(
        1,
        "the handoff failed: the successor says: handoffd.toml: cannot read the configuration: No such file",
    );
    echo(&line.address_of("web"));
    put(line.folder(), WEB);
    line.asked(&["reload"]).well();
    echo(&line.address_of("web"));
}

#[test]
fn a_changed_file_shows_as_another_configuration() {
    let line = serve(WEB, &[]);
    let digest = || {
        let status = line.asked(&["status", "--json"]).well();
        let (_, rest) = status.split_once("\"configuration\":\"").unwrap_or_else(|| panic!("{status}"));
        rest.split('"').next().unwrap().to_owned()
    };
    let first = digest();
    line.asked(&["reload"]).well();
    assert_eq!(digest(), first, "nothing has changed");
    put(line.folder(), &format!("# a word more\n{WEB}"));
    line.asked(&["reload"]).well();
    assert_ne!(digest(), first);
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let line = serve(
        &format!("bake = '1h'\nready_timeout = '41s'\ndrain_timeout = '42s'\nworkers = 3\n{WEB}"),
        &["--drain-timeout", "43s"],
    );
    let status = line.asked(&["status", "--json"]).well();
    for word in ["\"ready_timeout_ms\":41000", "\"bake_ms\":0", "\"drain_timeout_ms\":43000"] {
        assert!(status.contains(word), "{word} is not in {status}");
    }
    let workers = threads(line.first_pid());
    let line = serve(&format!("workers = 3\n{WEB}"), &["--workers", "1"]);
    assert_eq!(threads(line.first_pid()) + 2, workers);
}

#[test]
fn the_file_says_where_commands_are_heard_and_whom_to_signal() {
    let line = Line::start_with(|command, folder| {
        put(folder, &format!("control = '$F/control'\npid_file = '$F/pid'\n{WEB}"));
        command.arg("--config").arg(folder.join("handoffd.toml"));
    });
    line.wait_for(1, "serving draining");
    line.asked(&["status"]).well();
    assert_eq!(fs::read_to_string(line.folder().join("pid")).unwrap().trim(), line.first_pid().to_string());
}

#[test]
fn a_socket_that_is_passed_in_under_the_name_of_a_listener_is_used() {
    let folder = folder();
    let socket = UnixListener::bind(folder.path().join("passed.sock")).unwrap();
    put(folder.path(), "[listener.web]\naddress = '$F/bound.sock'\nservice = 'echo'\n");
    let parent = Parent::passing([socket.into()]).saying("LISTEN_FDNAMES", "web");
    let line = parent.serve(&["--config", folder.path().join("handoffd.toml").to_str().unwrap()]);
    echo(folder.path().join("passed.sock").to_str().unwrap());
    assert!(!folder.path().join("bound.sock").exists());
    drop(line);
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs `handoffd check` in that folder.
fn check(folder: &Path, arguments: &[&str]) -> crate::support::operator::Answered {
    let mut command = Command::new(REAL);
    command.current_dir(folder).arg("check").args(arguments);
    Operator::start(command).wait()
}

#[test]
fn a_check_takes_whatever_the_daemon_takes() {
    let folder = folder();
    put(folder.path(), "[listener.web]\naddress = '127.0.0.1:1'\nservice = 'echo'\n");
    let said = check(folder.path(), &["--config", "handoffd.toml", "--bake", "2"]).well();
    assert!(said.contains("would listen on web=127.0.0.1:1"), "{said}");
    let proxy = ["proxy", "--listen", "web=127.0.0.1:1", "--to", "127.0.0.1:2", "--max-connections", "3"];
    assert!(check(folder.path(), &proxy).well().contains("web=127.0.0.1:1"));
    check(folder.path(), &["proxy", "--to", "nowhere"]).names(64, &["bad address \"nowhere\""]);
    put(folder.path(), "[listener.web]\naddress = '/no/such/folder/socket'\nservice = 'echo'\n");
    check(folder.path(), &["--config", "handoffd.toml"]).names(78, &["web", "/no/such/folder/socket", "No such file"]);
    put(folder.path(), "nope = 1");
    check(folder.path(), &["--config", "handoffd.toml"]).names(78, &["handoffd.toml:1:1: unknown field `nope`"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn what_contradicts_itself_on_the_command_line_is_named() {
    for (arguments, words) in [
        (&["--config", "a.toml", "--listen", "127.0.0.1:0"][..], &["--config", "--listen"][..]),
        (&["--config", "a.toml", "--config", "b.toml"], &["--config", "multiple times"]),
        (&["proxy", "--to", "@a", "--config", "a.toml"], &["--config"]),
        (&["proxy", "--listen", "127.0.0.1:0"], &["required", "--to"]),
        (&["proxy", "--to", "@a", "--balance", "fair"], &["--balance", "fair", "round-robin"]),
        (&["proxy", "--to", "@a", "--connect-timeout", "0"], &["--connect-timeout", "'0'", "more than zero"]),
        (&["proxy", "--to", "@a", "--max-connections", "5"], &["required", "--listen"]),
        (&["proxy", "--to", "@a", "--send-proxy-header", "v3"], &["--send-proxy-header", "v3", "v1 or v2"]),
        (&["proxy", "--to", "@a", "--to", "@a"], &["@a", "twice"]),
        (&["--workers", "0"], &["--workers", "1 to 1024"]),
    ] {
        Refusal::to(arguments).names(64, words);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("long"), "#".repeat(1024 * 1024 + 1)).unwrap();
    nix::unistd::mkfifo(path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, why) in
        [("gone", "No such file"), ("", "no regular file"), ("pipe", "no regular file"), ("long", "more than 1 MiB")]
    {
        Refusal::to(&["--config", &path(name)]).names(78, &[&path(name), "cannot read the configuration", why]);
    }
    Refusal::to(&["--config", &path("new\nline")]).names(78, &["new\\nline: cannot read"]);
    fs::write(path("latin"), b"# na\xefve\n").unwrap();
    Refusal::to(&["--config", &path("latin")]).names(78, &["latin:1:5: this is not UTF-8"]);
}

/// Lines that belong to one listener, the proxy `web`, which are 4 lines and well by themselves.
fn proxied(lines: &str) -> String {
    format!("[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['@b']\n{lines}")
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line_and_column() {
    let echo = |lines: &str| format!("[listener.web]\naddress = '@a'\nservice = 'echo'\n{lines}");
    let cases = [
        // No TOML.
        ("bake", "1:5: key with no value, expected `=`"),
        ("# one\n\nbake = '1s", "3:11: invalid literal string"),
        ("bake = 1\nbake = 2", "2:1: bake is there already, expected each once"),
        ("bake = 1\n\n[listener.web]\n[listener.web]\n", "4:11: web is there already"),
        // The daemon's settings.
        ("  nope = 1", "1:3: unknown field `nope`, expected one of `ready_timeout`, `bake`"),
        ("\"new\\nline\" = 1", "1:1: unknown field `new\\nline`"),
        ("ready_timeout = 'soon'", "1:17: bad time \"soon\": expected a time, as in 500ms"),
        ("bake = -1", "1:8: invalid value: integer `-1`, expected a time"),
        ("bake = 1.5", "1:8: invalid type: floating point `1.5`, expected a time"),
        ("bake = 2026-11-25", "1:8: invalid type: table or date, expected a time"),
        ("drain_timeout = '8d'", "1:17: bad time \"8d\": expected at most 7 days"),
        ("first_request_grace = 604801", "1:23: bad time 604801: expected at most 7 days"),
        ("max_generations = 1", "1:19: bad max-generations 1: expected 2 to 64"),
        ("max_generations = '8'", "1:19: invalid type: string \"8\", expected a whole number"),
        ("workers = 0", "1:11: bad count 0: expected a number of threads, 1 to 1024"),
        ("workers = 1025", "1:11: bad count 1025: expected a number of threads, 1 to 1024"),
        ("pid_file = ''", "1:12: bad path \"\": expected"),
        ("control = 'run/control'", "1:11: bad path \"run/control\": expected an absolute path"),
        ("log = 'handoffd=loud'", "1:7: bad filter \"handoffd=loud\": expected a filter"),
        ("metrics = 9100", "1:11: invalid type: integer `9100`, expected an address"),
        (&format!("metrics = '@a'\n{}", echo("")), "1:11: the listener \"web\" has that address, expected another"),
        // Listeners.
        ("bake = 1\n", "1:1: there is no listener, expected at least one, as in [listener.web]"),
        ("listener = 5", "1:12: this is no table, expected a table with the listener's name"),
        ("[listener]\naddress = '@a'", "2:11: this is no table, expected a table with the listener's name"),
        ("[[listener.web]]\naddress = '@a'", "1:1: this is no table"),
        ("[listener.web]\nservice = 'echo'", "1:11: the listener \"web\" has no address, expected one"),
        ("[listener.web]\naddress = '@a'", "1:11: the listener \"web\" has no service, expected \"echo\" or \"proxy\""),
        ("[listener.web]\naddress = 'web:80'", "2:11: bad address \"web:80\": expected IP:PORT"),
        ("[listener.web]\nservice = 'http'", "2:11: bad service \"http\": expected \"echo\" or \"proxy\""),
        ("[listener.'ä b']\naddress = '@a'", "1:11: bad listener name \"ä b\": a name is printable ASCII"),
        ("[listener.control]\n", "1:11: bad listener name \"control\": that is what the operator's socket is called"),
        (&echo("max_connections = 0"), "4:19: bad count 0: expected a whole number from 1"),
        (&echo("  balance = 'in-order'"), "4:13: balance is a setting of a proxy, expected service = \"proxy\""),
        (&echo("\neject_for = 1\nlifetime = 1"), "5:13: eject_for is a setting of a proxy"),
        (&echo("upstream = ['@b']"), "4:1: unknown field `upstream`, expected one of `address`"),
        (
            &echo("[listener.api]\naddress = '@a'\nservice = 'echo'"),
            "5:11: the listener \"web\" has the address @a already, expected another",
        ),
        // Proxies.
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\n",
            "1:11: the listener \"web\" has no upstreams, expected",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = []",
            "4:13: no upstream is given, expected at least one",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = '@b'",
            "4:13: invalid type: string \"@b\", expected a list",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = [\n  '@ä', 'app:80']",
            "5:9: bad address \"app:80\": expected IP:PORT",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['127.0.0.1:0']",
            "4:14: bad address \"127.0.0.1:0\": nobody can be reached at port 0",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['tcp6:[::1]:1']",
            "4:14: bad address \"tcp6:[::1]:1\": tcp6: is for listeners",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['@b', '@c', '@b']",
            "4:26: the upstream @b is there twice, expected each once",
        ),
        (
            &proxied("balance = 'fair'"),
            "5:11: bad balance \"fair\": expected round-robin, least-connections or in-order",
        ),
        (&proxied("connect_timeout = 0"), "5:19: bad time 0: expected more than zero"),
        (&proxied("connect_patience = true"), "5:20: invalid type: boolean `true`, expected a time"),
        (&proxied("idle_timeout = '0s'"), "5:16: bad time \"0s\": expected more than zero"),
        (&proxied("lifetime = '30d'"), "5:12: bad time \"30d\": expected at most 7 days"),
        (&proxied("send_proxy_header = 2"), "5:21: invalid type: integer `2`, expected \"v1\" or \"v2\""),
        (
            &proxied("accept_proxy_header_from = ['10.0.0.0/33']"),
            "5:29: bad address \"10.0.0.0/33\": expected a network",
        ),
        (&proxied("proxy_header_timeout = 1"), "5:24: proxy_header_timeout says nothing alone, expected accept_proxy"),
        (&proxied("keep_alive = '10h'"), "5:14: bad time \"10h\": expected whole seconds, 1s to 9h"),
        (&proxied("user_timeout = '1us'"), "5:16: bad time \"1us\": expected at least 1ms"),
        (&proxied("eject_after = -3"), "5:15: invalid value: integer `-3`, expected a whole number from 0"),
        (&proxied("check_timeout = 1"), "5:17: check_timeout says nothing alone, expected check_interval"),
    ];
    for (text, expected) in cases {
        let error = ConfigFile::parse(Path::new("a.toml"), text.as_bytes()).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("a.toml:{expected}")), "{text:?}: {said}");
        assert!(said.lines().count() == 1 && error.exit() == Exit::Configuration, "{text:?}: {said}");
    }
    // And the daemon says it so.
    let folder = folder();
    let path = folder.path().join("handoffd.toml");
    for (text, expected) in &cases[..10] {
        fs::write(&path, text).unwrap();
        Refusal::to(&["--config", path.to_str().unwrap()]).names(78, &[&format!("{}:{expected}", path.display())]);
    }
}

/// What is shown to every reader, and what it may be made of.
const EXAMPLE: &str = include_str!("../docs/handoffd.toml");

fn parse(text: &str) -> ConfigFile {
    ConfigFile::parse(Path::new("docs/handoffd.toml"), text.as_bytes()).unwrap()
}

/// The example with what stands behind `#` without a space taken for a setting as well.
fn with_all_settings() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|letter: char| letter.is_ascii_lowercase()) => setting.to_owned(),
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(|line| uncomment(line) + "\n").collect()
}

#[test]
fn the_example_says_the_defaults_and_what_is_required() {
    let required = "[listener.web]\naddress = '0.0.0.0:8080'\nservice = 'proxy'\n\
                    upstreams = ['127.0.0.1:9000', '/run/app.sock', '@app']\n";
    let default = ConfigFile { log: Some("info".parse().unwrap()), ..parse(required) };
    assert_eq!(format!("{:?}", parse(EXAMPLE)), format!("{default:?}"));
    parse(&with_all_settings());
}

#[test]
fn the_example_explains_every_setting_that_there_is() {
    let all = with_all_settings();
    for table in ["", "[listener.web]\n"] {
        let text = format!("{table}nope = 1");
        let said = ConfigFile::parse(Path::new("a.toml"), text.as_bytes()).unwrap_err().to_string();
        let (_, settings) = said.split_once("expected one of ").unwrap();
        let settings: Vec<_> = settings.split(", ").map(|setting| setting.trim_matches('`')).collect();
        assert!(settings.len() > 10, "{said}");
        for setting in settings.iter().filter(|setting| **setting != "listener") {
            let lines: Vec<_> = all.lines().collect();
            let place = lines.iter().position(|line| line.starts_with(&format!("{setting} = ")));
            let place = place.unwrap_or_else(|| panic!("{setting} is not there"));
            let above: Vec<_> = lines[..place].iter().rev().take_while(|line| line.starts_with("# ")).collect();
            let says = |word| above.iter().any(|line| line.contains(word));
            assert!(says("Default: ") || says("Required."), "{setting} has no default: {above:?}");
        }
    }
}

/// Every file that the fuzzer has found worth keeping.
fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config_file");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 10, "the corpus is gone");
    files
}

#[test]
fn every_file_of_the_corpus_is_served_or_refused_with_a_place_in_it() {
    for path in corpus() {
        let bytes = fs::read(&path).unwrap();
        match ConfigFile::parse(Path::new("a.toml"), &bytes) {
            Ok(file) => assert!(!file.services.is_empty(), "{}", path.display()),
            Err(error @ Error::ConfigFile { line, column, .. }) => {
                let said = error.to_string();
                assert!(said.starts_with(&format!("a.toml:{line}:{column}: ")), "{}: {said}", path.display());
                assert!(!said.contains(char::is_control), "{}: {said}", path.display());
                let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
                assert!((1..=lines.len()).contains(&line), "{}: {said}", path.display());
                assert!((1..=lines[line - 1].len() + 1).contains(&column), "{}: {said}", path.display());
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}
