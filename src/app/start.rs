//! Builds the parts in the order in which they need each other, and takes them down in the order of the traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::reload::{self, Reloader};
use super::{Source, files, watch};
use crate::admin::{self, AdminListener};
use crate::alert::{Alerts, Options};
use crate::clock::Clock;
use crate::config::{Compiled, ObservationSink, Wiring};
use crate::control::deliveries::Deliveries;
use crate::control::driver::{self, About, Gauges, Inbox, Parts};
use crate::control::events::Events;
use crate::control::handle::Handle;
use crate::control::journal::Journal;
use crate::control::links::Links;
use crate::control::outbox::Outbox;
use crate::control::resume::resume;
use crate::enforce::breaker::Breakers;
use crate::enforce::chains::Chains;
use crate::enforce::policy::Bind;
use crate::enforce::slots::Slots;
use crate::enforce::snapshot::Publisher;
use crate::enforce::versions::Versions;
use crate::incident::engine::Engine;
use crate::proxy::{
    Certificate, Drain, Listening, RequestIds, Shared, TlsClients, Unwilling, bind, run_worker,
};
use crate::store::Ledger;
use crate::telemetry::metrics::Metrics;
use crate::types::secret::Secret;

/// How long queued alerts may take at the end.
const LAST_ALERTS: Duration = Duration::from_secs(5);

/// A running fusebox.
#[derive(Debug)]
pub struct Running {
    /// Where clients are served, one address each.
    pub listeners: Vec<String>,
    /// Where the admin API is.
    pub admin: String,
    /// What the admin API can do, without HTTP.
    pub handle: Handle,
    drain: Drain,
    ready: Arc<AtomicBool>,
    workers: Workers,
    driver: JoinHandle<()>,
    alerts: Alerts,
    ledger: Option<Ledger>,
    stop: CancellationToken,
    admin_task: JoinHandle<()>,
}

/// The worker threads. Each says when it ends, so that waiting for them does not block the runtime.
#[derive(Debug)]
struct Workers {
    threads: Vec<std::thread::JoinHandle<()>>,
    ended: mpsc::Receiver<std::io::Result<()>>,
}

/// Says that a worker ended, even when it panicked.
struct Farewell(mpsc::Sender<std::io::Result<()>>, Option<std::io::Result<()>>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let result = self
            .1
            .take()
            .unwrap_or_else(|| Err(std::io::Error::other("it panicked")));
        self.0.try_send(result).ok();
    }
}

