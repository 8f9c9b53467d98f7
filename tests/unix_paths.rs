//! Tests of the path of a Unix socket: it keeps its inode over all handoffs, and the last
//! generation that bound it removes it.
//!
//! A path outlives its socket. So the daemon could leave a dead file behind, or remove a live one.
//! These tests rule out both.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::config_file::put;
use crate::support::{Client, Event, Line, Parent, Refusal, freeze, signal, thaw};

fn serve(arguments: &[&str]) -> (Line, PathBuf) {
    let line = Line::start_with(|command, folder| {
        command.args(["--listen", &format!("web={}/web.sock", folder.display())]).args(arguments);
    });
    line.wait_for(1, Event::GenerationServing);
    let path = line.folder().join("web.sock");
    (line, path)
}

/// Returns the attributes that an operator may have set or that a client may rely on.
fn identity(path: &Path) -> (u64, u64, u32, u32, u32) {
    let status = fs::symlink_metadata(path).unwrap();
    assert!(status.file_type().is_socket());
    (status.dev(), status.ino(), status.uid(), status.gid(), status.mode())
}

fn echo(path: &Path) {
    Client::once(path.to_str().unwrap(), b"at the same path").unwrap();
}

/// The last generation unlinks the path.
#[test]
fn a_path_keeps_inode_owner_and_mode_over_handoffs() {
    let (line, path) = serve(&["--bake", "0"]);
    // An operator changes owner and mode after the start. Only root may give a file away.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    if nix::unistd::geteuid().is_root() {
        chown(&path, Some(1), Some(2)).unwrap();
    }
    let before = identity(&path);
    for generation in 1..4 {
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(identity(&path), before, "the path changed when generation {generation} ended");
        echo(&path);
    }
    line.signal(4, Signal::SIGTERM);
    assert_eq!(line.exit_code(4), 0);
    assert!(!path.exists(), "the last generation left its path behind");
}

#[test]
fn every_way_to_stop_unlinks_the_path() {
    for stop in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let (line, path) = serve(&[]);
        line.signal(1, stop);
        assert_eq!(line.exit_code(1), 0);
        assert!(!path.exists(), "{stop}");
    }
}

#[test]
fn a_successor_that_is_rolled_back_leaves_the_path() {
    let (line, path) = serve(&["--bake", "1h"]);
    let before = identity(&path);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(identity(&path), before);
    echo(&path);
}

/// The order in which the two generations are told to stop does not matter.
#[test]
fn a_stop_during_the_bake_unlinks_the_path() {
    for first in [1, 2] {
        let (line, path) = serve(&["--bake", "1h"]);
        line.signal(1, Signal::SIGHUP);
        line.wait_for(1, Event::SuccessorReady);
        line.signal(first, Signal::SIGTERM);
        if first == 1 {
            line.wait_for(2, Event::GenerationServing);
        } else {
            line.wait_for(1, Event::HandoffFailed);
        }
        assert!(path.exists());
        line.signal(3 - first, Signal::SIGTERM);
        line.wait_for_end();
        assert!(!path.exists());
    }
}

/// Both generations may be told to end at the same moment, as by `kill -- -PGID`. At least one of
/// them must learn that the whole service stops.
#[test]
fn a_stop_of_both_generations_in_the_bake_leaves_no_file() {
    for (first, stop) in [1, 2].into_iter().cycle().zip([Signal::SIGQUIT; 6]) {
        let line = Line::start_with(|command, folder| {
            let at = |name: &str| folder.join(name).display().to_string();
            command.args(["--bake", "1h", "--listen", &format!("web={}", at("web.sock"))]);
            command.args(["--control", &at("control"), "--pid-file", &at("pid")]);
        });
        line.wait_for(1, Event::GenerationServing);
        line.signal(1, Signal::SIGHUP);
        line.wait_for(1, Event::SuccessorReady);
        let pids = [line.pid_of(first), line.pid_of(3 - first)];
        // Each process handles its signal before it can read what the other one says of it.
        pids.into_iter().for_each(freeze);
        pids.into_iter().for_each(|pid| signal(pid, stop));
        pids.into_iter().for_each(thaw);
        line.wait_for_end();
        assert_eq!(files(&line), ["handoffd"], "{}", line.text());
    }
}

