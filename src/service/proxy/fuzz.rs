//! Fuzzing entry points for the proxy's parsers. The parsers read PROXY headers from clients, and
//! the state of connections that move here from another process.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, Runtime};

use super::carried::{self, Begun, CarriedStage, Resumed};
use super::ledgers::ProxyLedgers;
use super::upstreams::UpstreamPool;
use crate::address::Address;
use crate::carry::CarriedState;
use crate::config::{ProxyConfig, UpstreamTarget};
use crate::net::Pipe;
use crate::plane::Limits;

pub(crate) use super::header::fuzz as proxy_header;

struct Setup {
    runtime: Runtime,
    config: ProxyConfig,
    upstreams: UpstreamPool,
    ledgers: ProxyLedgers,
}

thread_local! {
    static SETUP: Option<Setup> = setup();
}

fn setup() -> Option<Setup> {
    let targets = ["127.0.0.1:9", "@up", "backend:9"].iter().map(|target| target.parse().ok());
    let targets: Option<Vec<UpstreamTarget>> = targets.collect();
    let mut config = ProxyConfig::to(crate::config::Upstreams::new(targets?).ok()?);
    (config.idle_timeout, config.lifetime) =
        (Some(Duration::from_secs(60)), Some(Duration::from_secs(3600)));
    let runtime = Builder::new_current_thread().enable_all().build().ok()?;
    Some(Setup {
        runtime,
        upstreams: UpstreamPool::new(&config),
        config,
        ledgers: ProxyLedgers::default(),
    })
}

/// Restores the state of a moved connection, saves it again, and checks that the new state equals
/// the original. Returns whether the state is valid.
pub(crate) fn take_up(saved_state: CarriedState) -> bool {
    SETUP.with(|setup| setup.as_ref().and_then(|setup| setup.take_up(saved_state)).is_some())
}

impl Setup {
    fn take_up(&self, mut saved_state: CarriedState) -> Option<()> {
        let _within = self.runtime.enter();
        let (stage, owed) = carried::read(&saved_state.bytes).ok()?;
        let words = serde_json::to_string(&stage).ok()?;
        let mut is_same = true;
        // Add as many file descriptors as the state needs, because the fuzzer's bytes contain none.
        let needed = match &stage {
            CarriedStage::Arriving { .. } => Vec::new(),
            CarriedStage::Conversing(conversing) => {
                let upstream = self.upstreams.adopt(&conversing.upstream, &[])?;
                // Compare the labels, because the proxy may know the address under a different host
                // name.
                is_same = upstream.label() == conversing.upstream;
                descriptors(upstream.address(), conversing.relay.needs().1)?
            }
        };
        let owed = owed.to_vec();
        saved_state.descriptors = needed;
        carried::check(&saved_state, &self.upstreams).ok()?;
        let begun = carried::take_up(saved_state, &self.upstreams, &self.ledgers);
        assert!(begun.is_ok(), "a checked state cannot be restored: {:?}", begun.err());
        match begun.ok()? {
            Begun::Arriving(arriving) => {
                let again = carried::arriving(arriving);
                assert_eq!(carried::check(&again, &self.upstreams), Ok(()));
            }
            Begun::Conversing(Resumed { upstream, stream, relay, used }) => {
                let ProxyConfig { idle_timeout, lifetime, .. } = self.config;
                let _ = Limits::new(idle_timeout, lifetime, used).used(Duration::ZERO);
                let socket = stream.into_relay_socket().ok()?;
                let again = carried::conversing(upstream.label().to_owned(), socket, relay, used);
                assert_eq!(carried::check(&again, &self.upstreams), Ok(()));
                let (stage, owed_again) = carried::read(&again.bytes).ok()?;
                assert!(!is_same || serde_json::to_string(&stage).ok()? == words, "{words}");
                assert_eq!(owed_again, &owed[..]);
            }
        }
        Some(())
    }
}

/// Returns a socket of the upstream's address family and `of_pipes` pipe ends.
fn descriptors(upstream: &Address, of_pipes: usize) -> Option<Vec<OwnedFd>> {
    let socket = match upstream {
        Address::Tcp(_) | Address::Tcp6Only(_) => {
            Socket::new(Domain::IPV4, Type::STREAM, None).ok()?.into()
        }
        Address::UnixPath(_) | Address::UnixAbstract(_) => UnixStream::pair().ok()?.0.into(),
    };
    let mut descriptors = vec![socket];
    for _ in 0..of_pipes / 2 {
        let (read, write) = Pipe::take().ok()?.into_ends()?;
        descriptors.extend([read, write]);
    }
    Some(descriptors)
}

#[cfg(test)]
pub(crate) fn saved_states() -> Vec<(String, CarriedState)> {
    let saved_state = |name: &str, words: &str| {
        (name.to_owned(), CarriedState::new("proxy/1", words.as_bytes().to_vec()))
    };
    let used = r#""used":{"age":{"secs":1,"nanos":2},"idle":{"secs":0,"nanos":5},"transferred":7}"#;
    let conversing = |upstream: &str, relay: &str, owed: &str| {
        format!(
            "{{\"conversing\":{{\"upstream\":\"{upstream}\",\"received\":1,\"sent\":2,\"finished\":false,\
            \"relay\":{relay},{used}}}}}\n{owed}"
        )
    };
    vec![
        saved_state(
            "arriving",
            "{\"arriving\":{\"identified\":null,\"waited\":null,\"tried\":[]}}\n",
        ),
        saved_state(
            "identified",
            "{\"arriving\":{\"identified\":{\"route\":{\"source\":\"192.0.2.1:5\",\"destination\":\"[::1]:80\"}},\
            \"waited\":{\"secs\":1,\"nanos\":2},\"tried\":[\"@up\"]}}\n",
        ),
        saved_state("even", &conversing("@up", r#"{"up":"even","down":"over"}"#, "")),
        saved_state(
            "owing",
            &conversing("127.0.0.1:9", r#"{"up":{"bytes":2},"down":{"bytes":4}}"#, "updown"),
        ),
        saved_state(
            "named",
            &conversing("backend:9/127.0.0.1:7", r#"{"up":"even","down":"over"}"#, ""),
        ),
        saved_state("piped", &conversing("@up", r#"{"up":{"piped":9},"down":"end"}"#, "")),
    ]
}