/// Starts everything; when this returns, clients are served. Call it inside a tokio runtime: the admin API, the
/// engine and the alerts run on it, requests on threads of their own.
///
/// # Errors
/// One line for a person when something cannot be opened, bound or started; nothing is left running then.
pub async fn start(compiled: Compiled, source: Source, clock: Clock) -> Result<Running, String> {
    let tls = Arc::new(TlsClients::default());
    let mut policy = compiled.policy.clone();
    tls.prepare(&mut policy).map_err(|e| e.to_string())?;
    let wiring = &compiled.wiring;
    let certificates = load_certificates(wiring)?;
    let journal = open_journal(wiring)?;
    let bound = bind_all(wiring, &certificates)?;
    let (admin_listener, admin_address) = AdminListener::bind(&wiring.admin)
        .await
        .map_err(|e| format!("cannot listen on admin.listen {}: {e}", show(&wiring.admin.bind)))?;
    let admin_address = admin_address.map_or_else(|| show(&wiring.admin.bind), |a| a.to_string());

    let metrics = Arc::new(Metrics::new(wiring.max_label_sets));
    metrics.started(clock.wall());
    let ledger = open_ledger(wiring, &clock, &metrics).await?;
    let slots = Arc::new(Slots::new(wiring.max_agents));
    let max_connections = wiring.max_connections;
    files::make_room(max_connections);
    let upstreams = reload::upstream_views(&policy);
    let (publisher, reader) = Publisher::new(Arc::new(policy));
    let publisher = Arc::new(publisher);
    let mut engine = Engine::new(Arc::clone(&compiled.rulebook), wiring.bounds);
    let deliveries = ledger.clone().map(Deliveries::new);
    let alerts = Alerts::start(
        compiled.targets.clone(),
        Options {
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            settled: deliveries.as_ref().map(Deliveries::hook),
            destinations: compiled.destinations.clone(),
        },
    );
    let mut memory = None;
    if let Some((ledger, deliveries)) = ledger.clone().zip(deliveries) {
        let (went_on, undelivered) =
            resume(&mut engine, ledger, deliveries, &publisher, &clock, fresh_key).await?;
        undelivered.tell(&alerts);
        memory = Some(went_on);
    }
    let link_key = memory
        .as_ref()
        .map_or_else(|| Secret::new(fresh_key()), |m| m.link_key.clone());
    let links = Links::new(wiring.admin.external_url.as_deref(), link_key);
    let events = Events::new();
    let versions = Arc::new(Versions::new(wiring.max_agents));
    if let Some(memory) = &mut memory {
        versions.import(std::mem::take(&mut memory.known));
    }
    for note in crate::config::notes(&compiled) {
        tracing::warn!("{note}");
    }
    let drain = Drain::default();
    let (tell, told) = mpsc::channel(wiring.observation_queue);
    let (outbox, dropped) = Outbox::new(tell, Arc::clone(&metrics));
    let (asks, asked) = mpsc::channel(64);
    let (reloads, reload_asks) = mpsc::channel(8);
    let (reloaded, reload_results) = mpsc::channel(8);
    let ready = Arc::new(AtomicBool::new(false));
    let stop = CancellationToken::new();

    let breakers = Arc::new(Breakers::default());
    let shared = Arc::new(Shared {
        clock: clock.clone(),
        reader,
        slots: Arc::clone(&slots),
        metrics: Arc::clone(&metrics),
        observer: Box::new(move |report| outbox.leave(report)),
        drain: drain.clone(),
        connections: Arc::new(Semaphore::new(max_connections)),
        waiting: Arc::new(AtomicUsize::new(0)),
        chains: Chains::default(),
        versions: Arc::clone(&versions),
        breakers: Arc::clone(&breakers),
        unwilling: Unwilling::default(),
        request_ids: RequestIds::new(),
    });
    let handle = Handle {
        asks,
        reloads,
        metrics: Arc::clone(&metrics),
        ready: Arc::clone(&ready),
        events: events.clone(),
        links: links.clone(),
        ledger: ledger.clone(),
        alerts: Some(alerts.clone()),
    };
    let listeners = bound.addresses.clone();

    let parts = Parts {
        clock: clock.clone(),
        engine,
        publisher: Arc::clone(&publisher),
        alerts: alerts.clone(),
        metrics,
        slots,
        journal,
        memory,
        links,
        destinations: compiled.destinations.clone(),
        events,
        versions,
        about: About {
            listeners: listeners.clone(),
            upstreams,
            config: source.to_string(),
        },
        gauges: Gauges {
            connections: {
                let drain = drain.clone();
                Box::new(move || drain.open_connections())
            },
            waiting: {
                let waiting = Arc::clone(&shared.waiting);
                Box::new(move || waiting.load(Ordering::Relaxed))
            },
            dropped,
            breakers,
        },
    };
    let workers = start_workers(shared, bound.workers)?;
    let inbox = Inbox {
        told,
        asks: asked,
        reloads: reload_results,
    };
    let driver = tokio::spawn(driver::run(parts, inbox));
    let admin_wiring = wiring.admin.clone();
    let admin_task = tokio::spawn(admin::serve(
        admin_listener,
        admin_wiring,
        handle.clone(),
        stop.clone(),
    ));
    watch::start(
        wiring,
        &source,
        certificates.clone(),
        handle.clone(),
        stop.clone(),
    );
    let reloader = Reloader {
        source,
        current: compiled,
        tls,
        certificates,
        publisher,
        alerts: alerts.clone(),
        clock,
    };
    tokio::spawn(reload::run(reloader, reload_asks, reloaded));
    ready.store(true, Ordering::Relaxed);
    Ok(Running {
        listeners,
        admin: admin_address,
        handle,
        drain,
        ready,
        workers,
        driver,
        alerts,
        ledger,
        stop,
        admin_task,
    })
}

impl Running {
    /// Stops: no new connections, exchanges finish within `deadline` or are cut, what they used is taken, alerts go
    /// out. `hurry` cuts the exchanges before the deadline.
    ///
    /// # Errors
    /// What went wrong with a worker, for a person.
    pub async fn stop(self, deadline: Duration, hurry: impl Future<Output = ()>) -> Result<(), String> {
        self.ready.store(false, Ordering::Relaxed);
        self.drain.begin();
        let open = self.drain.open_connections();
        tracing::info!(connections = open, deadline_ms = deadline.as_millis(), "draining");
        let mut hurried = false;
        tokio::select! {
            done = timeout(deadline, self.drain.finished()) => {
                if done.is_err() {
                    tracing::warn!(
                        connections = self.drain.open_connections(),
                        "the drain deadline is over; cutting what is left"
                    );
                }
            }
            () = hurry => {
                hurried = true;
                tracing::warn!(connections = self.drain.open_connections(), "asked again; cutting");
            }
        }
        self.drain.end();
        let result = self.workers.join().await;
        // The workers held the only way to tell the driver something; it ends when it has taken all they said.
        let ended = self.driver.await;
        let patience = if hurried { Duration::ZERO } else { LAST_ALERTS };
        if !self.alerts.drain(patience).await {
            tracing::warn!("some alerts could not be delivered before the end");
        }
        if let Some(ledger) = self.ledger {
            // Its drop would block the runtime for as long.
            let closed = tokio::task::spawn_blocking(move || ledger.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::error!(%error, "the ledger was left");
            }
        }
        self.stop.cancel();
        if !hurried {
            self.admin_task.await.ok();
        }
        ended.map_err(|e| format!("the engine failed: {e}"))?;
        result
    }