/// Makes the next generation a program that never becomes ready. It also binds `extra.sock`.
fn successor_never_becomes_ready(line: &Line, ready_timeout: &str) {
    line.put_script(&format!(
        "exec \"$REAL\" run --log debug --ready-timeout {ready_timeout} --attach inherit \
        --listen web=$FOLDER/web.sock --listen extra=$FOLDER/extra.sock \
        --ready-command false ';' -- sleep 1000"
    ));
}

#[test]
fn a_stop_before_readiness_removes_the_new_paths() {
    for stop in [Signal::SIGTERM, Signal::SIGQUIT] {
        let (line, path) = serve(&[]);
        successor_never_becomes_ready(&line, "1h");
        line.signal(1, Signal::SIGHUP);
        line.wait_for(2, Event::ListenerBound);
        assert!(path.exists() && line.folder().join("extra.sock").exists());
        line.signal(1, stop);
        line.wait_for_end();
        assert_eq!(files(&line), ["handoffd"], "{}", line.text());
    }
}

#[test]
fn a_successor_that_fails_removes_the_new_paths() {
    let (line, path) = serve(&[]);
    successor_never_becomes_ready(&line, "200ms");
    line.fail_to_hand_over_from(1);
    line.wait_for(2, Event::ProcessFailed);
    assert!(!line.folder().join("extra.sock").exists(), "{}", line.text());
    echo(&path);
}

/// Returns the names of the files in the folder of `line`.
fn files(line: &Line) -> Vec<std::ffi::OsString> {
    fs::read_dir(line.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// The first generation still drains when its successor is killed, and ends last.
#[test]
fn the_predecessor_of_a_killed_successor_unlinks_the_path() {
    let (line, path) =
        serve(&["--bake", "1h", "--first-request-grace", "1h", "--drain-timeout", "1h"]);
    // This client sends nothing, so the first generation keeps draining.
    let silent = Client::connect(path.to_str().unwrap()).unwrap();
    echo(&path);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(1, Signal::SIGTERM);
    line.wait_for(2, Event::GenerationServing);
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::HandoffFailed);
    drop(silent);
    assert_eq!(line.exit_code(1), 0);
    assert!(!path.exists());
}

#[test]
fn a_path_that_the_successor_no_longer_uses_is_unlinked() {
    let (line, path) = serve(&["--bake", "0", "--listen", "127.0.0.1:0"]);
    line.successor_gets("--listen 127.0.0.1:0");
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    assert!(!path.exists());
}

/// `/var/run` is a link to `/run`. Writing a path the other way changes nothing.
#[test]
fn an_equivalent_path_keeps_its_socket() {
    let put_paths = |folder: &Path, name: &str| {
        let at = folder.join(name).display().to_string();
        let listener = format!("[listener.web]\naddress = \"{at}/web.sock\"\nservice = \"echo\"\n");
        put(folder, &format!("control = \"{at}/control\"\n{listener}"));
    };
    let line = Line::start_with(|command, folder| {
        fs::create_dir(folder.join("run")).unwrap();
        std::os::unix::fs::symlink("run", folder.join("var-run")).unwrap();
        put_paths(folder, "run");
        command.current_dir(folder).args(["--config", "handoffd.toml", "--bake", "0"]);
    });
    line.wait_for(1, Event::GenerationServing);
    let at = |name: &str| line.folder().join(name);
    let before = [identity(&at("run/web.sock")), identity(&at("run/control"))];
    for (generation, name) in [(1, "var-run"), (2, "run")] {
        put_paths(line.folder(), name);
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!([identity(&at("run/web.sock")), identity(&at("run/control"))], before);
        echo(&at("run/web.sock"));
    }
    line.signal(3, Signal::SIGTERM);
    assert_eq!(line.exit_code(3), 0);
    assert!(!at("run/web.sock").exists() && !at("run/control").exists());
}

#[test]
fn a_path_that_a_parent_bound_is_never_unlinked() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("parent.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let before = identity(&path);
    let arguments = ["--bake", "0", "--listen", &format!("web={}", path.display())];
    let line = Parent::passing([socket.into()]).saying("LISTEN_FDNAMES", "web").serve(&arguments);
    echo(&path);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    echo(&path);
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(identity(&path), before);
}

/// Another process replaced the socket while the daemon ran.
#[test]
fn a_foreign_socket_at_the_path_is_not_unlinked() {
    let (line, path) = serve(&["--bake", "0"]);
    line.hand_over_from(1);
    fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    let before = identity(&path);
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(identity(&path), before);
    drop(theirs);
}

#[test]
fn the_path_of_a_killed_daemon_is_reused_at_the_next_start() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock");
    let start = || {
        let line = Line::start_with(|command, _| {
            command.args(["--listen", path.to_str().unwrap()]);
        });
        line.wait_for(1, Event::GenerationServing);
        line
    };
    let line = start();
    signal(line.first_pid(), Signal::SIGKILL);
    assert_eq!(line.exit_code(1), 128 + 9);
    assert!(path.exists(), "a killed process cannot unlink its path");
    let line = start();
    echo(&path);
    line.signal(1, Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    assert!(!path.exists());
}

#[test]
fn a_path_that_a_living_daemon_serves_is_rejected() {
    let (_line, path) = serve(&[]);
    let before = identity(&path);
    let address = path.to_str().unwrap();
    Refusal::to(&["--listen", address]).names(75, &[address, "(listener-1)", "in use"]);
    assert_eq!(identity(&path), before);
    echo(&path);
}

/// The owner cannot accept a test connection, but it is alive. Its path stays.
#[test]
fn a_path_whose_owner_has_a_full_backlog_is_rejected() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("busy.sock");
    let busy = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waiting = Client::connect(path.to_str().unwrap()).unwrap();
    let before = identity(&path);
    Refusal::to(&["--listen", path.to_str().unwrap()]).names(75, &["busy.sock", "in use"]);
    assert_eq!(identity(&path), before);
}

