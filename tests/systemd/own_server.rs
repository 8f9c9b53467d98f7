//! A test of the unit for a server of your own, as docs/servers.md shows it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::lab::Lab;
use crate::support::{Client, example};
use crate::system::System;
use crate::traffic;

const UNIT: &str = "my-server.service";
const ADDRESS: &str = "127.0.0.1:7001";
/// The path of the server inside.
const SERVER: &str = "/opt/handoffd/my-server";

/// Returns the unit file on the page, with the path of this server.
fn unit() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/servers.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("```ini\n").unwrap();
    let (unit, _) = rest.split_once("```").unwrap();
    unit.replace("/usr/local/bin/my-server", &format!("{SERVER} {ADDRESS}"))
}

/// Puts a file at the path of the server.
fn put(lab: &Lab, fill: impl FnOnce(&Path)) {
    let new = lab.path("/opt/handoffd/my-server.new");
    fill(&new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, lab.path(SERVER)).unwrap();
}

pub(crate) fn a_server_of_your_own_is_reloaded_with_a_true_outcome(system: System) {
    let lab = Lab::boot(system);
    let real = example("http");
    put(&lab, |new| {
        fs::copy(&real, new).unwrap();
    });
    lab.install(UNIT, &unit());
    lab.systemctl(&["start", UNIT]).well();
    let callers = traffic::http_callers(&lab, ADDRESS);
    for _ in 0..3 {
        lab.systemctl(&["reload", UNIT]).well();
    }
    put(&lab, |new| fs::write(new, "#!/bin/sh\nexit 3\n").unwrap());
    assert_ne!(lab.systemctl(&["reload", UNIT]).code, 0);
    let calls = callers.finish();
    assert!(calls.served > 10 && calls.refused == 0 && calls.broken == 0, "{calls:?}");
    lab.systemctl(&["stop", UNIT]).well();
}
