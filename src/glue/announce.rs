//! This module adds `Connection: close` to each HTTP/1.1 reply once the generation has retired,
//! that is, stopped accepting.
//!
//! An HTTP/1.1 client reuses its connection for the next request, unless a reply contains
//! `Connection: close` (RFC 9112, section 9.6). If the server closes the connection without this
//! header, a request that is already on its way is lost. In HTTP/2 the server sends GOAWAY instead.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;

use crate::embed::Life;

/// A service that adds `Connection: close` to replies once the generation has stopped accepting.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "tower"), expect(unreachable_pub, reason = "only tower shows it"))]
pub struct Announcing<S> {
    inner: S,
    life: Life,
}

pin_project! {
    /// The reply of an [`Announcing`] service.
    #[derive(Debug)]
    pub struct AnnouncedReply<F> {
        #[pin]
        reply: F,
        life: Life,
        version: Version,
    }
}

impl<S> Announcing<S> {
    pub(super) fn new(inner: S, life: Life) -> Self {
        Self { inner, life }
    }

    fn reply<F>(&self, version: Version, reply: F) -> AnnouncedReply<F> {
        AnnouncedReply { reply, life: self.life.clone(), version }
    }
}

impl<F, B, E> Future for AnnouncedReply<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut reply = ready!(this.reply.poll(cx))?;
        // Do not change a reply that switches the protocol, because no request follows on its
        // connection.
        let may_be_reused =
            *this.version <= Version::HTTP_11 && reply.status() != StatusCode::SWITCHING_PROTOCOLS;
        if may_be_reused && this.life.has_retired() {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(reply))
    }
}

#[cfg(feature = "tower")]
impl<S, A, B> tower_service::Service<Request<A>> for Announcing<S>
where
    S: tower_service::Service<Request<A>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AnnouncedReply<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let version = request.version();
        let reply = self.inner.call(request);
        self.reply(version, reply)
    }
}

#[cfg(feature = "hyper")]
impl<S, A, B> hyper::service::Service<Request<A>> for Announcing<S>
where
    S: hyper::service::Service<Request<A>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AnnouncedReply<S::Future>;

    fn call(&self, request: Request<A>) -> Self::Future {
        let version = request.version();
        self.reply(version, self.inner.call(request))
    }
}
