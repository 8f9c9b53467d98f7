//! Tests of PROXY headers: which clients may send one, and which bytes the upstream receives.

use super::*;
use crate::config::HeaderVersion;

#[tokio::test]
async fn the_upstream_is_told_who_the_client_is() {
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let upstream = listen().await;
        let front = Front::new(&[&upstream], |config| config.send_header = Some(version)).await;
        let (mut client, mut server) = front.pair(&upstream).await;
        let route = Route { source: client.local_addr().unwrap(), destination: front.address };
        let expected = header::announce(version, Some(route));
        assert_eq!(read(&mut server, expected.len()).await, expected);
        assert_linked(&mut client, &mut server).await;
    }
}

/// The PROXY header of a trusted sender determines the client's address. All bytes after the header
/// reach the upstream.
#[tokio::test]
async fn a_trusted_header_determines_the_client() {
    let route = Route {
        source: "192.0.2.1:1234".parse().unwrap(),
        destination: "198.51.100.7:80".parse().unwrap(),
    };
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let upstream = listen().await;
        let front = Front::new(&[&upstream], |config| {
            config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
            config.send_header = Some(HeaderVersion::V1);
        })
        .await;
        let header = header::announce(version, Some(route));
        let told = header::announce(HeaderVersion::V1, Some(route));
        // Send the header and the data in one packet. The data looks like another PROXY header.
        let mut client = front.connect().await;
        client.write_all(&[&header[..], b"PROXY rest"].concat()).await.unwrap();
        let mut server = accept(&upstream).await;
        assert_eq!(read(&mut server, told.len() + 10).await, [&told[..], b"PROXY rest"].concat());
        assert_linked(&mut client, &mut server).await;
        // Send the same header on a new connection, byte by byte, followed by other data.
        let mut client = front.connect().await;
        client.set_nodelay(true).unwrap();
        for byte in header.iter().chain(b"rest") {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        client.shutdown().await.unwrap();
        let mut server = accept(&upstream).await;
        assert_eq!(read_to_end(&mut server).await.unwrap(), [&told[..], b"rest"].concat());
    }
}

/// If a trusted sender sends a header without a client address, the upstream receives the sender's
/// own address.
#[tokio::test]
async fn a_proxy_that_speaks_for_itself_is_the_client() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["127.0.0.1".parse().unwrap()];
        config.send_header = Some(HeaderVersion::V2);
    })
    .await;
    let mut client = front.connect().await;
    client.write_all(&header::own(HeaderVersion::V2)).await.unwrap();
    let mut server = accept(&upstream).await;
    let route = Route { source: client.local_addr().unwrap(), destination: front.address };
    let expected = header::announce(HeaderVersion::V2, Some(route));
    assert_eq!(read(&mut server, expected.len()).await, expected);
}

/// The proxy disconnects a trusted sender that sends no valid PROXY header, without connecting it
/// to an upstream.
#[tokio::test]
async fn a_trusted_sender_without_a_header_is_disconnected() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
        config.header_timeout = SOON;
    })
    .await;
    let mut silent = front.connect().await;
    let mut other = front.connect().await;
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut half = front.connect().await;
    half.write_all(b"PROXY TCP4 192.0.2.1 ").await.unwrap();
    half.shutdown().await.unwrap();
    for client in [&mut silent, &mut other, &mut half] {
        // The proxy closes or resets the connection without sending a single byte.
        assert_eq!(read_to_end(client).await.unwrap_or_default(), b"");
    }
    assert!(timeout(Duration::from_millis(50), upstream.accept()).await.is_err());
}

/// A PROXY header from an untrusted sender is forwarded to the upstream like any other bytes.
#[tokio::test]
async fn a_header_from_an_untrusted_sender_is_relayed() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["192.0.2.0/24".parse().unwrap()]
    })
    .await;
    let (mut client, mut server) = front.pair(&upstream).await;
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.1 1 1\r\nrest").await.unwrap();
    assert_eq!(read(&mut server, 40).await, b"PROXY TCP4 192.0.2.1 192.0.2.1 1 1\r\nrest");
}

/// Returns a PROXY header with the addresses 192.0.2.1:1234 and 198.51.100.7:80, and with `length`
/// bytes of additional fields (TLVs).
fn with_additions(length: u16) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11";
    let addresses = [192, 0, 2, 1, 198, 51, 100, 7, 4, 210, 0, 80];
    let after_fixed = (length + 12).to_be_bytes();
    [&fixed[..], &after_fixed, &addresses, &vec![0xee; usize::from(length)]].concat()
}

/// The proxy removes exactly the bytes of the header, even if the header has the maximum length.
#[tokio::test]
async fn the_longest_header_is_removed_exactly() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["::ffff:127.0.0.0/104".parse().unwrap()];
        config.send_header = Some(HeaderVersion::V1);
    })
    .await;
    let told = b"PROXY TCP4 192.0.2.1 198.51.100.7 1234 80\r\n";
    for length in [4_000, u16::MAX - 12] {
        for part in [1_000, usize::MAX] {
            let mut client = front.connect().await;
            let all = [&with_additions(length)[..], b"rest"].concat();
            for part in all.chunks(part.min(all.len())) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut server = accept(&upstream).await;
            let expected = [&told[..], b"rest"].concat();
            assert_eq!(read(&mut server, expected.len()).await, expected);
            assert_linked(&mut client, &mut server).await;
        }
    }
}

/// The proxy counts clients with an invalid or missing PROXY header. It does not count a client
/// that disconnects without sending a byte.
#[tokio::test]
async fn invalid_headers_are_counted() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
        config.header_timeout = SOON;
    })
    .await;
    drop(front.connect().await);
    let _silent = front.connect().await;
    let half = with_additions(4_000);
    for wrong in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 192.0.2.1", &half[..1_000]] {
        let mut client = front.connect().await;
        client.write_all(wrong).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await.unwrap_or_default(), b"");
    }
    becomes(|| front.proxy.header_errors() == BTreeMap::from([("web".to_owned(), 4)])).await;
}
