//! Reload: prepare (may fail, touches nothing), then commit (cannot fail).

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;

use super::Source;
use crate::alert::Alerts;
use crate::clock::Clock;
use crate::config::{self, Compiled};
use crate::control::driver::Reloaded;
use crate::control::handle::{ReloadReport, UpstreamView};
use crate::enforce::policy::Policy;
use crate::enforce::snapshot::Publisher;
use crate::incident::rule::Rulebook;
use crate::proxy::{Certificate, TlsClients};

/// What a reload reads, changes and compares with.
pub(super) struct Reloader {
    pub(super) source: Source,
    /// The configuration in force, except for what needs a restart.
    pub(super) current: Compiled,
    pub(super) tls: Arc<TlsClients>,
    pub(super) certificates: Vec<Option<Arc<Certificate>>>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) alerts: Alerts,
    pub(super) clock: Clock,
}

/// A configuration that can be put in force without anything that might fail.
struct Prepared {
    compiled: Compiled,
    policy: Policy,
    changes: Vec<String>,
    needs_restart: Vec<String>,
}

/// Reloads whenever it is asked, one reload at a time.
pub(super) async fn run(
    mut reloader: Reloader,
    mut asks: Receiver<oneshot::Sender<ReloadReport>>,
    results: Sender<Reloaded>,
) {
    while let Some(answer) = asks.recv().await {
        let reloaded = match reloader.prepare() {
            Ok(prepared) => reloader.commit(prepared),
            Err(problems) => reloader.refuse(problems),
        };
        let report = reloaded.report.clone();
        results.send(reloaded).await.ok();
        answer.send(report).ok();
    }
}

impl Reloader {
    fn prepare(&self) -> Result<Prepared, Vec<String>> {
        let compiled = match &self.source {
            Source::File(path, overrides) => config::load(Some(path), overrides),
            Source::Defaults(overrides) => config::load(None, overrides),
            Source::Fixed => Ok(self.current.clone()),
        }
        .map_err(|problems| problems.lines())?;
        let config::Diff {
            mut changes,
            needs_restart,
        } = config::diff(&self.current, &compiled);
        let mut policy = compiled.policy.clone();
        self.tls.prepare(&mut policy).map_err(|e| vec![e.to_string()])?;
        for certificate in self.certificates.iter().flatten() {
            // A certificate is good or stays as it was, whatever becomes of the rest.
            if certificate.refresh().map_err(|e| vec![e.to_string()])? {
                changes.push("listener certificate read anew".to_owned());
            }
        }
        Ok(Prepared {
            compiled,
            policy,
            changes,
            needs_restart,
        })
    }

    fn commit(&mut self, prepared: Prepared) -> Reloaded {
        let Prepared {
            mut compiled,
            mut policy,
            changes,
            needs_restart,
        } = prepared;
        policy.generation = self.current.policy.generation.next();
        compiled.policy.generation = policy.generation;
        compiled.rulebook = Arc::new(Rulebook {
            generation: self.current.rulebook.generation.next(),
            ..Rulebook::clone(&compiled.rulebook)
        });
        // What needs a restart keeps its old value, so that the next reload says so again.
        compiled.wiring = self.current.wiring.clone();
        let upstreams = upstream_views(&policy);
        self.publisher.publish_policy(Arc::new(policy));
        self.alerts.allow(compiled.destinations.clone());
        self.alerts.replace(compiled.targets.clone());
        let rules = Arc::clone(&compiled.rulebook);
        let destinations = compiled.destinations.clone();
        self.current = compiled;
        for setting in &needs_restart {
            tracing::warn!(setting, "changed, but needs a restart; the old value stays");
        }
        tracing::info!(changes = changes.len(), "configuration reloaded");
        let report = ReloadReport {
            ok: true,
            at: self.clock.wall(),
            changes,
            problems: Vec::new(),
            needs_restart,
        };
        Reloaded {
            report,
            rules: Some(rules),
            upstreams: Some(upstreams),
            destinations: Some(destinations),
        }
    }

    fn refuse(&self, problems: Vec<String>) -> Reloaded {
        for problem in &problems {
            tracing::error!(problem, "configuration not reloaded");
        }
        let report = ReloadReport {
            ok: false,
            at: self.clock.wall(),
            changes: Vec::new(),
            problems,
            needs_restart: Vec::new(),
        };
        Reloaded {
            report,
            rules: None,
            upstreams: None,
            destinations: None,
        }
    }
}

/// The upstreams of a policy, to be shown.
pub(super) fn upstream_views(policy: &Policy) -> Vec<UpstreamView> {
    policy
        .upstreams
        .iter()
        .map(|upstream| {
            let url = &upstream.url;
            let scheme = if url.tls { "https" } else { "http" };
            let authority = url.authority.to_str().unwrap_or_default();
            UpstreamView {
                name: upstream.name.as_str().to_owned(),
                url: format!("{scheme}://{authority}{}", url.base_path),
                provider: upstream.provider.to_string(),
                breaker: None,
            }
        })
        .collect()
}
