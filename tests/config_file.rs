//! Tests of the configuration file: its settings take effect, and errors are reported with their
//! position.
//!
//! Each generation reads the file again. A changed file therefore takes effect with the next
//! handoff, and a broken file never does.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::{
    Callers, Client, Event, Line, SLOW_DRAIN, assert_becomes, free_port, threads,
};

/// Replaces `FOLDER/handoffd.toml` atomically, because a generation may read it at any time. In the
/// text, `$F` stands for the folder.
pub(crate) fn put(folder: &Path, text: &str) {
    let draft = folder.join("draft.toml");
    fs::write(&draft, text.replace("$F", folder.to_str().unwrap())).unwrap();
    fs::rename(draft, folder.join("handoffd.toml")).unwrap();
}

/// Starts the daemon with this file in its folder and with these flags.
pub(crate) fn serve(text: &str, flags: &[&str]) -> Line {
    let line = Line::start_with(|command, folder| {
        put(folder, text);
        // The path is relative: every generation has the first one's working directory.
        command.current_dir(folder).args(["--config", "handoffd.toml", "--bake", "0"]).args(flags);
        command.arg("--control").arg(folder.join("control"));
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Starts an upstream at `FOLDER/NAME.sock`. It replies with its name to each client in turn, and
/// stops after a request of `last`.
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

/// Sends `word` to this listener and returns the name in the reply.
fn who(line: &Line, listener: &str, word: &[u8; 4]) -> String {
    let mut client = Client::connect(&line.address_of(listener)).unwrap();
    client.write_all(word).unwrap();
    client.half_close().unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn echo(address: &str) {
    Client::once(address, b"who is there?").unwrap();
}

pub(crate) const WEB: &str = "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'echo'\n";

/// Two proxies keep their own upstreams across handoffs.
#[test]
fn each_listener_keeps_its_service_across_handoffs() {
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
fn a_new_file_adds_and_removes_listeners() {
    let line =
        serve(&format!("{WEB}[listener.old]\naddress = '$F/old.sock'\nservice = 'echo'\n"), &[]);
    let (old, new) = (line.folder().join("old.sock"), line.folder().join("new.sock"));
    echo(old.to_str().unwrap());
    put(
        line.folder(),
        &format!("{WEB}[listener.new]\naddress = '$F/new.sock'\nservice = 'echo'\n"),
    );
    let callers = Callers::start(&line.address_of("web"), 2);
    line.asked(&["reload"]).well();
    assert_eq!(line.exit_code(1), 0);
    echo(new.to_str().unwrap());
    assert!(!old.exists());
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0));
}

/// Draining generations close a removed listener too. It can be added again later.
#[test]
fn a_removed_listener_is_closed_and_can_return() {
    let api = format!("127.0.0.1:{}", free_port());
    let both = format!("{WEB}[listener.api]\naddress = '{api}'\nservice = 'echo'\n");
    let line = serve(&both, &[&SLOW_DRAIN[..], &["--no-carry"]].concat());
    let held = line.hold();
    line.asked(&["reload"]).well();
    line.wait_for(1, Event::DrainStarted);
    put(line.folder(), WEB);
    line.asked(&["reload"]).well();
    assert_eq!(line.exit_code(2), 0);
    assert_becomes(&true, || Client::connect(&api).is_err());
    put(line.folder(), &both);
    line.asked(&["reload"]).well();
    assert_eq!(line.exit_code(3), 0);
    echo(&api);
    // The first generation may still have to resume. Then it accepts only on the listeners that it
    // still has.
    line.signal(4, Signal::SIGKILL);
    line.wait_for(1, Event::GenerationResumed);
    echo(&line.address_of("web"));
    assert_becomes(&true, || Client::connect(&api).is_err());
    drop(held);
}

#[test]
fn a_new_file_changes_a_listeners_service() {
    let line = serve("[listener.web]\naddress = '$F/web.sock'\nservice = 'echo'\n", &[]);
    assert_eq!(who(&line, "web", b"name"), "name");
    let proxy = |name| {
        put(
            line.folder(),
            &format!(
                "[listener.web]\naddress = '$F/web.sock'\nservice = 'proxy'\nupstreams = ['$F/{name}.sock']\n"
            ),
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

/// The error includes the position in the file, and the old generation keeps serving.
#[test]
fn a_broken_file_fails_the_reload() {
    let line = serve(WEB, &[]);
    for (broken, place) in [
        (
            "[listener.web]\naddress = 'nowhere'\nservice = 'echo'\n",
            "handoffd.toml:2:11: bad address \"nowhere\"",
        ),
        ("[listener.web\n", "handoffd.toml:1:14: "),
        ("", "handoffd.toml:1:1: no listener is configured"),
        ("bake = '8d'", "handoffd.toml:1:8: bad time \"8d\": expected at most 7 days"),
    ] {
        put(line.folder(), broken);
        line.asked(&["reload"]).names(
            70,
            &["the new generation did not take over: the new process reported an error: ", place],
        );
        echo(&line.address_of("web"));
    }
    fs::remove_file(line.folder().join("handoffd.toml")).unwrap();
    line.signal(1, Signal::SIGHUP);
    line.wait_for(
        1,
        Event::HandoffFailed.mentioning(
            "the new process reported an error: handoffd.toml: cannot read the configuration: No \
            such file",
        ),
    );
    echo(&line.address_of("web"));
    put(line.folder(), WEB);
    line.asked(&["reload"]).well();
    echo(&line.address_of("web"));
}

#[test]
fn a_changed_file_changes_the_configuration_digest() {
    let line = serve(WEB, &[]);
    let digest = || {
        let status = line.asked(&["status", "--json"]).well();
        let (_, rest) =
            status.split_once("\"configuration\":\"").unwrap_or_else(|| panic!("{status}"));
        rest.split('"').next().unwrap().to_owned()
    };
    let first = digest();
    line.asked(&["reload"]).well();
    assert_eq!(digest(), first, "the file has not changed");
    put(line.folder(), &format!("# a word more\n{WEB}"));
    line.asked(&["reload"]).well();
    assert_ne!(digest(), first);
}

#[test]
fn flags_override_the_file_and_the_file_the_defaults() {
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

/// Returns how many connections of a listener were carried and how many drained.
fn became(line: &Line, listener: &str) -> [u64; 2] {
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    ["carried", "drained"]
        .map(|name| status["counters"]["listeners"][listener][name].as_u64().unwrap())
}

/// Connects a client and completes one request.
fn served(address: &str) -> Client {
    let mut client = Client::connect(address).unwrap();
    client.echo(b"before").unwrap();
    client
}

/// Replaces the first generation, and waits until it has carried or drained all its connections.
fn replace_the_first(line: &Line) {
    line.asked(&["reload", "--wait-drained"]).well();
    assert_eq!(line.exit_code(1), 0);
}

/// A listener's own `carry` wins over the general setting. A flag wins over the general setting in
/// the file.
#[test]
fn each_listener_carries_as_configured() {
    let listener = |name: &str, says: &str| {
        format!("[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'echo'\n{says}\n")
    };
    let listeners = [
        listener("silent", ""),
        listener("gives", "carry = true"),
        listener("keeps", "carry = false"),
    ]
    .concat();
    for (general, flags, silent) in [
        ("", &[][..], [1, 0]),
        ("carry = false\n", &[], [0, 1]),
        ("", &["--no-carry"], [0, 1]),
        ("carry = true\n", &["--no-carry"], [0, 1]),
        ("carry = false\n", &["--carry"], [1, 0]),
    ] {
        let line = serve(&format!("{general}{listeners}"), flags);
        let mut clients =
            ["silent", "gives", "keeps"].map(|name| (name, served(&line.address_of(name))));
        replace_the_first(&line);
        for ((name, client), expected) in clients.iter_mut().zip([silent, [1, 0], [0, 1]]) {
            assert_eq!(became(&line, name), expected, "{name} with {general:?} and {flags:?}");
            if expected == [1, 0] {
                client.echo(b"after").unwrap();
            } else {
                client.expect_end().unwrap();
            }
        }
    }
}

#[test]
fn a_reload_that_changes_carry_still_drains() {
    let line = serve(&format!("carry = false\n{WEB}"), &[]);
    let web = line.address_of("web");
    for (text, carries) in
        [("carry = true", false), ("carry = true", true), ("carry = false", false)]
    {
        put(line.folder(), &format!("{text}\n{WEB}"));
        let mut client = served(&web);
        let [carried, drained] = became(&line, "web");
        line.asked(&["reload", "--wait-drained"]).well();
        let expected = if carries { [carried + 1, drained] } else { [carried, drained + 1] };
        assert_becomes(&expected, || became(&line, "web"));
        if carries {
            client.echo(b"after").unwrap();
            client.half_close().unwrap();
        }
        client.expect_end().unwrap();
    }
}
