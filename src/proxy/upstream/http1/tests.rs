//! Tests of one HTTP/1.1 connection over real sockets, the upstream's side written by hand.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Conn, Decoder, Http1Error, Spare};
use crate::proxy::body::RequestBody;

type Link = Conn<TcpStream>;

/// Runs a test with a connection and the upstream's end of it.
fn with<F: Future<Output = ()>>(test: impl FnOnce(Link, TcpStream) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        theirs.set_nodelay(true).unwrap();
        let spare = Rc::new(Spare::default());
        let link = Conn::new(ours, spare, Rc::new(RefCell::default()));
        timeout(Duration::from_secs(20), test(link, theirs))
            .await
            .unwrap();
    });
}

fn post(body: &'static [u8]) -> Request<RequestBody> {
    Request::post("/v1/x")
        .header("host", "h")
        .body(RequestBody::whole(Bytes::from_static(body)))
        .unwrap()
}

/// Reads a request off the upstream's end, up to the end of `body`.
async fn request(theirs: &mut TcpStream, body: &[u8]) -> String {
    let mut got = Vec::new();
    let end = [b"\r\n\r\n", body].concat();
    while !got.ends_with(&end) {
        assert_ne!(
            theirs.read_buf(&mut got).await.unwrap(),
            0,
            "{:?}",
            String::from_utf8_lossy(&got)
        );
    }
    String::from_utf8_lossy(&got).into_owned()
}

struct Got {
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    error: Option<Http1Error>,
}

impl Got {
    fn content(&self) -> Vec<u8> {
        self.frames.concat()
    }
}

async fn read(link: &mut Link, body: &mut Decoder) -> Got {
    let mut got = Got {
        frames: Vec::new(),
        trailers: None,
        error: None,
    };
    loop {
        match poll_fn(|cx| link.poll_frame(body, cx)).await {
            None => return got,
            Some(Err(e)) => {
                got.error = Some(e);
                return got;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => got.frames.push(data),
                Err(frame) => got.trailers = frame.into_trailers().ok(),
            },
        }
    }
}

async fn exchange(
    link: &mut Link,
    theirs: &mut TcpStream,
    answer: &[u8],
) -> Result<(Response<()>, Got), Http1Error> {
    let answering = async {
        request(theirs, b"abc").await;
        theirs.write_all(answer).await.unwrap();
    };
    let (answer, ()) = tokio::join!(link.send(post(b"abc")), answering);
    let (parts, mut body) = answer.map_err(|e| e.error)?.into_parts();
    let got = read(link, &mut body).await;
    Ok((Response::from_parts(parts, ()), got))
}

#[test]
fn exchanges_follow_each_other() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        for (answer, content) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
                "ab",
            ),
            ("HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n", ""),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        ] {
            let (_, got) = exchange(&mut link, &mut theirs, answer.as_bytes()).await.unwrap();
            assert_eq!(got.content(), content.as_bytes());
            assert!(got.error.is_none());
            assert!(link.is_alive().await, "after {answer:?}");
        }
    });
}

#[test]
fn what_arrived_together_is_one_frame() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..16 {
            answer.extend_from_slice(format!("fa\r\n{}\r\n", "x".repeat(250)).as_bytes());
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        let (_, got) = exchange(&mut link, &mut theirs, &answer).await.unwrap();
        assert_eq!(got.content().len(), 4000);
        assert_eq!(got.frames.len(), 1);
        assert!(link.is_alive().await);
    });
}

#[test]
fn an_answer_byte_by_byte_is_the_same_answer() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answer =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n\
            3;e=f\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 2\r\n\r\n";
        for _ in 0..2 {
            let answering = async {
                request(&mut theirs, b"abc").await;
                for byte in answer {
                    theirs.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let reading = async {
                let (parts, mut body) = link
                    .send(post(b"abc"))
                    .await
                    .map_err(|e| e.error)
                    .unwrap()
                    .into_parts();
                assert_eq!(parts.headers["x-a"], "1");
                read(&mut link, &mut body).await
            };
            let (got, ()) = tokio::join!(reading, answering);
            assert_eq!(got.content(), b"abcde");
            assert_eq!(got.trailers.unwrap()["x-t"], "2");
            assert!(link.is_alive().await);
        }
    });
}

#[test]
fn a_connection_is_kept_only_when_it_is_clear_what_comes_next() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n!",
    ] {
        with(async |mut link: Link, mut theirs: TcpStream| {
            let (_, got) = exchange(&mut link, &mut theirs, answer.as_bytes()).await.unwrap();
            assert_eq!(got.content(), b"ok", "{answer:?}");
            assert!(!link.is_idle(), "{answer:?}");
        });
    }
}

#[test]
fn a_connection_that_changed_while_idle_is_not_used() {
    for said in [&b""[..], b"HTTP/1.1 408 Too slow\r\n\r\n"] {
        with(async |mut link: Link, mut theirs: TcpStream| {
            assert!(link.is_alive().await);
            theirs.write_all(said).await.unwrap();
            if said.is_empty() {
                drop(theirs);
            }
            while link.is_alive().await {
                tokio::task::yield_now().await;
            }
        });
    }
}

