//! Tests of the file descriptor store: the service manager keeps the sockets that the daemon bound.
//! If every process dies, no client is refused.

use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Manager, Parent};

/// Returns the names and sockets that the manager receives before `READY=1`. The manager keeps each
/// of them once, and may also have received notifications of an earlier run.
fn stored(manager: &Manager) -> Vec<(String, OwnedFd)> {
    let (_, before) = manager.hear_until("READY=1");
    let mut kept: Vec<(String, OwnedFd)> = Vec::new();
    for mut told in before.into_iter().filter(|told| told.value("STATUS").is_none()) {
        assert_eq!(told.value("FDSTORE"), Some("1"), "{told:?}");
        assert_eq!(told.descriptors.len(), 1);
        let (name, socket) =
            (told.value("FDNAME").unwrap().to_owned(), told.descriptors.pop().unwrap());
        if kept.iter().all(|(known, _)| *known != name) {
            kept.push((name, socket));
        }
    }
    kept
}

/// Starts the daemon with the sockets that the manager kept, the newest first, as systemd does.
fn start_with_kept(kept: Vec<(String, OwnedFd)>, manager: &Manager, arguments: &[&str]) -> Line {
    let names: Vec<String> = kept.iter().rev().map(|(name, _)| name.clone()).collect();
    let sockets: Vec<OwnedFd> = kept.into_iter().rev().map(|(_, socket)| socket).collect();
    let parent = match <[OwnedFd; 2]>::try_from(sockets) {
        Ok(two) => Parent::passing(two),
        Err(sockets) => Parent::passing(<[OwnedFd; 1]>::try_from(sockets).unwrap()),
    };
    let socket = manager.path().to_str().unwrap();
    parent
        .saying("LISTEN_FDNAMES", names.join(":"))
        .saying("NOTIFY_SOCKET", socket)
        .serve(arguments)
}

/// Clients that wait in the backlogs meanwhile are answered after the restart.
#[test]
fn stored_sockets_return_after_every_process_has_died() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock").to_str().unwrap().to_owned();
    let arguments =
        ["--listen", &format!("unix={path}"), "--listen", "tcp=127.0.0.1:0", "--bake", "0"];
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command.args(arguments).env("NOTIFY_SOCKET", manager.path());
    });
    let mut kept = stored(&manager);
    let tcp = line.address_of("tcp");
    for _ in 0..2 {
        let line = {
            // Kills all processes at once.
            line.processes()
                .into_iter()
                .for_each(|pid| crate::support::signal(pid, Signal::SIGKILL));
            line.wait_for_end();
            let mut waiting: Vec<Client> =
                [&tcp, &path].map(|address| Client::connect(address).unwrap()).into();
            let copies = kept
                .iter()
                .map(|(name, socket)| (name.clone(), socket.try_clone().unwrap()))
                .collect();
            let line = start_with_kept(copies, &manager, &arguments);
            for client in &mut waiting {
                client.echo(b"I have waited").unwrap();
            }
            line
        };
        assert_eq!((line.address_of("tcp"), line.address_of("unix")), (tcp.clone(), path.clone()));
        assert_eq!(line.count(Event::ListenerBound), 0, "a stored socket was bound again");
        let again = stored(&manager);
        let names = |kept: &[(String, OwnedFd)]| {
            kept.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            names(&again),
            names(&kept),
            "the names of the stored sockets changed, so systemd would keep them twice"
        );
        line.hand_over_from(1);
        for address in [&tcp, &path] {
            Client::once(address, b"over a handoff").unwrap();
        }
        manager.hear_until("MAINPID=");
        kept = again;
    }
}

#[test]
fn sockets_passed_by_the_parent_are_not_stored() {
    let manager = Manager::new();
    let socket: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    let parent = Parent::passing([socket]).saying("LISTEN_FDNAMES", "web");
    let arguments = [
        "--listen",
        "web=127.0.0.1:1",
        "--listen",
        "own=127.0.0.1:0",
        "--control",
        "/tmp/none/control",
    ];
    let _line =
        parent.saying("NOTIFY_SOCKET", manager.path().to_str().unwrap()).serve(&arguments[..4]);
    let names: Vec<_> = stored(&manager).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["own=127.0.0.1%3A0"]);
}

#[test]
fn reloads_store_new_listeners_and_unstore_removed_ones() {
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command
            .args(["--listen", "a=127.0.0.1:0", "--bake", "0"])
            .env("NOTIFY_SOCKET", manager.path());
    });
    stored(&manager);
    line.successor_gets("--listen b=[::1]:0 --bake 0");
    line.signal(1, Signal::SIGHUP);
    manager.hear_until("MAINPID=");
    let (gone, _) = manager.hear_until("FDSTOREREMOVE=1");
    assert_eq!(gone.value("FDNAME"), Some("a=127.0.0.1%3A0"));
    let (added, _) = manager.hear_until("FDSTORE=1");
    assert_eq!(added.value("FDNAME"), Some("b=[%3A%3A1]%3A0"));
    assert_eq!(added.pid, line.pid_of(2), "a process other than the main process sent it");
}

#[test]
fn a_stored_socket_that_is_not_configured_is_released() {
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command.args(["--listen", "a=127.0.0.1:0"]).env("NOTIFY_SOCKET", manager.path());
    });
    let kept = stored(&manager);
    drop(line);
    let _line = start_with_kept(kept, &manager, &["--listen", "b=[::1]:0"]);
    let (gone, _) = manager.hear_until("FDSTOREREMOVE=1");
    assert_eq!(gone.value("FDNAME"), Some("a=127.0.0.1%3A0"));
}

/// The path was removed while no process ran, as happens to runtime directories. No client could
/// reach the stored socket.
#[test]
fn a_stored_socket_whose_path_is_gone_is_bound_again() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock").to_str().unwrap().to_owned();
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command.args(["--listen", &path]).env("NOTIFY_SOCKET", manager.path());
    });
    let kept = stored(&manager);
    drop(line);
    std::fs::remove_file(&path).unwrap();
    let _line = start_with_kept(kept, &manager, &["--listen", &path]);
    Client::once(&path, b"at the same place").unwrap();
}

/// The service may soon start again, and clients must be able to reach the stored socket by its
/// path.
#[test]
fn a_stop_under_a_manager_leaves_the_path_of_the_socket() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock").to_str().unwrap().to_owned();
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command.args(["--listen", &path]).env("NOTIFY_SOCKET", manager.path());
    });
    let kept = stored(&manager);
    line.signal(1, Signal::SIGTERM);
    line.wait_for_end();
    let mut waiting = Client::connect(&path).unwrap();
    let _line = start_with_kept(kept, &manager, &["--listen", &path]);
    waiting.echo(b"I have waited").unwrap();
}
