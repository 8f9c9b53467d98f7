//! Tests of the messages to the service manager.

use super::*;

fn listening(name: &str) -> (UnixDatagram, Notifier) {
    let name = format!("handoffd-{name}-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    (
        manager,
        Notifier::new(Some(OsStr::new(&format!("@{name}"))), MainProcess::ActiveGeneration)
            .unwrap(),
    )
}

fn heard(manager: &UnixDatagram) -> String {
    let mut heard = [0; 256];
    let length = manager.recv(&mut heard).unwrap();
    String::from_utf8(heard[..length].to_vec()).unwrap()
}

#[test]
fn without_a_service_manager_nothing_is_sent() {
    let silent = Notifier::new(None, MainProcess::ActiveGeneration).unwrap();
    assert!(!silent.is_supervised());
    silent.ready("serving");
}

/// A handover sends a single datagram to the service manager. In this test the service manager
/// listens on an abstract socket.
#[test]
fn a_handover_sends_pid_ready_and_status_in_one_datagram() {
    let (manager, notifier) = listening("handed-over");
    notifier.handed_over(Some(7), "generation 2 serving").unwrap();
    assert_eq!(heard(&manager), "MAINPID=7\nREADY=1\nSTATUS=generation 2 serving\n");
}

/// The service manager would stop the service when this process ends.
#[test]
fn a_handover_that_the_manager_cannot_learn_fails() {
    let (manager, notifier) = listening("unlearned");
    notifier.handed_over(None, "generation 2 serving").unwrap_err();
    fill(&manager);
    let error = notifier.handed_over(Some(7), "generation 2 serving").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    drop(manager);
    notifier.handed_over(Some(7), "generation 2 serving").unwrap();
}

/// Fills the receive queue of the service manager.
fn fill(manager: &UnixDatagram) {
    let flood = UnixDatagram::unbound().unwrap();
    flood.connect_addr(&manager.local_addr().unwrap()).unwrap();
    flood.set_nonblocking(true).unwrap();
    while flood.send(b"x").is_ok() {}
}

#[test]
fn an_unchanged_main_process_is_not_named() {
    let (manager, notifier) = listening("stays");
    let notifier = Notifier { main_process: MainProcess::First, ..notifier };
    notifier.handed_over(None, "generation 2 serving").unwrap();
    assert_eq!(heard(&manager), "READY=1\nSTATUS=generation 2 serving\n");
    assert!(!notifier.watches_active_generation());
}

#[test]
fn a_reload_is_sent_with_its_time_in_one_datagram() {
    let (manager, notifier) = listening("reloading");
    notifier.reloading("handing off");
    let heard = heard(&manager);
    let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(time.split_once('\n').unwrap().0.parse::<u64>().unwrap() > 0, "{heard}");
}

#[test]
fn a_full_socket_does_not_delay_optional_messages() {
    let (manager, notifier) = listening("full");
    fill(&manager);
    // Send only messages that may be dropped, because the notifier would wait a second for each
    // important message.
    (0..1000).for_each(|_| notifier.alive());
}

#[test]
fn all_sockets_to_store_share_one_deadline() {
    let (manager, notifier) = listening("stored");
    fill(&manager);
    let until = Notifier::deadline();
    (0..30).for_each(|_| notifier.store("web", &manager, until));
    (0..30).for_each(|_| notifier.unstore("web", until));
    let late = until.elapsed();
    assert!(late < 5 * SEND_TIMEOUT, "{late:?} late");
}

#[test]
fn an_impossible_notify_socket_is_named_in_the_error() {
    let error = Notifier::new(Some(OsStr::new("relative")), MainProcess::ActiveGeneration)
        .unwrap_err()
        .to_string();
    assert!(error.contains("NOTIFY_SOCKET") && error.contains("relative"), "{error}");
}
