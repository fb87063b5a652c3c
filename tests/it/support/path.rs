//! The way of a request alone, in this process: directives are published by the test, observations are kept.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ::fusebox::clock::Clock;
use ::fusebox::config::{self, Overrides};
use ::fusebox::enforce::chains::Chains;
use ::fusebox::enforce::slots::Slots;
use ::fusebox::enforce::snapshot::Publisher;
use ::fusebox::enforce::versions::Versions;
use ::fusebox::proxy::{Drain, RequestIds, Shared, Unwilling, bind, run_worker};
use ::fusebox::telemetry::metrics::Metrics;
use ::fusebox::types::directive::{Directive, DirectiveSet, Order, Subject};
use ::fusebox::types::ids::{AgentId, Generation};
use ::fusebox::types::observation::{Observation, Report};
use ::fusebox::types::time::{Mono, Wall};
use tokio::sync::Semaphore;

use super::client::{Ask, Client};
use super::eventually;
use super::http1::Message;
use super::upstream::Upstream;

/// A running worker; it ends when this is dropped.
pub(crate) struct Path {
    address: String,
    publisher: Publisher,
    generation: AtomicU64,
    observations: Arc<Mutex<Vec<Observation>>>,
    drain: Drain,
    /// What versions of agents are made of.
    pub(crate) versions: Arc<Versions>,
}

impl Path {
    /// Before `upstream`, with further lines for it in the configuration (`key: value`).
    pub(crate) fn start(upstream: &Upstream, lines: &[&str]) -> Self {
        let more: String = lines.iter().map(|l| format!("    {l}\n")).collect();
        let text = format!(
            "listeners:\n  - listen: 127.0.0.1:0\nupstreams:\n  - name: double\n    url: {}\n{more}",
            upstream.url()
        );
        let compiled = config::compile("test", &text, &Overrides::default(), &|_| None).expect("valid");
        let (address, listening) = bind(&compiled.wiring.listeners[0], 1, None).expect("a free port");
        let (publisher, reader) = Publisher::new(Arc::new(compiled.policy));
        let observations = Arc::new(Mutex::new(Vec::new()));
        let versions = Arc::new(Versions::new(100));
        let drain = Drain::default();
        let kept = Arc::clone(&observations);
        let shared = Arc::new(Shared {
            clock: Clock::system(),
            reader,
            slots: Arc::new(Slots::new(100)),
            metrics: Arc::new(Metrics::new(100)),
            observer: Box::new(move |report| {
                if let Report::Ended(observation) = report {
                    kept.lock().unwrap().push(*observation);
                }
            }),
            drain: drain.clone(),
            connections: Arc::new(Semaphore::new(1000)),
            waiting: Arc::new(AtomicUsize::new(0)),
            chains: Chains::default(),
            versions: Arc::clone(&versions),
            breakers: Arc::default(),
            unwilling: Unwilling::default(),
            request_ids: RequestIds::new(),
        });
        std::thread::spawn(move || run_worker(shared, listening));
        Self {
            address,
            publisher,
            generation: AtomicU64::new(0),
            observations,
            drain,
            versions,
        }
    }

    /// Puts these orders in force for agent `a`, in the place of those before.
    pub(crate) fn order(&self, orders: impl IntoIterator<Item = Order>) {
        self.direct(orders.into_iter().enumerate().map(|(n, order)| Directive {
            lease: format!("lease-{n}").into(),
            incident: format!("inc-{n}").into(),
            rule: "rule".into(),
            subject: Subject::Agent(AgentId::from("a")),
            order,
            since: Wall::default(),
            expires: Wall::default(),
            until: Mono::FAR,
        }));
    }

    /// Puts these directives in force.
    pub(crate) fn direct(&self, directives: impl IntoIterator<Item = Directive>) {
        let generation = Generation(self.generation.fetch_add(1, Ordering::SeqCst) + 1);
        let set = DirectiveSet::new(generation, directives.into_iter().map(Arc::new));
        self.publisher.publish_directives(Arc::new(set));
    }

    /// A connection.
    pub(crate) async fn client(&self) -> Client<tokio::net::TcpStream> {
        Client::connect(&self.address).await
    }

    /// One request of agent `a` over a connection of its own.
    pub(crate) async fn ask(&self, path: &str, body: &str) -> Message {
        let ask = Ask::post(path, body).header("x-agent-id", "a");
        self.client().await.ask(&ask).await
    }

    /// The last observation, once there are `count`.
    pub(crate) async fn observation(&self, count: usize) -> Observation {
        eventually(&format!("{count} observations"), async || {
            let all = self.observations.lock().unwrap();
            (all.len() >= count).then(|| all.last().unwrap().clone())
        })
        .await
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.drain.begin();
        self.drain.end();
    }
}
