//! The service of the metrics listener. It answers each scrape (a request for the counters) with
//! the counters of all generations, in the OpenMetrics text format.
//!
//! The generation that accepts a scrape asks the active generation over the control socket, as
//! `handoffd status` does. Every answer therefore contains the sums over all generations, and a
//! handoff causes no gap. The module `scrapes` asks the active generation, and `text` formats the
//! answer.

mod scrapes;
mod text;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use handoffd::carry::{CarriedState, Declined};
use handoffd::listen::METRICS_LISTENER;
use handoffd::proxy::Proxy;
use handoffd::status::UpstreamCounters;
use handoffd::{Connection, Service};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use scrapes::Scrapes;
use tokio::time::timeout;

use crate::routes::Routes;

/// The content type of a response in the OpenMetrics format, version 1.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a metrics collector may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a whole scrape may take, from the request to the end of the answer.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(30);

/// All services of the daemon: the configured services, and the service of the metrics listener.
#[derive(Debug)]
pub(crate) struct WithMetrics {
    pub(crate) routes: Routes,
    /// Answers the requests of metrics collectors. `None` if the daemon has no metrics listener.
    scrapes: Option<Scrapes>,
}

impl WithMetrics {
    /// Creates a service for `routes`. If `control` is given, the service also answers scrapes. It
    /// then requests the counters over the control socket at that path.
    pub(crate) fn new(routes: Routes, control: Option<PathBuf>) -> Self {
        Self { routes, scrapes: control.map(Scrapes::of) }
    }
}

impl Service for WithMetrics {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        match &self.scrapes {
            // Box this future, because otherwise it would enlarge the future of every connection.
            Some(scrapes) if connection.listener() == METRICS_LISTENER => {
                Box::pin(answer(scrapes, connection)).await
            }
            _ => self.routes.serve(connection).await,
        }
    }

    fn proxy(&self, listener: &str) -> Option<&Proxy> {
        self.routes.proxy(listener).filter(|_| listener != METRICS_LISTENER)
    }

    fn carries(&self, listener: &str) -> bool {
        listener != METRICS_LISTENER && self.routes.carries(listener)
    }

    fn accepts(&self, listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        self.routes.accepts(listener, saved_state)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        self.routes.upstreams()
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        self.routes.header_errors()
    }
}

/// Answers one request for the counters.
async fn answer(scrapes: &Scrapes, connection: &mut Connection) -> io::Result<()> {
    let respond = service_fn(async |request: Request<_>| {
        Ok::<_, Infallible>(respond(scrapes, &request).await)
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    let conversation = server.serve_connection(TokioIo::new(&mut connection.stream), respond);
    // The time limit closes the connection of a metrics collector that does not read its answer.
    timeout(CONVERSATION_TIMEOUT, conversation).await?.map_err(io::Error::other)
}

async fn respond<B>(scrapes: &Scrapes, request: &Request<B>) -> Response<Text> {
    let answered = |code: StatusCode, kind: &'static str, body: Bytes| {
        let mut response = Response::new(Text(body));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    };
    if request.method() != Method::GET {
        let mut response = answered(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET is supported\n".into(),
        );
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return answered(StatusCode::NOT_FOUND, "text/plain", "not found: use /metrics\n".into());
    }
    match scrapes.counters().await {
        Ok(text) => answered(StatusCode::OK, OPEN_METRICS, text),
        Err(why) => {
            answered(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n").into())
        }
    }
}

/// The body of a response. Several responses share the same text.
struct Text(Bytes);

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = std::mem::take(&mut self.0);
        Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
