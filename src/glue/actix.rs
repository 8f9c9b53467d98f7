//! Support for actix-web servers.
//!
//! actix-web accepts connections itself, so handoffd does not count them. Add the middleware
//! [`CloseMiddleware`] to the app, so that replies announce the end of a connection.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle, Service, ServiceRequest, ServiceResponse, Transform};
use actix_web::http::{ConnectionType, StatusCode};
use tokio::time::sleep;

use crate::embed::Life;
use crate::error::Error;

/// The pause between two checks whether actix-web has accepted the last clients.
const ACCEPT_TIME: Duration = Duration::from_millis(5);

/// Runs an actix-web server that listens on [`Life::tcp_listener`] or [`Life::unix_listener`].
/// Reports that the server is ready. Returns when this generation has stopped accepting and all
/// connections have ended. If no other generation accepts on a listener, the server first accepts
/// the clients that still wait there.
///
/// Call `disable_signals` on the server, because handoffd handles the signals.
///
/// # Errors
/// Returns actix-web's error if the server fails.
pub async fn serve(life: &Life, server: Server) -> Result<(), Error> {
    let handle = server.handle();
    life.ready();
    let stop = async {
        life.retired().await;
        handle.pause().await;
        tokio::select! {
            () = life.closing() => {}
            () = serve_last_clients(life, &handle) => {}
        }
        handle.stop(true).await;
    };
    tokio::pin!(server);
    let served = tokio::select! {
        served = &mut server => served,
        () = stop => server.await,
    };
    served.map_err(Error::system("run the server of actix-web"))
}

/// Accepts the last clients of each listener on which no other generation accepts. Never returns,
/// because clients can arrive until actix-web stops and closes its copies of the sockets.
async fn serve_last_clients(life: &Life, handle: &ServerHandle) {
    loop {
        life.client_left().await;
        handle.resume().await;
        while life.has_client_left() {
            sleep(ACCEPT_TIME).await;
        }
        handle.pause().await;
    }
}

/// A middleware that announces the end of the connection in each reply, once this generation has
/// stopped accepting clients. Without it, a request is lost if the client sends it just before the
/// server closes an idle connection.
#[derive(Clone, Debug)]
pub struct CloseMiddleware {
    life: Life,
}

/// A service with the middleware [`CloseMiddleware`].
#[derive(Debug)]
pub struct ClosingService<S> {
    inner: S,
    life: Life,
}

impl CloseMiddleware {
    /// Creates the middleware for a server of this generation.
    #[must_use]
    pub fn new(life: &Life) -> Self {
        Self { life: life.clone() }
    }
}

impl<S, B> Transform<S, ServiceRequest> for CloseMiddleware
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>>,
    S::Future: 'static,
{
    type Response = ServiceResponse<B>;
    type Error = S::Error;
    type Transform = ClosingService<S>;
    type InitError = ();
    type Future = Ready<Result<ClosingService<S>, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(ClosingService { inner, life: self.life.clone() }))
    }
}

impl<S, B> Service<ServiceRequest> for ClosingService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>>,
    S::Future: 'static,
{
    type Response = ServiceResponse<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<ServiceResponse<B>, S::Error>>>>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let (reply, life) = (self.inner.call(request), self.life.clone());
        Box::pin(async move {
            let mut reply = reply.await?;
            // Do not change a reply that switches the protocol, because no request follows on its
            // connection.
            if life.has_retired() && reply.status() != StatusCode::SWITCHING_PROTOCOLS {
                reply.response_mut().head_mut().set_connection_type(ConnectionType::Close);
            }
            Ok(reply)
        })
    }
}
