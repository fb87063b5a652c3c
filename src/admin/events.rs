//! `GET /events`: what happens, as it happens, as server-sent events.

use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{sleep, timeout};

use super::api::Api;
use super::error::Problem;
use super::handlers::only_parameter;
use crate::control::events::{Event, Listening};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// A line is sent at least this often, so that whoever is between us keeps the connection, and the dead are noticed.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A stream ends by itself before its connection has to; its reader comes back and goes on where it was.
const LONGEST: Duration = Duration::from_secs(540);
/// How long a reader may leave everything unread.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pieces that wait for a reader.
const WAITING: usize = 64;

pub(super) async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Problem> {
    let asked = only_parameter(query, "after")?;
    let asked = match headers.get(LAST_EVENT_ID) {
        Some(value) => Some(value.to_str().unwrap_or_default().to_owned()),
        None => asked,
    };
    let after = match asked.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(number) => Some(number.parse().map_err(|_| {
            Problem::bad_parameter(
                "after",
                "is no number of an event",
                "the `id` of the last one seen",
            )
        })?),
    };
    let Ok(place) = api.listeners.clone().try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_listeners",
            "too many are following events",
            "close some of them, or ask GET /incidents from time to time",
        ));
    };
    let (send, receive) = mpsc::channel(WAITING);
    let listening = api.handle.listen(after);
    tokio::spawn(follow(api, listening, send, place));
    let mut response = Response::new(Body::new(Pieces(receive)));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// Passes events on until the reader leaves, is too slow, or the time is over.
async fn follow(api: Api, listening: Listening, send: mpsc::Sender<Bytes>, _place: OwnedSemaphorePermit) {
    let Listening {
        missed,
        gap,
        mut next,
    } = listening;
    let ended = async {
        tokio::select! {
            () = api.stop.cancelled() => {}
            () = sleep(LONGEST) => {}
            () = send.closed() => {}
        }
    };
    let passed = async {
        // Told at once, so that a reader knows that it is connected.
        put(&send, "retry: 1000\n: fusebox\n\n".to_owned()).await?;
        if gap {
            put(
                &send,
                "event: gap\ndata: {\"why\":\"some events are no longer kept: read the state again\"}\n\n"
                    .to_owned(),
            )
            .await?;
        }
        for event in &missed {
            put(&send, written(event)).await?;
        }
        loop {
            let piece = match timeout(HEARTBEAT, next.recv()).await {
                Ok(Ok(event)) => written(&event),
                Ok(Err(RecvError::Lagged(count))) => {
                    let text = format!(
                        "event: dropped\ndata: {{\"missed\":{count},\"why\":\"the reader was too slow: read the state again\"}}\n\n"
                    );
                    put(&send, text).await?;
                    return None::<()>;
                }
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => ": heartbeat\n\n".to_owned(),
            };
            put(&send, piece).await?;
        }
    };
    tokio::select! {
        () = ended => {}
        _ = passed => {}
    }
}

/// `None` when the reader has left, or leaves everything unread.
async fn put(send: &mpsc::Sender<Bytes>, piece: String) -> Option<()> {
    timeout(PATIENCE, send.send(piece.into())).await.ok()?.ok()
}

/// An event on the wire. The document is one line of JSON.
fn written(event: &Event) -> String {
    let mut out = String::with_capacity(event.document.len() + 96);
    // Writing to a string cannot fail.
    write!(
        out,
        "id: {}\nevent: {}\ndata: {{\"at\":\"{}\",\"{}\":{}}}\n\n",
        event.seq, event.kind, event.at, event.kind, event.document
    )
    .ok();
    out
}

/// Pieces that a task passes on.
struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|p| Ok(Frame::data(p))))
    }
}
