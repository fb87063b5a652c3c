//! The proxy inside of the test's own process, so that directives can be published to it directly.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::fusebox::clock::Clock;
use ::fusebox::config::{Overrides, compile};
use ::fusebox::enforce::chains::Chains;
use ::fusebox::enforce::policy::Policy;
use ::fusebox::enforce::slots::Slots;
use ::fusebox::enforce::snapshot::Publisher;
use ::fusebox::proxy::{Drain, RequestIds, Shared, Unwilling, bind, run_worker};
use ::fusebox::telemetry::metrics::Metrics;
use ::fusebox::types::directive::{Directive, DirectiveSet, Order, Subject};
use ::fusebox::types::ids::Generation;
use ::fusebox::types::observation::{Observation, Report};
use tokio::sync::Semaphore;

use super::client::{Ask, Client};
use super::eventually;
use super::http1::Message;
use super::upstream::Upstream;

/// Threads that serve.
const WORKERS: usize = 2;

/// A running proxy without an engine; stops when dropped.
pub(crate) struct Inside {
    /// Where it listens.
    pub(crate) address: String,
    /// What is known of agents.
    pub(crate) slots: Arc<Slots>,
    publisher: Publisher,
    generation: AtomicU64,
    clock: Clock,
    ended: Arc<Mutex<Vec<Observation>>>,
    drain: Drain,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Inside {
    /// Serves `upstream` for everything, with more configuration and a policy that `change` has changed.
    pub(crate) fn start(upstream: &Upstream, more: &str, change: impl FnOnce(&mut Policy)) -> Self {
        let text = format!(
            "listeners:\n  - listen: 127.0.0.1:0\nupstreams:\n  - name: double\n    url: {}\n{more}",
            upstream.url()
        );
        let mut compiled =
            compile("test", &text, &Overrides::default(), &|_| None).unwrap_or_else(|e| panic!("{e}"));
        change(&mut compiled.policy);
        let clock = Clock::system();
        let (publisher, reader) = Publisher::new(Arc::new(compiled.policy));
        let slots = Arc::new(Slots::new(100));
        let ended = Arc::new(Mutex::new(Vec::new()));
        let drain = Drain::default();
        let seen = Arc::clone(&ended);
        let shared = Arc::new(Shared {
            clock: clock.clone(),
            reader,
            slots: Arc::clone(&slots),
            metrics: Arc::new(Metrics::new(100)),
            observer: Box::new(move |report| {
                if let Report::Ended(observation) = report {
                    seen.lock().unwrap().push(*observation);
                }
            }),
            drain: drain.clone(),
            connections: Arc::new(Semaphore::new(10_000)),
            waiting: Arc::new(AtomicUsize::new(0)),
            chains: Chains::default(),
            versions: Arc::new(::fusebox::enforce::versions::Versions::new(100)),
            breakers: Arc::default(),
            unwilling: Unwilling::default(),
            request_ids: RequestIds::new(),
        });
        let listener = compiled.wiring.listeners.first().expect("a listener");
        let (address, shares) = bind(listener, WORKERS, None).expect("a free port");
        let threads = shares
            .into_iter()
            .map(|share| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(run_worker(shared, vec![share])))
            })
            .collect();
        Self {
            address,
            slots,
            publisher,
            generation: AtomicU64::new(1),
            clock,
            ended,
            drain,
            threads,
        }
    }

    /// Puts these in force, each for an hour, and nothing else.
    pub(crate) fn publish(&self, orders: impl IntoIterator<Item = (Subject, Order)>) {
        let generation = self.generation.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let now = self.clock.now();
        let directives = orders.into_iter().enumerate().map(|(i, (subject, order))| {
            Arc::new(Directive {
                lease: format!("lease-{i}").into(),
                incident: format!("inc-{i}").into(),
                rule: format!("rule-{i}").into(),
                subject,
                order,
                since: now.wall,
                expires: now.wall,
                until: now.mono.after(Duration::from_secs(3600)),
            })
        });
        let set = DirectiveSet::new(Generation(generation), directives);
        self.publisher.publish_directives(Arc::new(set));
    }

    /// A connection to it.
    pub(crate) async fn client(&self) -> Client<tokio::net::TcpStream> {
        Client::connect(&self.address).await
    }

    /// One request over a connection of its own.
    pub(crate) async fn ask(&self, ask: &Ask) -> Message {
        self.client().await.ask(ask).await
    }

    /// Everything that ended so far.
    pub(crate) fn ended(&self) -> Vec<Observation> {
        self.ended.lock().unwrap().clone()
    }

    /// What is observed of a request, once it ended.
    pub(crate) async fn observation(&self, request_id: &str) -> Observation {
        eventually(&format!("the observation of {request_id}"), async || {
            let all = self.ended();
            all.into_iter().find(|o| o.request_id.as_str() == request_id)
        })
        .await
    }

    /// Waits until no exchange counts as in flight.
    pub(crate) async fn quiet(&self) {
        eventually("nothing is in flight", async || {
            let all = self.slots.all();
            (all.iter().map(|s| s.view().in_flight).sum::<u64>() == 0).then_some(())
        })
        .await;
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.drain.begin();
        self.drain.end();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}
