//! Tests of `handoffd doctor`: it queries the service manager that the daemon runs under. The tests
//! under a real systemd cover its findings.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::support::operator::Answered;
use crate::support::{Line, Operator, REAL};

/// Installs a fake systemctl in the folder. It records its arguments and knows every unit, with the
/// settings in the file `unit`.
pub(crate) fn put_systemctl(folder: &Path) {
    let systemctl = folder.join("systemctl");
    let script = "#!/bin/sh\necho \"$*\" >>\"${0%/*}/asked\"
        case \"$*\" in
            *--version) echo systemd 257 ;;
            *) echo LoadState=loaded; cat \"${0%/*}/unit\" 2>/dev/null || true ;;
        esac\n";
    fs::write(&systemctl, script).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the doctor with that systemctl. Returns its output, and the arguments of the query.
fn examine(folder: &Path, words: &[&str]) -> (Answered, String) {
    put_systemctl(folder);
    let _ = fs::remove_file(folder.join("asked"));
    let mut command = Command::new(REAL);
    let path = format!("{}:/usr/bin:/bin", folder.display());
    command.arg("doctor").args(words).arg("--control").arg(folder.join("theirs")).env("PATH", path);
    let answered = Operator::start(command).wait();
    let asked = fs::read_to_string(folder.join("asked")).unwrap_or_default();
    (answered, asked.lines().find(|line| line.contains("show")).unwrap_or_default().to_owned())
}

/// Replies to one client on the control socket with the status of a daemon in this control group.
fn answer_as_in(folder: &Path, group: &str, status: &str) -> std::thread::JoinHandle<()> {
    let mut status: serde_json::Value = serde_json::from_str(status).unwrap();
    status["generations"][0]["control_group"] = group.into();
    let answer = serde_json::json!({"status": status}).to_string() + "\n";
    let path = folder.join("theirs");
    let _ = fs::remove_file(&path);
    let daemon = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = daemon.accept().unwrap();
        BufReader::new(&client).read_line(&mut String::new()).unwrap();
        client.write_all(answer.as_bytes()).unwrap();
    })
}

#[test]
fn the_daemons_own_service_manager_is_queried() {
    let line = Line::serve_controlled(&[]);
    let status = line.asked(&["status", "--json"]).well();
    let own = nix::unistd::getuid();
    let of_user = |user: &str| {
        format!("/user.slice/user-{user}.slice/user@{user}.service/app.slice/h.service")
    };
    let (ours, theirs) = (of_user(&own.to_string()), of_user("12345"));
    let show = |manager: &str, unit: &str| format!("{manager}show --no-pager --all -- {unit}");
    for (group, words, expected) in [
        ("/system.slice/h.service", &[][..], show("", "h.service")),
        (&ours, &[], show("--user ", "h.service")),
        (&theirs, &[], show("--user --machine=12345@.host ", "h.service")),
        (&ours, &["h"], show("--user ", "h.service")),
        (&ours, &["other.service"], show("", "other.service")),
        ("/system.slice/h.service", &["--user", "h.service"], show("--user ", "h.service")),
    ] {
        let daemon = answer_as_in(line.folder(), group, &status);
        let (answered, asked) = examine(line.folder(), words);
        assert_eq!(asked, expected, "{group} {words:?}: {answered:?}");
        daemon.join().unwrap();
    }
}

#[test]
fn a_unit_can_be_named_without_a_daemon() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (answered, asked) = examine(folder.path(), &["--user", "h.service"]);
    assert_eq!(asked, "--user show --no-pager --all -- h.service", "{answered:?}");
    assert!(answered.out.contains("h.service under the user's systemd 257: "), "{answered:?}");
    let (answered, _) = examine(folder.path(), &["--user"]);
    answered.names(69, &["no daemon answers on"]);
}

#[test]
fn the_status_includes_the_control_group() {
    let line = Line::serve_controlled(&[]);
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    let group = status["generations"][0]["control_group"].as_str().unwrap();
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", line.first_pid())).unwrap();
    assert!(
        groups.lines().any(|line| line.ends_with(&format!(":{group}"))),
        "{group} is not in {groups}"
    );
}

/// The kernel hides `/proc` details of such a process from all users but root, so a reload through
/// `/proc` fails.
#[test]
fn the_doctor_finds_file_capabilities() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give capabilities to a file: run the tests as root"
    );
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = folder.path().join("program");
    fs::write(&program, "").unwrap();
    let unit = format!(
        "User=web\nExecStart={{ path={0} ; argv[]={0} ; ignore_errors=no ; }}\n\
         ExecReload={{ path=/usr/bin/env ; argv[]=/usr/bin/env /proc/${{MAINPID}}/exe reload ; ignore_errors=no ; }}\n",
        program.display()
    );
    fs::write(folder.path().join("unit"), unit).unwrap();
    let finding = "breaks  ExecReload=: the program has file capabilities";
    let (before, _) = examine(folder.path(), &["a.service"]);
    assert!(!before.out.contains(finding), "{before:?}");
    // CAP_NET_BIND_SERVICE, effective: the bytes that setcap(8) writes.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        &program,
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let (after, _) = examine(folder.path(), &["a.service"]);
    assert!(after.out.contains(finding), "{after:?}");
}
