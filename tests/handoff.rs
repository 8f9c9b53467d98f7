//! A handoff puts the new program in place of the old one, and nobody who connects notices.

use crate::support::{Client, Line};

#[test]
fn a_hangup_replaces_the_process_and_the_port_stays() {
    let line = Line::serve(&["--bake", "0"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    line.signal(2, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();
    assert!(Client::connect(&line.address()).is_err());
}
