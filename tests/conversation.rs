//! Persistent connections during a drain: the daemon closes them only between two requests and
//! loses no reply.

use std::io::{Read, Write};

use crate::support::{
    Client, Event, Gate, Line, Stuck, freeze, narrow, raise_descriptor_limit, thaw,
};
use nix::sys::signal::Signal;

#[test]
fn requests_that_arrive_with_the_drain_are_answered() {
    // More than the runtime reports at once: some connections may learn of the drain before their
    // request.
    const MANY: usize = 2_500;
    let line = Line::serve(&["--bake", "0", "--drain-timeout", "1h"]);
    raise_descriptor_limit();
    let mut clients: Vec<Client> =
        (0..MANY).map(|_| Client::connect(&line.address()).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.echo(b"first").unwrap());
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    line.signal(1, Signal::SIGHUP);
    gate.wait(&line);
    freeze(line.first_pid());
    gate.open();
    line.wait_for(2, Event::GenerationStep.containing("actions", "TellReady"));
    // The successor is ready. Three requests on every connection arrive before the drain begins.
    clients.iter_mut().for_each(|client| client.write_all(b"second third fourth").unwrap());
    thaw(line.first_pid());
    for client in &mut clients {
        client.expect(b"second third fourth").unwrap();
        client.expect_end().unwrap();
    }
    drop(clients);
    assert_eq!(line.exit_code(1), 0);
    let ended = line.wait_for(1, Event::GenerationEnded);
    assert_eq!((ended.field("ended").unwrap().parse(), ended.field("cut")), (Ok(MANY), Some("0")));
}

#[test]
fn a_client_that_has_half_closed_gets_its_whole_reply() {
    let line = Line::start_with(|command, folder| {
        command.args(["--bake", "0", "--listen", folder.join("socket").to_str().unwrap()]);
    });
    line.wait_for(1, Event::GenerationServing);
    let client = Stuck::on(&line, &line.address());
    client.half_close();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let last = Stuck::on(&line, &line.address());
    last.half_close();
    line.signal(2, Signal::SIGTERM);
    line.wait_for(2, Event::DrainStarted);
    client.read_to_end();
    last.read_to_end();
    line.wait_for_end();
}

/// Sends more data after the drain has begun, then reads. All requests from before the drain must
/// be answered. The reply must be the data in order, and the connection must end without a reset.
fn assert_nothing_dies_of_a_reset(line: &Line, generation: u64, number: Signal) {
    // Small enough that the server has finished with it: the server is idle when the drain begins.
    let mut sent: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(60_000).collect();
    let mut clients: Vec<Client> =
        (0..20).map(|_| narrow(line.address().parse().unwrap())).collect();
    for client in &mut clients {
        client.write_all(&sent).unwrap();
        // The reply has begun: the server is processing this connection.
        client.expect(&sent[..4]).unwrap();
    }
    line.assert_serves();
    line.signal(generation, number);
    line.wait_for(generation, Event::DrainStarted);
    let asked = sent.len();
    sent.extend(b"and one thing more".repeat(500));
    for client in &mut clients {
        client.write_all(&sent[asked..]).unwrap();
    }
    for mut client in clients {
        let mut reply = sent[..4].to_vec();
        client.read_to_end(&mut reply).unwrap();
        assert!(reply.len() >= asked, "{} bytes of {asked} came back", reply.len());
        assert_eq!(reply, sent[..reply.len()]);
    }
    assert_eq!(line.exit_code(generation), 0);
}

#[test]
fn a_reply_in_transit_survives_a_client_that_keeps_sending() {
    let line = Line::serve(&["--bake", "0"]);
    assert_nothing_dies_of_a_reset(&line, 1, Signal::SIGHUP);
    line.wait_for(2, Event::GenerationServing);
    assert_nothing_dies_of_a_reset(&line, 2, Signal::SIGTERM);
}
