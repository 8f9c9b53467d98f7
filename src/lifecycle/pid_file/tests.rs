//! Tests of the pid file: its temporary files, and which existing files it may replace.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_draft_never_replaces_an_existing_file_or_link() {
    let folder = tempfile::tempdir().unwrap();
    let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    std::os::unix::fs::symlink("/nowhere", folder.path().join("dangling")).unwrap();
    for path in ["victim", "link", "dangling"] {
        let made = Draft::create_at(folder.path().join(path));
        assert_eq!(made.err().unwrap().kind(), io::ErrorKind::AlreadyExists, "{path}");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn draft_names_are_unique_and_dropped_drafts_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    let drafts: Vec<_> = (0..100).map(|_| Draft::create(&path).unwrap()).collect();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), drafts.len());
    drop(drafts);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

fn config(pid_file: &Path) -> Config {
    Config { pid_file: Some(pid_file.to_owned()), ..Config::default() }
}

#[test]
fn only_an_empty_file_or_a_pid_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    for content in ["", "7", "7\n", "4194304\n", " 12 \n"] {
        fs::write(&path, content).unwrap();
        PidFile::new(&config(&path)).unwrap().unwrap().name(9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "9\n");
    }
    for content in ["precious", "7 8", "-7", "[listener]\n", &"1".repeat(65)] {
        fs::write(&path, content).unwrap();
        let error = PidFile::new(&config(&path)).unwrap_err().to_string();
        assert!(error.contains("something other than a pid"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

/// If a symbolic link appears at the path after the first check, the write fails. A retry succeeds
/// once the link is removed, and no temporary file remains.
#[test]
fn a_link_created_later_at_the_path_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    let mut file = PidFile::new(&config(&path)).unwrap().unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(file.name(9).unwrap_err().to_string().contains("symbolic link"));
    assert!(file.due().is_some());
    fs::remove_file(&path).unwrap();
    file.retry();
    assert_eq!(file.due(), None);
    assert_eq!(fs::read_to_string(&path).unwrap(), "9\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_removed_or_handed_over_file_is_not_retried() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("there/pid");
    let mut file = PidFile { path, owed: None };
    file.name(9).unwrap_err();
    file.remove(None);
    assert_eq!(file.due(), None);
    file.name(9).unwrap_err();
    file.hand_over(10).unwrap_err();
    assert_eq!(file.due(), None);
}

#[test]
fn only_drafts_of_dead_processes_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    // The pid in this name is so high that no process has it.
    let stale = [
        "pid.2147483647-0123456789abcdef".to_owned(),
        format!("pid.{}-0123456789abcdef", std::process::id()),
    ];
    let parent = std::os::unix::process::parent_id();
    let kept =
        ["pid.2", "pid.2147483647", "pid.2147483647-abc", "other.2147483647-0123456789abcdef"];
    let kept =
        kept.map(str::to_owned).into_iter().chain([format!("pid.{parent}-0123456789abcdef")]);
    let mut kept: Vec<_> = kept.collect();
    for name in kept.iter().chain(&stale) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    PidFile::new(&config(&path)).unwrap();
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut left: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    kept.sort();
    assert_eq!(left, kept);
}

/// The pid file must not have the same path as a listener or the control socket. This is detected
/// even if a symbolic link makes the two paths look different.
#[test]
fn the_path_of_a_socket_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
    let other = folder.path().join("link/socket");
    let refused = |config: &Config| check(config).unwrap_err().to_string();
    let control = Config { control: Some(other.clone()), ..config(&path) };
    assert!(refused(&control).contains("the control socket has the same path"));
    let web = format!("web={}", other.display()).parse().unwrap();
    let listener = Config { listeners: Listeners::new(vec![web]).unwrap(), ..config(&path) };
    assert!(refused(&listener).contains("the listener web has the same path"));
}

/// In a directory with the sticky bit, only the owner of a file may replace it.
#[test]
fn a_file_of_another_user_in_a_sticky_directory_is_refused() {
    assert!(nix::unistd::geteuid().is_root(), "only root can be another user");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(&path, "12\n").unwrap();
    check(&config(&path)).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // Change the user of this thread only.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            check(&config(&path))
        });
        let error = other.join().unwrap().unwrap_err();
        assert_eq!(error.exit(), ExitStatus::Configuration, "{error}");
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "12\n");
}
