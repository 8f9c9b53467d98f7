//! Connections that a successor would serve differently stay in the old generation, which drains
//! them with their replies and counts them.

use nix::sys::signal::Signal;

use crate::carry_room::{
    CARRY, assert_counted, clients, counted, echo, exchange, finish, hand_over_in_the_middle, pair,
    proxy, told, took_over,
};
use crate::config_file::{put, serve};
use crate::support::{Upstream, assert_becomes};

/// The new configuration would serve these connections differently. The old generation drains them
/// with their replies.
#[test]
fn a_carry_refuses_connections_with_changed_settings() {
    let other = echo("other");
    for (now, why) in [
        (
            format!("{}carry = false\n", echo("web")),
            "the new process has no listener \"web\" that takes over connections",
        ),
        (String::new(), "the new process has no listener \"web\" that takes over connections"),
        (
            proxy("web", "127.0.0.1:9"),
            "the proxy cannot continue a saved connection of the format echo/1",
        ),
    ] {
        let line = serve(&format!("{CARRY}{}{other}", echo("web")), &[]);
        let (leaving, staying) = (clients(&line, "web", 5), clients(&line, "other", 3));
        put(line.folder(), &format!("{CARRY}{now}{other}"));
        let all = leaving.into_iter().chain(staying).collect();
        let going = hand_over_in_the_middle(&line, 1, ":", all);
        assert_eq!((going.len(), told(&line, why)), (3, [5, 5]), "{why}: {}", line.text());
        assert_counted(&line, "web", 0, 5, 5);
        assert_counted(&line, "other", 3, 0, 0);
    }
}

/// The upstream or the service of these connections has changed. They continue in the old
/// generation.
#[test]
fn a_carry_refuses_connections_with_a_changed_upstream() {
    let (upstream, another) = (Upstream::tcp(), Upstream::tcp());
    for (now, why) in [
        (
            proxy("web", &another.address()),
            format!("{} is no longer an upstream", upstream.address()),
        ),
        (
            echo("web"),
            "the echo service cannot continue a saved connection of the format proxy/1 with 1 file \
            descriptors"
                .to_owned(),
        ),
    ] {
        let line = serve(&format!("{CARRY}{}", proxy("web", &upstream.address())), &[]);
        let mut pairs: Vec<_> = (0..5).map(|_| pair(&line, &upstream)).collect();
        put(line.folder(), &format!("{CARRY}{now}"));
        line.hand_over_from(1);
        assert_eq!(took_over(&line, 2), [0, 5]);
        assert_eq!(told(&line, &why), [5, 5], "{why}: {}", line.text());
        pairs.iter_mut().for_each(exchange);
        // One connection never ends by itself, so the test cuts the drain, as the drain timeout
        // would.
        let (mut client, behind) = pairs.pop().unwrap();
        pairs.into_iter().for_each(finish);
        assert_becomes(&[0, 5, 4], || counted(&line, "web"));
        line.signal(1, Signal::SIGQUIT);
        client.expect_reset();
        drop(behind);
        assert_eq!(line.exit_code(1), 0);
    }
}
