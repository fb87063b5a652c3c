//! Load generator: prints one JSON line.
//!   load --url URL --mode tput  -c 64 --seconds 5 [--chunks 200] [--batch 1]
//!   load --url URL --mode paced -c 200 --seconds 8 --delay-us 20000 [--chunks 200]
//!   load --url URL --mode hold  -c 1000 --delay-us 1000000 (prints READY, keeps the streams until stdin closes)
//!   load --url URL --mode rate  --rps 500 -c 64 --seconds 8 (non-stream, open loop, latency from the scheduled time)
//! Common: --model M, --header 'k: v' (repeatable), --path-body embeddings
use fusebox_load::*;
use memchr::memmem;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Clone)]
struct Cfg {
    addr: String,
    path: String,
    mode: String,
    c: usize,
    seconds: f64,
    chunks: usize,
    delay: u64,
    batch: usize,
    rps: f64,
    model: String,
    headers: Vec<String>,
}

#[derive(Default)]
struct Stats {
    streams: u64,
    events: u64,
    equal: u64,
    same_content: u64,
    bad: u64,
    errors: u64,
    last_error: String,
    bytes: u64,
    ttfb_us: Vec<u32>,
    lag_us: Vec<u32>,
    lat_us: Vec<u32>,
}

/// Incremental HTTP/1.1 body reader for identity and chunked framing.
enum Framing {
    Length(usize),
    Size(usize, bool), // partial size, in extension
    Data(usize),
    DataEnd,
    Trailer(usize), // newline count state
    Done,
}

impl Framing {
    /// Feeds raw bytes; body bytes go to `out`. Returns how many raw bytes were used.
    fn feed(&mut self, raw: &[u8], out: &mut Vec<u8>) -> usize {
        let mut i = 0;
        while i < raw.len() {
            match self {
                Framing::Length(n) => {
                    let k = (*n).min(raw.len() - i);
                    out.extend_from_slice(&raw[i..i + k]);
                    i += k;
                    *n -= k;
                    if *n == 0 {
                        *self = Framing::Done;
                    }
                }
                Framing::Size(n, ext) => {
                    let b = raw[i];
                    i += 1;
                    match b {
                        b'\n' => {
                            *self = if *n == 0 {
                                Framing::Trailer(1)
                            } else {
                                Framing::Data(*n)
                            }
                        }
                        b'\r' => {}
                        b';' => *ext = true,
                        _ if !*ext => *n = *n * 16 + (b as char).to_digit(16).unwrap_or(0) as usize,
                        _ => {}
                    }
                }
                Framing::Data(n) => {
                    let k = (*n).min(raw.len() - i);
                    out.extend_from_slice(&raw[i..i + k]);
                    i += k;
                    *n -= k;
                    if *n == 0 {
                        *self = Framing::DataEnd;
                    }
                }
                Framing::DataEnd => {
                    if raw[i] == b'\n' {
                        *self = Framing::Size(0, false);
                    }
                    i += 1;
                }
                Framing::Trailer(nl) => {
                    match raw[i] {
                        b'\n' => {
                            *nl += 1;
                        }
                        b'\r' => {}
                        _ => *nl = 0,
                    }
                    i += 1;
                    if *nl >= 2 {
                        *self = Framing::Done;
                    }
                }
                Framing::Done => break,
            }
        }
        i
    }
}

struct Conn {
    s: TcpStream,
    buf: Vec<u8>,
}

struct Got {
    body: Vec<u8>,
    ttfb: Duration,
    status: u16,
    close: bool,
}

impl Conn {
    async fn open(cfg: &Cfg) -> std::io::Result<Conn> {
        let s = TcpStream::connect(&cfg.addr).await?;
        s.set_nodelay(true)?;
        Ok(Conn {
            s,
            buf: Vec::with_capacity(16 << 10),
        })
    }

