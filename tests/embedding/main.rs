//! Test of a server that embeds the library and starts a program: the program gets none of the
//! descriptors and variables that the server inherited.
//!
//! The library must take the inheritance before any thread runs, so this test uses no test harness.
//! The program is both sides: without arguments it is the parent, with `serve` it is the embedding
//! server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks at one of them")]

use std::error::Error;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use handoffd::Builder;

/// Prints the variables and the descriptors, except the descriptor of the folder that it lists.
const PROGRAM: &str =
    "env; for fd in /proc/$$/fd/*; do [ -e \"$fd\" ] && echo \"fd=${fd##*/}\"; done; :";

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).is_some_and(|role| role == "serve") { serve() } else { parent() }
}

/// Takes the inheritance, serves, and starts a program.
fn serve() -> Result<(), Box<dyn Error>> {
    Builder::from_env()?.serve_with(async |life| {
        let _listener = life.tcp_listener("web")?;
        life.ready();
        life.committed().await;
        let status = Command::new("bash").args(["-c", PROGRAM]).status()?;
        assert!(status.success());
        Ok::<_, Box<dyn Error>>(())
    })?;
    Ok(())
}

/// Starts the server as a service manager does, with an additional descriptor. Checks what the
/// program saw.
fn parent() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let notify = folder.path().join("notify");
    let manager = UnixDatagram::bind(&notify)?;
    let mut server = Command::new("bash");
    server.args(["-c", "LISTEN_PID=$$ exec \"$0\" serve"]).arg(std::env::current_exe()?);
    server.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web").env("NOTIFY_SOCKET", &notify);
    server.env("WATCHDOG_USEC", "3000000").env("WATCHDOG_PID", "1").env("KEPT", "yes");
    server.fd_mappings(vec![
        FdMapping { parent_fd: TcpListener::bind("127.0.0.1:0")?.into(), child_fd: 3 },
        FdMapping { parent_fd: tempfile::tempfile()?.into(), child_fd: 20 },
    ])?;
    let mut server = server.stdout(Stdio::piped()).spawn()?;
    let mut seen = String::new();
    server.stdout.take().ok_or("no output")?.read_to_string(&mut seen)?;
    assert!(server.wait()?.success(), "{seen}");
    drop(manager);

    let names: Vec<_> =
        seen.lines().filter_map(|line| line.split_once('=').map(|(name, _)| name)).collect();
    assert!(names.contains(&"KEPT"), "other variables do not reach the program: {seen}");
    for prefix in ["LISTEN_", "NOTIFY_", "WATCHDOG_", "HANDOFFD_"] {
        assert!(
            !names.iter().any(|name| name.starts_with(prefix)),
            "a started program sees {prefix}*: {seen}"
        );
    }
    let descriptors: Vec<_> = seen.lines().filter_map(|line| line.strip_prefix("fd=")).collect();
    assert_eq!(descriptors, ["0", "1", "2"], "a started program holds inherited descriptors");
    println!("a started program sees neither our descriptors nor our variables ... ok");
    Ok(())
}
