//! A test of releases of a Python server under `handoffd-run@.service`. It runs only on this
//! machine's systemd, because the file systems of the other versions have no Python.

use std::fs;

use crate::programs::ProgramLab;
use crate::system::System;

const SERVER: &str = "/opt/handoffd/server.py";

/// A server of the echo protocol. Each release begins with other lines.
const PYTHON: &str = r#"
import os, signal, socket, sys, threading, time
def serve(client):
    with client:
        while data := client.recv(4096):
            client.sendall(data)
def listen():
    host, port = sys.argv[-1].split(":")
    server = socket.create_server((host, int(port)))
    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"#;

fn release(lab: &ProgramLab, lines: &str) {
    fs::write(lab.path(SERVER), format!("{PYTHON}\n{lines}\n")).unwrap();
}

pub(crate) fn releases_of_a_python_server_succeed_or_change_nothing() {
    let lab = ProgramLab::serving(System::Host, "check_interval = '50ms'\nstop_timeout = '1s'");
    let callers = lab.callers();
    release(&lab, "listen()");
    lab.release(&format!("exec /usr/bin/python3 {SERVER} \"$@\""));
    lab.reload().well();
    for (lines, reason) in [
        ("raise RuntimeError('no database')", "RuntimeError: no database"),
        ("this is no Python", "SyntaxError: invalid syntax"),
        ("time.sleep(1000)", "was not ready within 2 s"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)", "was not ready"),
        ("os.fork() and sys.exit(0); time.sleep(1000)", "ended before it was ready"),
    ] {
        release(&lab, lines);
        lab.fails_to_reload(reason);
    }
    // A release that ignores the stop signal is killed with its children at the next reload.
    let deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)";
    release(&lab, &format!("{deaf}\nif os.fork(): listen()\ntime.sleep(1000)"));
    lab.reload().well();
    let (_, stubborn) = lab.pids();
    release(&lab, "listen()");
    lab.reload().well();
    lab.wait_for_end(stubborn);
    let calls = callers.finish();
    assert!(calls.served > 10 && calls.refused + calls.broken == 0, "{calls:?}");
}