    /// Waits until something that should never end did: a worker, the engine or the admin API.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            why = self.workers.failed() => why,
            ended = &mut self.driver => format!("the engine ended: {ended:?}"),
            ended = &mut self.admin_task => format!("the admin API ended: {ended:?}"),
        }
    }
}

impl Workers {
    async fn failed(&mut self) -> String {
        match self.ended.recv().await {
            Some(result) => format!("a worker ended: {result:?}"),
            None => "all workers ended".to_owned(),
        }
    }

    async fn join(mut self) -> Result<(), String> {
        let mut result = Ok(());
        while let Some(ended) = self.ended.recv().await {
            if let Err(e) = ended {
                result = Err(format!("a worker failed: {e}"));
            }
        }
        for thread in self.threads {
            thread.join().ok();
        }
        result
    }
}

/// What was bound: addresses to show, and each worker's share.
struct Bound {
    addresses: Vec<String>,
    workers: Vec<Vec<Listening>>,
}

fn bind_all(wiring: &Wiring, certificates: &[Option<Arc<Certificate>>]) -> Result<Bound, String> {
    let mut addresses = Vec::with_capacity(wiring.listeners.len());
    let mut workers: Vec<Vec<Listening>> = (0..wiring.workers.max(1)).map(|_| Vec::new()).collect();
    for (listener, certificate) in wiring.listeners.iter().zip(certificates) {
        let (address, shares) = bind(listener, workers.len(), certificate.as_ref())
            .map_err(|e| format!("cannot listen on {}: {e}", show(&listener.bind)))?;
        for (worker, share) in workers.iter_mut().zip(shares) {
            worker.push(share);
        }
        addresses.push(address);
    }
    Ok(Bound { addresses, workers })
}

fn start_workers(shared: Arc<Shared>, shares: Vec<Vec<Listening>>) -> Result<Workers, String> {
    let (tell, ended) = mpsc::channel(shares.len().max(1));
    let mut threads = Vec::with_capacity(shares.len());
    for (i, share) in shares.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        let farewell = Farewell(tell.clone(), None);
        let thread = std::thread::Builder::new()
            .name(format!("fusebox-worker-{i}"))
            .spawn(move || {
                let mut farewell = farewell;
                farewell.1 = Some(run_worker(shared, share));
            })
            .map_err(|e| format!("cannot start a worker: {e}"))?;
        threads.push(thread);
    }
    Ok(Workers { threads, ended })
}

fn load_certificates(wiring: &Wiring) -> Result<Vec<Option<Arc<Certificate>>>, String> {
    wiring
        .listeners
        .iter()
        .map(|listener| {
            let load = |files| Certificate::load(files).map(Arc::new);
            listener
                .tls
                .clone()
                .map(load)
                .transpose()
                .map_err(|e| format!("listener {}: {e}", show(&listener.bind)))
        })
        .collect()
}

fn open_journal(wiring: &Wiring) -> Result<Option<Journal>, String> {
    match &wiring.observations {
        None => Ok(None),
        Some(ObservationSink::Stdout) => Journal::to_stdout()
            .map(Some)
            .map_err(|e| format!("cannot write observations: {e}")),
        Some(ObservationSink::File(path)) => Journal::to_file(path)
            .map(Some)
            .map_err(|e| format!("cannot write observations to {}: {e}", path.display())),
    }
}

/// Opens the ledger, where there is to be one. That it cannot be written is no reason not to serve.
async fn open_ledger(
    wiring: &Wiring,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Result<Option<Ledger>, String> {
    let Some(options) = wiring.ledger.clone() else {
        tracing::info!(
            "no ledger is configured: incidents and leases are in memory only and end with the process"
        );
        return Ok(None);
    };
    let (clock, metrics) = (clock.clone(), Arc::clone(metrics));
    let path = options.path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || Ledger::open(options, clock, metrics)).await;
    let (ledger, opened) = opened
        .map_err(|e| format!("cannot open the ledger: {e}"))?
        .map_err(|e| e.to_string())?;
    tracing::info!(
        path,
        fresh = opened.fresh,
        migrated_from = opened.migrated_from,
        set_aside = opened.set_aside.map(|p| p.display().to_string()),
        "ledger opened"
    );
    Ok(Some(ledger))
}

/// A key that nobody can guess.
fn fresh_key() -> String {
    let mut bytes = [0_u8; 32];
    match rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
    {
        Ok(()) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        // Without random numbers no link is genuine, which is better than one that can be guessed.
        Err(_) => String::new(),
    }
}

fn show(bind: &Bind) -> String {
    match bind {
        Bind::Tcp(address) => address.to_string(),
        Bind::Unix(path) => format!("unix:{}", path.display()),
    }
}
