//! Calls of services that know no callers, such as health and reflection, counted like those of workloads.
//!
//! Laws: a call takes a place among its user's open calls before it is answered, and gives it back when the last of the
//! answer has gone or nobody wants it any more; so no stream, whatever its service, is open beyond the limits.
//! Not here: calls of workloads, which take their places themselves (`call`).
//! Sources: ca/docs/attacks.md §1.4.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

use super::connection::{Caller, Place};
use super::serve::Doors;
use crate::call::place_for;
use crate::refusal::Refusal;

/// A service whose calls are counted.
#[derive(Clone)]
pub(super) struct Counted<S> {
    inner: S,
    doors: Arc<Doors>,
}

impl<S> Counted<S> {
    pub(super) const fn new(inner: S, doors: Arc<Doors>) -> Self {
        Self { inner, doors }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let place = match request.extensions().get::<Arc<Caller>>() {
            Some(caller) => place_for(&self.doors, caller),
            None => Err(Refusal::Bug),
        };
        match place {
            Ok(place) => {
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let answer = answer.await?;
                    Ok(answer.map(|body| Body::new(Held { body, _place: place })))
                })
            }
            Err(refusal) => Box::pin(async move { Ok(Status::from(refusal).into_http()) }),
        }
    }
}

/// The body of an answer, with the place of its call.
struct Held {
    body: Body,
    _place: Place,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
