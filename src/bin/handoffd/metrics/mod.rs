//! Answers whoever collects metrics, on a listener of its own: the counters of the whole line, in the OpenMetrics text format.
//!
//! Whichever generation accepts asks the head by the operator's socket, as `handoffd status` does: so the sums are those of the
//! line, whoever answers, and a handoff is no gap. How they are written is in `text`.

mod text;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoffd::{Connection, Control, METRICS_LISTENER, Parcel, Routes, Service, Status, UpstreamCounters};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

/// The content type of OpenMetrics, version 1.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// All that the daemon serves: what it is for, and its own metrics.
#[derive(Debug)]
pub(crate) struct WithMetrics {
    pub(crate) routes: Routes,
    /// Where the head is asked; none when there is no listener for metrics.
    pub(crate) control: Option<PathBuf>,
}

impl Service for WithMetrics {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        match &self.control {
            // In a box: no other connection shall be as large as this one.
            Some(control) if connection.listener() == METRICS_LISTENER => Box::pin(answer(control, connection)).await,
            _ => self.routes.serve(connection).await,
        }
    }

    fn carries(&self, listener: &str) -> bool {
        listener != METRICS_LISTENER && self.routes.carries(listener)
    }

    fn accepts(&self, listener: &str, parcel: &Parcel) -> Result<(), String> {
        self.routes.accepts(listener, parcel)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        self.routes.upstreams()
    }
}

/// One request, one answer.
async fn answer(control: &Path, connection: &mut Connection) -> io::Result<()> {
    let respond = service_fn(async |request: Request<_>| Ok::<_, Infallible>(respond(control, &request).await));
    let mut server = http1::Builder::new();
    server.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    server.serve_connection(TokioIo::new(&mut connection.stream), respond).await.map_err(io::Error::other)
}

async fn respond<B>(control: &Path, request: &Request<B>) -> Response<String> {
    let answered = |code: StatusCode, kind: &'static str, body: String| {
        let mut response = Response::new(body);
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    };
    if request.method() != Method::GET {
        let mut response = answered(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return answered(StatusCode::NOT_FOUND, "text/plain", "there is only /metrics\n".to_owned());
    }
    match ask(control.to_owned()).await {
        Ok(text) => answered(StatusCode::OK, OPEN_METRICS, text),
        Err(why) => {
            tracing::warn!(reason = %why, "no metrics: {why}");
            answered(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n"))
        }
    }
}

/// Asks the head, on a thread that may wait.
async fn ask(control: PathBuf) -> Result<String, String> {
    let status: Result<Status, _> =
        tokio::task::spawn_blocking(move || Control::at(control).status()).await.map_err(|error| error.to_string())?;
    text::encode(status.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