    async fn exchange(&mut self, req: &[u8], mut on_body: impl FnMut(&[u8])) -> std::io::Result<Got> {
        use std::io::{Error, ErrorKind::*};
        let t0 = Instant::now();
        self.s.write_all(req).await?;
        self.buf.clear();
        let head_end = loop {
            if self.s.read_buf(&mut self.buf).await? == 0 {
                return Err(Error::new(UnexpectedEof, "eof in head"));
            }
            if let Some(p) = memmem::find(&self.buf, b"\r\n\r\n") {
                break p + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buf[..head_end]).to_ascii_lowercase();
        let status: u16 = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let val = |k: &str| {
            head.lines()
                .find_map(|l| l.strip_prefix(k).map(|v| v.trim().to_string()))
        };
        let close = val("connection:").is_some_and(|v| v == "close");
        let mut fr = if let Some(n) = val("content-length:") {
            let n = n.parse().unwrap_or(0);
            if n == 0 { Framing::Done } else { Framing::Length(n) }
        } else if val("transfer-encoding:").is_some() {
            Framing::Size(0, false)
        } else {
            return Err(Error::new(InvalidData, "no framing"));
        };
        let mut body = Vec::with_capacity(8 << 10);
        let mut ttfb = None;
        fr.feed(&self.buf[head_end..], &mut body);
        loop {
            if !body.is_empty() {
                ttfb.get_or_insert_with(|| t0.elapsed());
                on_body(&body);
            }
            if matches!(fr, Framing::Done) {
                break;
            }
            self.buf.clear();
            if self.s.read_buf(&mut self.buf).await? == 0 {
                return Err(Error::new(UnexpectedEof, "eof in body"));
            }
            fr.feed(&self.buf, &mut body);
        }
        Ok(Got {
            body,
            ttfb: ttfb.unwrap_or_else(|| t0.elapsed()),
            status,
            close,
        })
    }
}

fn contents(body: &[u8]) -> Vec<u8> {
    let key = b"\"content\":";
    let mut v = Vec::new();
    for p in memmem::find_iter(body, key) {
        let r = &body[p + key.len()..];
        let r = r.strip_prefix(b" ").unwrap_or(r);
        if let Some(r) = r.strip_prefix(b"\"") {
            v.extend_from_slice(&r[..memchr::memchr(b'"', r).unwrap_or(0)]);
        }
    }
    v
}

fn request(cfg: &Cfg, body: &str) -> Vec<u8> {
    let mut h = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\naccept: */*\r\nuser-agent: fusebox-load/0.1\r\n",
        cfg.path, cfg.addr
    );
    for x in &cfg.headers {
        h += x;
        h += "\r\n";
    }
    if !cfg
        .headers
        .iter()
        .any(|h| h.to_ascii_lowercase().starts_with("authorization"))
    {
        h += "authorization: Bearer sk-mock-0123456789abcdef0123456789abcdef\r\n";
    }
    format!("{h}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn pct(v: &mut [u32], p: f64) -> f64 {
    if v.is_empty() {
        return -1.0;
    }
    v.sort_unstable();
    v[(((v.len() - 1) as f64) * p).round() as usize] as f64
}

async fn streams(cfg: Cfg, st: Rc<RefCell<Stats>>, until: Instant, start_after: Duration) {
    let ts = cfg.delay > 0;
    let req = request(
        &cfg,
        &request_body(
            &cfg.model,
            true,
            &format!("n={} d={} ts={} b={}", cfg.chunks, cfg.delay, ts as u8, cfg.batch),
        ),
    );
    let want = sse_body(cfg.chunks);
    let want_content = contents(&want);
    tokio::time::sleep(start_after).await;
    let mut conn: Option<Conn> = None;
    while Instant::now() < until {
        let mut c = match conn.take() {
            Some(c) => c,
            None => match Conn::open(&cfg).await {
                Ok(c) => c,
                Err(e) => {
                    let mut s = st.borrow_mut();
                    s.errors += 1;
                    s.last_error = e.to_string();
                    drop(s);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let mut seen = 0;
        let mut lags: Vec<u32> = Vec::new();
        let r = c
            .exchange(&req, |body| {
                if ts {
                    // Every stamp that is whole by now.
                    while let Some(p) = memmem::find(&body[seen..], b"\"t") {
                        let at = seen + p + 2;
                        if body.len() < at + 19 {
                            break;
                        }
                        seen = at;
                        if let Some(t) = std::str::from_utf8(&body[at..at + 19])
                            .ok()
                            .and_then(|s| s.parse::<u64>().ok())
                        {
                            lags.push((mono_ns().saturating_sub(t) / 1000) as u32);
                        }
                    }
                }
            })
            .await;
        let mut s = st.borrow_mut();
        match r {
            Ok(g) if g.status == 200 => {
                s.streams += 1;
                s.bytes += g.body.len() as u64;
                s.ttfb_us.push(g.ttfb.as_micros() as u32);
                s.events += memmem::find_iter(&g.body, b"data:").count() as u64;
                if ts {
                    if lags.len() == cfg.chunks {
                        s.same_content += 1
                    } else {
                        s.bad += 1
                    }
                    s.lag_us.append(&mut lags);
                } else if g.body == want {
                    s.equal += 1;
                } else if contents(&g.body) == want_content && memmem::find(&g.body, b"[DONE]").is_some() {
                    s.same_content += 1;
                } else {
                    s.bad += 1;
                }
                if !g.close {
                    conn = Some(c);
                }
            }
            Ok(g) => {
                s.errors += 1;
                s.last_error = format!(
                    "status {}: {}",
                    g.status,
                    String::from_utf8_lossy(&g.body[..g.body.len().min(200)])
                );
                if !g.close {
                    conn = Some(c);
                }
            }
            Err(e) => {
                s.errors += 1;
                s.last_error = e.to_string();
            }
        }
    }
}

async fn hold(cfg: Cfg, st: Rc<RefCell<Stats>>, open: Rc<RefCell<usize>>) {
    let req = request(
        &cfg,
        &request_body(
            &cfg.model,
            true,
            &format!("n={} d={} ts=1 b=1", 1_000_000, cfg.delay),
        ),
    );
    let Ok(mut c) = Conn::open(&cfg).await else {
        st.borrow_mut().errors += 1;
        *open.borrow_mut() += 1;
        return;
    };
    // Not Conn::exchange: the body must not pile up here.
    let mut first = true;
    if c.s.write_all(&req).await.is_err() {
        st.borrow_mut().errors += 1;
        *open.borrow_mut() += 1;
        return;
    }
    let mut buf = vec![0u8; 4096];
    let mut t0 = Some(Instant::now());
    loop {
        match c.s.read(&mut buf).await {
            Ok(0) | Err(_) => {
                st.borrow_mut().errors += 1;
                if first {
                    *open.borrow_mut() += 1;
                }
                return;
            }
            Ok(n) => {
                st.borrow_mut().events += memmem::find_iter(&buf[..n], b"data:").count() as u64;
                if memmem::find(&buf[..n], b"data:").is_some() && first {
                    first = false;
                    *open.borrow_mut() += 1;
                    let mut s = st.borrow_mut();
                    s.streams += 1;
                    s.ttfb_us.push(t0.take().unwrap().elapsed().as_micros() as u32);
                } else if first && buf.starts_with(b"HTTP/1.1 ") && !buf.starts_with(b"HTTP/1.1 200") {
                    let mut s = st.borrow_mut();
                    s.errors += 1;
                    s.last_error = String::from_utf8_lossy(&buf[..n.min(300)]).into_owned();
                    *open.borrow_mut() += 1;
                    return;
                }
            }
        }
    }
}

async fn rate(cfg: Cfg, st: Rc<RefCell<Stats>>) {
    let body = request_body(&cfg.model, false, "n=0");
    let req: Rc<Vec<u8>> = Rc::new(request(&cfg, &body));
    let want: Rc<Vec<u8>> = Rc::new(chat_body().into_bytes());
    let pool: Rc<RefCell<Vec<Conn>>> = Default::default();
    for _ in 0..cfg.c {
        if let Ok(c) = Conn::open(&cfg).await {
            pool.borrow_mut().push(c);
        }
    }
    let set = tokio::task::LocalSet::new();
    let total = (cfg.rps * cfg.seconds) as u64;
    let t0 = tokio::time::Instant::now() + Duration::from_millis(5);
    set.run_until(async {
        let mut hs = Vec::new();
        for i in 0..total {
            // Ticks are off the timer's own millisecond grid on purpose.
            let due = t0 + Duration::from_nanos((i as f64 * 1e9 / cfg.rps) as u64);
            tokio::time::sleep_until(due).await;
            let due = tokio::time::Instant::now()
                .min(due + Duration::from_micros(1500))
                .max(due);
            let (cfg, st, pool, req, want) =
                (cfg.clone(), st.clone(), pool.clone(), req.clone(), want.clone());
            hs.push(tokio::task::spawn_local(async move {
                let c = pool.borrow_mut().pop();
                let mut c = match c {
                    Some(c) => c,
                    None => match Conn::open(&cfg).await {
                        Ok(c) => c,
                        Err(_) => {
                            st.borrow_mut().errors += 1;
                            return;
                        }
                    },
                };
                let r = c.exchange(&req, |_| ()).await;
                let mut s = st.borrow_mut();
                match r {
                    Ok(g) if g.status == 200 => {
                        s.streams += 1;
                        s.lat_us.push(due.elapsed().as_micros() as u32);
                        if g.body == *want {
                            s.equal += 1
                        } else {
                            s.same_content += 1
                        }
                        if !g.close {
                            pool.borrow_mut().push(c);
                        }
                    }
                    Ok(g) => {
                        s.errors += 1;
                        s.last_error = format!(
                            "status {}: {}",
                            g.status,
                            String::from_utf8_lossy(&g.body[..g.body.len().min(200)])
                        );
                    }
                    Err(e) => {
                        s.errors += 1;
                        s.last_error = e.to_string();
                    }
                }
            }));
        }
        for h in hs {
            let _ = tokio::time::timeout(Duration::from_secs(5), h).await;
        }
    })
    .await;
}

fn report(cfg: &Cfg, st: &mut Stats, secs: f64, cpu: f64) {
    let e = st
        .last_error
        .replace('\\', "/")
        .replace('"', "'")
        .replace(['\n', '\r'], " ");
    println!(
        "{{\"mode\":\"{}\",\"c\":{},\"seconds\":{secs:.3},\"streams\":{},\"events\":{},\"events_per_s\":{:.0},\"bytes_per_s\":{:.0},\"byte_equal\":{},\"content_equal\":{},\"bad\":{},\"errors\":{},\"last_error\":\"{e}\",\"ttfb_us\":{{\"p50\":{},\"p99\":{}}},\"lag_us\":{{\"p50\":{},\"p99\":{},\"p999\":{}}},\"lat_us\":{{\"p50\":{},\"p99\":{},\"p999\":{}}},\"client_cpu_s\":{cpu:.3}}}",
        cfg.mode,
        cfg.c,
        st.streams,
        st.events,
        st.events as f64 / secs,
        st.bytes as f64 / secs,
        st.equal,
        st.same_content,
        st.bad,
        st.errors,
        pct(&mut st.ttfb_us, 0.5),
        pct(&mut st.ttfb_us, 0.99),
        pct(&mut st.lag_us, 0.5),
        pct(&mut st.lag_us, 0.99),
        pct(&mut st.lag_us, 0.999),
        pct(&mut st.lat_us, 0.5),
        pct(&mut st.lat_us, 0.99),
        pct(&mut st.lat_us, 0.999),
    );
}

fn own_cpu() -> f64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: ts is a valid out pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut ts) };
    ts.tv_sec as f64 + ts.tv_nsec as f64 / 1e9
}

fn main() {
    let mut cfg = Cfg {
        addr: String::new(),
        path: String::new(),
        mode: "tput".into(),
        c: 64,
        seconds: 5.0,
        chunks: 200,
        delay: 0,
        batch: 1,
        rps: 500.0,
        model: "gpt-4o-mini".into(),
        headers: vec![],
    };
    let mut a = std::env::args().skip(1);
    while let Some(k) = a.next() {
        let v = a.next().expect("value");
        match k.as_str() {
            "--url" => {
                let r = v.strip_prefix("http://").expect("http url");
                let (h, p) = r.split_once('/').unwrap_or((r, "v1/chat/completions"));
                cfg.addr = h.into();
                cfg.path = format!("/{p}");
                assert!(
                    h.starts_with("127.") || h.starts_with("localhost"),
                    "loopback only"
                );
            }
            "--mode" => cfg.mode = v,
            "-c" => cfg.c = v.parse().unwrap(),
            "--seconds" => cfg.seconds = v.parse().unwrap(),
            "--chunks" => cfg.chunks = v.parse().unwrap(),
            "--delay-us" => cfg.delay = v.parse().unwrap(),
            "--batch" => cfg.batch = v.parse().unwrap(),
            "--rps" => cfg.rps = v.parse().unwrap(),
            "--model" => cfg.model = v,
            "--header" => cfg.headers.push(v),
            "--print-body" => {
                // for wrk, oha and curl: stream|json
                print!("{}", request_body(&cfg.model, v == "stream", "n=200"));
                return;
            }
            _ => panic!("unknown flag {k}"),
        }
    }
    let st: Rc<RefCell<Stats>> = Default::default();
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let set = tokio::task::LocalSet::new();
    let t0 = Instant::now();
    match cfg.mode.as_str() {
        "tput" | "paced" => {
            let until = t0 + Duration::from_secs_f64(cfg.seconds);
            rt.block_on(set.run_until(async {
                let mut hs = Vec::new();
                for i in 0..cfg.c {
                    // spread the starts over one delay, so that paced streams do not tick together
                    let off = Duration::from_nanos(cfg.delay * 1000 * i as u64 / cfg.c as u64);
                    hs.push(tokio::task::spawn_local(streams(
                        cfg.clone(),
                        st.clone(),
                        until,
                        off,
                    )));
                }
                for h in hs {
                    let _ = h.await;
                }
            }));
        }
        "rate" => rt.block_on(rate(cfg.clone(), st.clone())),
        "hold" => {
            let open: Rc<RefCell<usize>> = Default::default();
            rt.block_on(set.run_until(async {
                for i in 0..cfg.c {
                    tokio::task::spawn_local(hold(cfg.clone(), st.clone(), open.clone()));
                    if i % 50 == 49 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                let deadline = Instant::now() + Duration::from_secs_f64(cfg.seconds.max(30.0));
                while *open.borrow() < cfg.c && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                println!(
                    "READY {} of {} errors {}",
                    st.borrow().streams,
                    cfg.c,
                    st.borrow().errors
                );
                let (tx, mut rx) = tokio::sync::mpsc::channel::<()>(1);
                std::thread::spawn(move || {
                    let mut s = String::new();
                    let _ = std::io::stdin().read_line(&mut s);
                    drop(tx);
                });
                let _ = tokio::time::timeout(Duration::from_secs(300), rx.recv()).await;
            }));
        }
        m => panic!("unknown mode {m}"),
    }
    let secs = t0.elapsed().as_secs_f64();
    report(&cfg, &mut st.borrow_mut(), secs, own_cpu());
}