/// Between bind(2) and listen(2) a socket refuses every client, like the path of a dead process.
#[test]
fn a_bound_path_that_does_not_listen_yet_is_left() {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("early.sock");
    let early =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(early.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let before = identity(&path);
    let address = path.to_str().unwrap();
    Refusal::to(&["--listen", address]).names(75, &[address, "(listener-1)", "in use"]);
    let as_control =
        Refusal::to(&["--log", "off", "--listen", "127.0.0.1:0", "--control", address]);
    as_control.names(75, &[address, "(control)", "in use"]);
    assert_eq!(identity(&path), before);
    listen(&early, Backlog::new(5).unwrap()).unwrap();
    Client::connect(address).unwrap();
}

#[test]
fn a_path_that_is_not_a_stream_socket_is_rejected() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::create_dir(at("directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
    for name in ["file", "directory", "dangling", "link", "pipe", "datagrams"] {
        let before = fs::symlink_metadata(at(name)).unwrap();
        let address = at(name).to_str().unwrap().to_owned();
        // Another process may close the datagram socket, so a retry may succeed. The other files
        // stay until an operator removes them.
        let code = if name == "datagrams" { 75 } else { 78 };
        Refusal::to(&["--listen", &address]).names(code, &[&address, "in use"]);
        let after = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((after.ino(), after.file_type()), (before.ino(), before.file_type()), "{name}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
}

/// The start is rejected, and neither the link nor the stale socket that it points to is removed.
#[test]
fn a_link_to_a_stale_socket_is_not_followed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink("target", &link).unwrap();
    Refusal::to(&["--listen", link.to_str().unwrap()]).names(78, &["link", "in use"]);
    assert!(identity(&target).1 > 0 && fs::symlink_metadata(&link).unwrap().is_symlink());
}
