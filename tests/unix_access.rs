//! Tests of the mode, the user and the group of a Unix listener: they are as configured, whatever
//! the umask.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::config_file::{put, serve};
use crate::support::{Client, Event, Line, Refusal};

/// Returns a configuration with one listener at a path in the folder, and `settings`.
fn file(settings: &str) -> String {
    format!("[listener.web]\naddress = \"$F/web.sock\"\nservice = \"echo\"\n{settings}\n")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn flags_set_the_mode_whatever_the_umask() {
    for (umask, wanted) in [("077", "0666"), ("000", "0600"), ("027", "777")] {
        let line = Line::start_under(
            &["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"],
            |command, folder| {
                command.args([
                    "--listen",
                    &format!("web={}/web.sock", folder.display()),
                    "--socket-mode",
                    wanted,
                ]);
                // An address without a path has no mode. It may be used together with a path.
                command.args(["--listen", "127.0.0.1:0"]);
            },
        );
        line.wait_for(1, Event::GenerationServing);
        let path = line.folder().join("web.sock");
        assert_eq!(mode(&path), u32::from_str_radix(wanted, 8).unwrap(), "umask {umask}");
        Client::once(path.to_str().unwrap(), b"may connect").unwrap();
    }
}

#[test]
fn the_file_sets_user_and_group_by_number_and_by_name() {
    let is_root = nix::unistd::geteuid().is_root();
    let (user, group) = if is_root {
        (1, 2)
    } else {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    };
    let name = |id: nix::unistd::User| id.name;
    let by_name = name(nix::unistd::User::from_uid(user.into()).unwrap().unwrap());
    for said in [user.to_string(), by_name] {
        let settings = format!("mode = \"0640\"\nuser = \"{said}\"\ngroup = \"{group}\"");
        let line = serve(&file(&settings), &[]);
        let status = fs::symlink_metadata(line.folder().join("web.sock")).unwrap();
        assert_eq!(
            (status.uid(), status.gid(), status.mode() & 0o777),
            (user, group, 0o640),
            "{said}"
        );
    }
}

#[test]
fn a_reload_sets_a_new_mode_and_a_rollback_does_not() {
    let line = Line::start_with(|command, folder| {
        put(folder, &file("mode = \"0600\""));
        command.current_dir(folder).args(["--config", "handoffd.toml", "--bake", "60"]);
    });
    line.wait_for(1, Event::GenerationServing);
    let path = line.folder().join("web.sock");
    put(line.folder(), &file("mode = \"0666\""));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    assert_eq!(
        mode(&path),
        0o600,
        "the mode changed before the commit, so a rollback would keep it"
    );
    line.signal(2, Signal::SIGTERM);
    line.wait_for(1, Event::HandoffFailed);
    assert_eq!(mode(&path), 0o600);
    drop(line);

    let line = serve(&file("mode = \"0600\""), &[]);
    let path = line.folder().join("web.sock");
    put(line.folder(), &file("mode = \"0666\""));
    line.hand_over_from(1);
    assert_eq!(mode(&path), 0o666);
    // A configuration without a mode leaves the mode unchanged.
    put(line.folder(), &file(""));
    line.hand_over_from(2);
    assert_eq!(mode(&path), 0o666);
    Client::once(path.to_str().unwrap(), b"may connect").unwrap();
}

/// The error names the listener and the setting, and no socket is left behind.
#[test]
fn invalid_access_settings_are_rejected_without_a_trace() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock");
    let listen = format!("web={}", path.display());
    let said = |flags: &[&str]| Refusal::to(&[&["--listen", &listen], flags].concat());
    said(&["--socket-group", "no-such-group"]).names(78, &["(web)", "no group \"no-such-group\""]);
    said(&["--socket-user", "no-such-user"]).names(78, &["(web)", "no user \"no-such-user\""]);
    // This number is -1 for chown(2), which would change nothing.
    said(&["--socket-group", "4294967295"]).names(78, &["(web)", "no group \"4294967295\""]);
    said(&["--socket-mode", "1777"]).names(64, &["--socket-mode", "octal digits"]);
    Refusal::to(&["--listen", "127.0.0.1:0", "--socket-mode", "0600"])
        .names(64, &["--socket-mode", "a path"]);
    Refusal::to(&["check", "--listen", &listen, "--socket-group", "no-such-group"])
        .names(78, &["no-such-group"]);
    put(folder.path(), &file("mode = \"0600\"").replace("$F/web.sock", "127.0.0.1:0"));
    let config = folder.path().join("handoffd.toml");
    for command in [&["check", "--config"][..], &["--config"]] {
        let said = Refusal::to(&[command, &[config.to_str().unwrap()]].concat());
        said.names(78, &["127.0.0.1:0", "(web)", "mode", "a path"]);
    }
    if !nix::unistd::geteuid().is_root() {
        said(&["--socket-user", "0"]).names(78, &["(web)", "cannot set its user", "not permitted"]);
    }
    assert!(!path.exists());
}
