//! Tests of when the listeners of a server of your own are given up and have ended.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::*;
use crate::config::Listeners;
use crate::net::{Origin, Passed};

async fn at_once(ended: impl Future<Output = ()>) -> Result<(), Elapsed> {
    timeout(Duration::ZERO, ended).await
}

/// Returns a passed socket that shares the address with others, and its address.
fn shared(address: SocketAddr) -> (Passed, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let name = Some("web".to_owned());
    (Passed::check(socket.into(), name, Origin::Inherited).unwrap(), address)
}

/// As with the sockets of a unit that has `ReusePort=yes`.
#[test]
fn each_of_two_sockets_with_one_address_is_given_up() {
    let (first, address) = shared("127.0.0.1:0".parse().unwrap());
    let (second, _) = shared(address);
    let configured = Listeners::new(vec![format!("web={address}").parse().unwrap()]).unwrap();
    let set = ListenerSet::assemble(&configured, None, vec![first, second]).unwrap();
    let settings = ServedSettings::of(&Config::default());
    let served = ServedListeners::new(&set, &HashSet::new(), &settings).unwrap();
    served.give_up(set.as_slice());
    let given_up: Vec<_> = served.all.iter().map(|one| one.is_given_up()).collect();
    assert_eq!(given_up, [true; 2]);
}

/// A server stops accepting when all its listeners have ended. So a listener that the successor
/// has replaced must not count as ended while late clients may still arrive on it.
#[tokio::test]
async fn a_replaced_listener_has_not_ended_at_once() {
    let configured = Listeners::new(vec!["web=127.0.0.1:0".parse().unwrap()]).unwrap();
    let set = ListenerSet::assemble(&configured, None, Vec::new()).unwrap();
    let settings = ServedSettings::of(&Config::default());
    let served = ServedListeners::new(&set, &HashSet::new(), &settings).unwrap();
    assert!(at_once(served.first_ended()).await.is_ok());
    set.mark_replaced(&[0]);
    served.give_up(set.as_slice());
    assert!(!served.late_clients().is_zero());
    assert!(at_once(served.first_ended()).await.is_err());
    assert!(at_once(served.ended()).await.is_err());
}