#[test]
fn a_request_of_which_nothing_was_sent_is_given_back() {
    with(async |mut link: Link, theirs: TcpStream| {
        // A reset, not an end: what is written then fails at once.
        #[expect(
            deprecated,
            reason = "the only way to reset, and there is no runtime to block for long"
        )]
        theirs.set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        while link.is_alive().await {
            tokio::task::yield_now().await;
        }
        let failure = link.send(post(b"abc")).await.err().unwrap();
        let unsent = failure.unsent.unwrap();
        assert_eq!((unsent.method(), unsent.uri().path()), (&Method::POST, "/v1/x"));
        assert!(matches!(unsent.into_body(), RequestBody::Whole(Some(b)) if *b == *b"abc"));
    });
}

#[test]
fn an_upstream_that_closes_instead_of_answering_is_an_error_and_nothing_is_given_back() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answering = async {
            request(&mut theirs, b"abc").await;
            drop(theirs);
        };
        let (answer, ()) = tokio::join!(link.send(post(b"abc")), answering);
        let failure = answer.err().unwrap();
        assert!(failure.unsent.is_none());
        assert!(
            matches!(failure.error, Http1Error::NoAnswer),
            "{:?}",
            failure.error
        );
        assert!(!link.is_idle());
    });
}

#[test]
fn answers_that_break_off_or_break_the_framing_are_errors() {
    for (answer, content) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "ok"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok",
            "ok",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
            "ok",
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz", ""),
    ] {
        with(async |mut link: Link, mut theirs: TcpStream| {
            let answering = async {
                request(&mut theirs, b"abc").await;
                theirs.write_all(answer.as_bytes()).await.unwrap();
                drop(theirs);
            };
            let (answered, ()) = tokio::join!(link.send(post(b"abc")), answering);
            let mut body = answered.map_err(|e| e.error).unwrap().into_body();
            let got = read(&mut link, &mut body).await;
            assert_eq!(got.content(), content.as_bytes(), "{answer:?}");
            assert!(got.error.is_some(), "{answer:?}");
            assert!(!link.is_idle());
        });
    }
}

#[test]
fn without_a_length_the_body_ends_with_the_connection() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answering = async {
            request(&mut theirs, b"abc").await;
            theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").await.unwrap();
            drop(theirs);
        };
        let (answered, ()) = tokio::join!(link.send(post(b"abc")), answering);
        let mut body = answered.map_err(|e| e.error).unwrap().into_body();
        let got = read(&mut link, &mut body).await;
        assert_eq!(got.content(), b"ok");
        assert!(got.error.is_none() && !link.is_idle());
    });
}

#[test]
fn a_large_request_is_written_while_its_answer_is_read() {
    static LARGE: [u8; 8 << 20] = [7; 8 << 20];
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answering = async {
            theirs
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
                .await
                .unwrap();
            let mut got = vec![0; 64 * 1024];
            let mut total = 0;
            while total < LARGE.len() {
                total += theirs.read(&mut got).await.unwrap();
            }
            theirs.write_all(b"k").await.unwrap();
        };
        let reading = async {
            let mut body = link
                .send(post(&LARGE))
                .await
                .map_err(|e| e.error)
                .unwrap()
                .into_body();
            read(&mut link, &mut body).await
        };
        let (got, ()) = tokio::join!(reading, answering);
        assert_eq!(got.content(), b"ok");
    });
}

#[test]
fn an_answer_before_the_request_was_taken_ends_the_connection() {
    static LARGE: [u8; 8 << 20] = [7; 8 << 20];
    with(async |mut link: Link, mut theirs: TcpStream| {
        theirs
            .write_all(b"HTTP/1.1 413 Too large\r\ncontent-length: 2\r\n\r\nno")
            .await
            .unwrap();
        let answer = link.send(post(&LARGE)).await.map_err(|e| e.error).unwrap();
        assert_eq!(answer.status(), 413);
        let got = read(&mut link, &mut answer.into_body()).await;
        assert_eq!(got.content(), b"no");
        assert!(!link.is_idle(), "part of the request was not sent");
    });
}

#[test]
fn dropping_an_exchange_closes_the_connection() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answering = async {
            request(&mut theirs, b"abc").await;
            theirs
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
                .await
                .unwrap();
        };
        let (answered, ()) = tokio::join!(link.send(post(b"abc")), answering);
        drop(answered);
        drop(link);
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(1), theirs.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the upstream must see it within a second");
    });
}

#[test]
fn heads_and_answers_to_head_have_no_body() {
    with(async |mut link: Link, mut theirs: TcpStream| {
        let answering = async {
            request(&mut theirs, b"").await;
            theirs
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n")
                .await
                .unwrap();
        };
        let head = Request::head("/").body(RequestBody::whole(Bytes::new())).unwrap();
        let (answered, ()) = tokio::join!(link.send(head), answering);
        let answer = answered.map_err(|e| e.error).unwrap();
        assert_eq!(answer.headers()["content-length"], "5000");
        assert!(answer.body().is_ended());
        assert!(link.is_alive().await);
    });
}
