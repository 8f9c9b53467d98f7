//! Tests of a channel between two processes.

use super::*;
use std::future::poll_fn;

#[tokio::test]
async fn a_process_that_has_died_ends_a_channel_that_another_holds() {
    let (ours, theirs) = sys::socket::channel_pair().unwrap();
    let mut channel = Channel::to_a_new_process(ours).unwrap();
    // The child process sends a message and exits. This process keeps a copy of the child's
    // channel end open.
    let mut child = std::process::Command::new("sh");
    child
        .args(["-c", r"env printf 'VERSION=2\nKIND=stopping\n' >&0; exit 7"])
        .stdin(theirs.try_clone().unwrap());
    let mut child = child.spawn().unwrap();
    let first = poll_fn(|cx| channel.poll_receive(cx)).await;
    assert!(matches!(first, Received::Message(Message::Stopping)), "{first:?}");
    channel.follow_sender();
    let second = poll_fn(|cx| channel.poll_receive(cx)).await;
    assert!(matches!(second, Received::End), "{second:?}");
    assert!(channel.is_over());
    child.wait().unwrap();
    drop(theirs);
}

fn pair() -> (Channel, Channel) {
    let (one, other) = sys::socket::channel_pair().unwrap();
    (Channel::new(one).unwrap(), Channel::new(other).unwrap())
}

#[tokio::test]
async fn messages_sent_before_a_death_arrive_before_the_end() {
    let (one, mut other) = pair();
    one.send(&Message::Stopping).unwrap();
    drop(one);
    let first = poll_fn(|cx| other.poll_receive(cx)).await;
    assert!(matches!(first, Received::Message(Message::Stopping)), "{first:?}");
    let second = poll_fn(|cx| other.poll_receive(cx)).await;
    assert!(matches!(second, Received::End), "{second:?}");
}

#[tokio::test]
async fn what_was_sent_is_received_before_the_runtime_has_looked() {
    let (one, mut other) = pair();
    let poll = |other: &mut Channel| {
        other.poll_receive(&mut Context::from_waker(std::task::Waker::noop()))
    };
    assert!(poll(&mut other).is_pending());
    one.send(&Message::Cut).unwrap();
    assert!(matches!(poll(&mut other), Poll::Ready(Received::Message(Message::Cut))));
}

#[tokio::test]
async fn an_unknown_kind_is_answered_and_the_next_message_is_heard() {
    let (mut one, mut other) = pair();
    send_packet(one.as_fd(), b"VERSION=9\nKIND=novel\n").unwrap();
    one.send(&Message::Cut).unwrap();
    let heard = poll_fn(|cx| other.poll_receive(cx)).await;
    assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
    let answer = poll_fn(|cx| one.poll_receive(cx)).await;
    assert!(
        matches!(answer, Received::Message(Message::Unknown { ref kind }) if kind == "novel"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_message_longer_than_any_packet_arrives() {
    let (one, mut other) = pair();
    let sockets: Vec<u64> = (0..1_000_000).collect();
    one.send(&Message::GivenUp { sockets: sockets.clone() }).unwrap();
    one.send(&Message::Cut).unwrap();
    let heard = poll_fn(|cx| other.poll_receive(cx)).await;
    let Received::Message(heard) = heard else { panic!("not a message: {heard:?}") };
    assert_eq!(heard, Message::GivenUp { sockets });
    let heard = poll_fn(|cx| other.poll_receive(cx)).await;
    assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
}

/// Sends until the channel is full, and returns how many messages it holds.
fn fill(channel: &Channel) -> usize {
    (0..).take_while(|_| channel.send(&Message::Stopping).is_ok()).count()
}

#[tokio::test]
async fn a_message_waits_for_room_in_a_full_channel() {
    let (one, mut other) = pair();
    let before = fill(&one);
    let until = Instant::now() + Duration::from_secs(10);
    let sending = one.with_room(until, |channel| channel.send(&Message::Cut));
    let receiving = async {
        for _ in 0..before {
            let heard = poll_fn(|cx| other.poll_receive(cx)).await;
            assert!(matches!(heard, Received::Message(Message::Stopping)), "{heard:?}");
        }
        poll_fn(|cx| other.poll_receive(cx)).await
    };
    let (sent, last) = tokio::join!(sending, receiving);
    sent.unwrap();
    assert!(matches!(last, Received::Message(Message::Cut)), "{last:?}");
}

#[tokio::test]
async fn a_message_waits_for_memory() {
    let (one, _other) = pair();
    let mut shortages = 3;
    let until = Instant::now() + Duration::from_secs(10);
    let send = |channel: &Channel| match shortages {
        0 => channel.send(&Message::Cut),
        _ => {
            shortages -= 1;
            Err(Errno::ENOBUFS.into())
        }
    };
    one.with_room(until, send).await.unwrap();
    assert_eq!(shortages, 0);
}

#[tokio::test]
async fn the_wait_for_room_ends_with_the_peer_and_with_time() {
    let (one, other) = pair();
    fill(&one);
    let send = |channel: &Channel| channel.send(&Message::Cut);
    let late = one.with_room(Instant::now(), send).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    drop(other);
    let until = Instant::now() + Duration::from_secs(10);
    let ended = one.with_room(until, send).await.unwrap_err();
    assert_ne!(ended.kind(), io::ErrorKind::TimedOut);
    assert!(one.has_hung_up());
}

#[tokio::test]
async fn a_long_message_without_its_file_is_garbage() {
    let (one, mut other) = pair();
    let folder = std::fs::File::open("/").unwrap();
    send_packet(one.as_fd(), &Message::File.encode()).unwrap();
    send_with_descriptors(one.as_fd(), &Message::File.encode(), &[folder.as_fd()]).unwrap();
    let file = sys::memory_file::written(&Message::File.encode()).unwrap();
    send_with_descriptors(one.as_fd(), &Message::File.encode(), &[file.as_fd()]).unwrap();
    for _ in 0..3 {
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
    }
}

#[tokio::test]
async fn a_packet_that_is_too_long_is_garbage() {
    let (one, mut other) = pair();
    send_packet(one.as_fd(), &vec![b'x'; PACKET_MAX + 1]).unwrap();
    let heard = poll_fn(|cx| other.poll_receive(cx)).await;
    assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
}
