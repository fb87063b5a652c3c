//! What changed between two compiled configurations, in the words of the file and without secrets.

use std::fmt::Debug;

use super::show::{show_baseline, show_statistic, show_threshold, word};
use super::units::{show_duration, show_size};
use super::{AdminWiring, Compiled, Diff, Wiring};
use crate::alert::{Target, TargetKind};
use crate::enforce::failover::RetryBudget;
use crate::enforce::policy::{IdentityPolicy, Limits, OnClientAbort, Policy, Timeouts, Upstream};
use crate::incident::engine::Bounds;
use crate::incident::rule::{Action, Rule, Rulebook, Threshold};
use crate::types::ids::ActionName;

/// See [`super::diff`].
pub(super) fn diff(old: &Compiled, new: &Compiled) -> Diff {
    let Compiled {
        wiring,
        policy,
        rulebook,
        targets,
        destinations,
    } = new;
    let mut live = Log::default();
    rulebook_changes(&old.rulebook, rulebook, &mut live);
    policy_changes(&old.policy, policy, &mut live);
    live.by_name("alert", &old.targets, targets, |t| t.name.clone(), target_changes);
    live.changed("notification_webhooks", &old.destinations, destinations);
    let mut fixed = Log::default();
    wiring_changes(&old.wiring, wiring, &mut fixed);
    Diff {
        changes: live.lines,
        needs_restart: fixed.lines,
    }
}

/// Gathers lines; `at` is what they are about.
#[derive(Default)]
struct Log {
    at: String,
    lines: Vec<String>,
}

impl Log {
    /// A value changed, and both may be shown.
    fn shown(&mut self, key: &str, old: String, new: String) {
        if old != new {
            self.lines.push(format!("{}{key} {old} → {new}", self.at));
        }
    }

    /// A value changed that is too long or too secret to be shown.
    fn changed<T: PartialEq + ?Sized>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.lines.push(format!("{}{key} changed", self.at));
        }
    }

    /// A value changed whose `Debug` is a word or a number of the file.
    fn plain<T: PartialEq + Debug>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.shown(key, word(old), word(new));
        }
    }

    fn list<T: ToString>(&mut self, key: &str, old: &[T], new: &[T]) {
        let show = |l: &[T]| format!("[{}]", l.iter().map(T::to_string).collect::<Vec<_>>().join(", "));
        self.shown(key, show(old), show(new));
    }

    /// Compares two lists of named things: added, removed, and what changed within those that stayed.
    fn by_name<T, N: PartialEq + ToString>(
        &mut self,
        what: &str,
        old: &[T],
        new: &[T],
        name: impl Fn(&T) -> N,
        within: impl Fn(&T, &T, &mut Self),
    ) {
        for o in old.iter().filter(|o| !new.iter().any(|n| name(n) == name(o))) {
            self.lines.push(format!("{what} {} removed", name(o).to_string()));
        }
        for n in new {
            match old.iter().find(|o| name(o) == name(n)) {
                None => self.lines.push(format!("{what} {} added", name(n).to_string())),
                Some(o) => {
                    self.at = format!("{what} {}: ", name(n).to_string());
                    within(o, n, self);
                    self.at.clear();
                }
            }
        }
        let kept = |a: &[T], b: &[T]| -> Vec<String> {
            let stays = |x: &&T| b.iter().any(|y| name(y) == name(x));
            a.iter().filter(stays).map(|x| name(x).to_string()).collect()
        };
        if kept(old, new) != kept(new, old) {
            self.lines.push(format!("order of {what}s changed"));
        }
    }
}

fn rulebook_changes(old: &Rulebook, new: &Rulebook, log: &mut Log) {
    let Rulebook {
        generation: _,
        rules,
        actions,
        max_actions_per_hour,
        brake,
        conduct,
    } = new;
    log.changed("incidents", &old.conduct, conduct);
    log.by_name(
        "rule",
        &old.rules,
        rules,
        |r| r.name.clone(),
        |o, n, log| rule_changes(o, n, log),
    );
    let list = |actions: &std::collections::BTreeMap<ActionName, Action>| -> Vec<(ActionName, Action)> {
        actions.iter().map(|(n, a)| (n.clone(), a.clone())).collect()
    };
    let within =
        |o: &(ActionName, Action), n: &(ActionName, Action), log: &mut Log| log.changed("steps", &o.1, &n.1);
    log.by_name(
        "action",
        &list(&old.actions),
        &list(actions),
        |(n, _)| n.clone(),
        within,
    );
    log.plain(
        "automation.max_actions_per_hour",
        &old.max_actions_per_hour,
        max_actions_per_hour,
    );
    log.plain("automation.brake", &old.brake, brake);
}

fn rule_changes(old: &Rule, new: &Rule, log: &mut Log) {
    let Rule {
        name: _,
        enabled,
        mode,
        severity,
        metric,
        statistic,
        baseline: _,
        threshold_upper,
        threshold_lower,
        window,
        hold,
        min_samples,
        cooldown,
        hysteresis,
        agents,
        models,
        upstreams,
        group_by,
        act_on_estimates,
        action,
    } = new;
    log.plain("enabled", &old.enabled, enabled);
    log.plain("mode", &old.mode, mode);
    log.plain("severity", &old.severity, severity);
    log.shown("metric", old.metric.name(old.statistic), metric.name(*statistic));
    if old.metric == *metric {
        log.shown(
            "statistic",
            show_statistic(old.statistic),
            show_statistic(*statistic),
        );
    }
    log.shown("baseline", show_baseline(old), show_baseline(new));
    let level =
        |t: Option<Threshold>, r: &Rule| t.map_or_else(|| "none".to_owned(), |t| show_threshold(t, r));
    log.shown(
        "threshold_upper",
        level(old.threshold_upper, old),
        level(*threshold_upper, new),
    );
    log.shown(
        "threshold_lower",
        level(old.threshold_lower, old),
        level(*threshold_lower, new),
    );
    log.shown("window", show_duration(old.window), show_duration(*window));
    log.shown("for", show_duration(old.hold), show_duration(*hold));
    log.plain("min_samples", &old.min_samples, min_samples);
    log.shown("cooldown", show_duration(old.cooldown), show_duration(*cooldown));
    log.plain("hysteresis", &old.hysteresis, hysteresis);
    log.list("agents", &old.agents, agents);
    log.list("models", &old.models, models);
    log.list("upstreams", &old.upstreams, upstreams);
    log.plain("group_by", &old.group_by, group_by);
    log.plain("act_on_estimates", &old.act_on_estimates, act_on_estimates);
    log.shown("action", old.action.to_string(), action.to_string());
}

fn policy_changes(old: &Policy, new: &Policy, log: &mut Log) {
    let Policy {
        generation: _,
        identity,
        upstreams,
        limits,
        prices,
        models,
        metering,
        retries,
        streams,
    } = new;
    log.by_name(
        "upstream",
        &old.upstreams,
        upstreams,
        |u| u.name.clone(),
        |o, n, log| upstream_changes(o, n, log),
    );
    identity_changes(&old.identity, identity, log);
    limit_changes(&old.limits, limits, log);
    log.changed("prices", &old.prices, prices);
    log.changed("models.downgrade", &old.models, models);
    log.plain("metering", &old.metering, metering);
    let percent = |r: &RetryBudget| r.percent.to_string();
    log.shown("retries.budget_percent", percent(&old.retries), percent(retries));
    log.plain(
        "retries.min_per_minute",
        &old.retries.min_per_minute,
        &retries.min_per_minute,
    );
    log.changed("streams", &old.streams, streams);
}

fn upstream_changes(old: &Upstream, new: &Upstream, log: &mut Log) {
    let Upstream {
        name: _,
        provider,
        url,
        families,
        path_prefix,
        include_usage,
        on_client_abort,
        timeouts,
        tls,
        proxy,
        http2,
        max_idle_connections,
        failover,
        retry_on,
        breaker,
        model_map,
        credentials,
        tls_client: _,
    } = new;
    let show_url = |u: &Upstream| {
        let scheme = if u.url.tls { "https" } else { "http" };
        let authority = u.url.authority.to_str().unwrap_or_default();
        format!("{scheme}://{authority}{}", u.url.base_path)
    };
    if old.url != *url {
        log.shown("url", show_url(old), show_url(new));
    }
    log.shown("provider", old.provider.to_string(), provider.to_string());
    log.list(
        "families",
        &old.families.iter().map(word).collect::<Vec<_>>(),
        &families.iter().map(word).collect::<Vec<_>>(),
    );
    let or_none = |p: &Option<String>| p.clone().unwrap_or_else(|| "none".to_owned());
    log.shown("path_prefix", or_none(&old.path_prefix), or_none(path_prefix));
    log.plain("include_usage", &old.include_usage, include_usage);
    let abort = |a: &OnClientAbort| match a {
        OnClientAbort::Cancel => "cancel".to_owned(),
        OnClientAbort::Drain(limit) => format!("drain: {}", show_duration(*limit)),
    };
    log.shown(
        "on_client_abort",
        abort(&old.on_client_abort),
        abort(on_client_abort),
    );
    let Timeouts {
        connect,
        first_byte,
        idle,
        total,
    } = timeouts;
    let t = &old.timeouts;
    log.shown(
        "timeouts.connect",
        show_duration(t.connect),
        show_duration(*connect),
    );
    log.shown(
        "timeouts.first_byte",
        show_duration(t.first_byte),
        show_duration(*first_byte),
    );
    log.shown("timeouts.idle", show_duration(t.idle), show_duration(*idle));
    let limit = |d: Option<std::time::Duration>| d.map_or_else(|| "none".to_owned(), show_duration);
    log.shown("timeouts.total", limit(t.total), limit(*total));
    log.changed("tls", &old.tls, tls);
    log.changed("proxy", &old.proxy, proxy);
    log.plain("http2", &old.http2, http2);
    log.plain(
        "max_idle_connections",
        &old.max_idle_connections,
        max_idle_connections,
    );
    log.list("failover", &old.failover, failover);
    log.changed("retry_on", &old.retry_on, retry_on);
    log.changed("breaker", &old.breaker, breaker);
    log.changed("model_map", &old.model_map, model_map);
    log.changed("credentials", &old.credentials, credentials);
}

fn identity_changes(old: &IdentityPolicy, new: &IdentityPolicy, log: &mut Log) {
    let IdentityPolicy {
        agent_order,
        agent_headers,
        agent_baggage_keys,
        agent_metadata_keys,
        version_headers,
        execution_headers,
        execution_metadata_keys,
        agent,
        agent_version,
        default_agent,
        api_key_salt,
        strip_headers,
        max_name_bytes,
    } = new;
    let none = || "none".to_owned();
    log.shown(
        "agent",
        old.agent.as_ref().map_or_else(none, ToString::to_string),
        agent.as_ref().map_or_else(none, ToString::to_string),
    );
    log.shown(
        "agent_version",
        old.agent_version.as_ref().map_or_else(none, ToString::to_string),
        agent_version.as_ref().map_or_else(none, ToString::to_string),
    );
    let words = |l: &[crate::enforce::policy::AgentSource]| l.iter().map(word).collect::<Vec<_>>();
    log.list(
        "identity.agent_order",
        &words(&old.agent_order),
        &words(agent_order),
    );
    log.list("identity.agent_headers", &old.agent_headers, agent_headers);
    log.list(
        "identity.agent_baggage_keys",
        &old.agent_baggage_keys,
        agent_baggage_keys,
    );
    log.list(
        "identity.agent_metadata_keys",
        &old.agent_metadata_keys,
        agent_metadata_keys,
    );
    log.list("identity.version_headers", &old.version_headers, version_headers);
    log.list(
        "identity.execution_headers",
        &old.execution_headers,
        execution_headers,
    );
    log.list(
        "identity.execution_metadata_keys",
        &old.execution_metadata_keys,
        execution_metadata_keys,
    );
    log.shown(
        "identity.default_agent",
        old.default_agent.to_string(),
        default_agent.to_string(),
    );
    log.changed("identity.api_key_salt", &old.api_key_salt, api_key_salt);
    log.list("identity.strip_headers", &old.strip_headers, strip_headers);
    log.plain("identity.max_name_bytes", &old.max_name_bytes, max_name_bytes);
}

fn limit_changes(old: &Limits, new: &Limits, log: &mut Log) {
    let Limits {
        max_request_bytes,
        max_header_bytes,
        max_inspect_bytes,
        header_timeout,
        body_idle_timeout,
        keep_alive_timeout,
        max_admission_wait,
        max_waiting,
    } = new;
    let size = |bytes: usize| show_size(bytes as u64);
    log.shown(
        "limits.max_request_bytes",
        show_size(old.max_request_bytes),
        show_size(*max_request_bytes),
    );
    log.shown(
        "limits.max_header_bytes",
        size(old.max_header_bytes),
        size(*max_header_bytes),
    );
    log.shown(
        "limits.max_inspect_bytes",
        size(old.max_inspect_bytes),
        size(*max_inspect_bytes),
    );
    for (key, old, new) in [
        ("limits.header_timeout", old.header_timeout, header_timeout),
        (
            "limits.body_idle_timeout",
            old.body_idle_timeout,
            body_idle_timeout,
        ),
        (
            "limits.keep_alive_timeout",
            old.keep_alive_timeout,
            keep_alive_timeout,
        ),
        (
            "limits.max_admission_wait",
            old.max_admission_wait,
            max_admission_wait,
        ),
    ] {
        log.shown(key, show_duration(old), show_duration(*new));
    }
    log.plain("limits.max_waiting", &old.max_waiting, max_waiting);
}

fn target_changes(old: &Target, new: &Target, log: &mut Log) {
    let Target {
        name: _,
        kind,
        url,
        min_severity,
        timeout,
        give_up_after,
        spacing,
        group,
        ca_files,
    } = new;
    match (&old.kind, kind) {
        (
            TargetKind::Webhook {
                secret: old_secret,
                headers: old_headers,
                format: old_format,
            },
            TargetKind::Webhook {
                secret,
                headers,
                format,
            },
        ) => {
            log.changed("secret", old_secret, secret);
            log.changed("headers", old_headers, headers);
            log.changed("format", old_format, format);
        }
        (TargetKind::PagerDuty { routing_key: old }, TargetKind::PagerDuty { routing_key }) => {
            log.changed("routing_key", old, routing_key);
        }
        (
            TargetKind::Alertmanager {
                others: old_others,
                resend_every: old_every,
                labels: old_labels,
                headers: old_headers,
            },
            TargetKind::Alertmanager {
                others,
                resend_every,
                labels,
                headers,
            },
        ) => {
            log.changed("urls", old_others, others);
            log.shown(
                "resend_every",
                show_duration(*old_every),
                show_duration(*resend_every),
            );
            log.changed("labels", old_labels, labels);
            log.changed("headers", old_headers, headers);
        }
        (old, new) => log.shown("kind", old.name().into(), new.name().into()),
    }
    log.changed("url", &old.url, url);
    log.plain("min_severity", &old.min_severity, min_severity);
    log.shown("timeout", show_duration(old.timeout), show_duration(*timeout));
    log.shown(
        "give_up_after",
        show_duration(old.give_up_after),
        show_duration(*give_up_after),
    );
    log.shown("spacing", show_duration(old.spacing), show_duration(*spacing));
    log.changed("group", &old.group, group);
    log.changed("ca_files", &old.ca_files, ca_files);
}

/// Keys of the file whose change needs a restart.
fn wiring_changes(old: &Wiring, new: &Wiring, log: &mut Log) {
    let Wiring {
        listeners,
        admin,
        workers,
        observations,
        ledger,
        log_format,
        log_filter,
        drain_deadline,
        watch,
        observation_queue,
        bounds,
        max_agents,
        max_connections,
        max_label_sets,
    } = new;
    let AdminWiring {
        bind,
        token,
        tokens,
        allowed_hosts,
        open_metrics,
        external_url,
        user_header,
    } = admin;
    let Bounds {
        max_subjects,
        max_executions,
        execution_idle_seconds,
        max_closed_incidents,
    } = bounds;
    let mut key = |name: &str, same: bool| {
        if !same {
            log.lines.push(name.to_owned());
        }
    };
    key("listeners", old.listeners == *listeners);
    key("admin.listen", old.admin.bind == *bind);
    key("admin.token", old.admin.token == *token);
    key("admin.tokens", old.admin.tokens == *tokens);
    key("admin.allowed_hosts", old.admin.allowed_hosts == *allowed_hosts);
    key("admin.open_metrics", old.admin.open_metrics == *open_metrics);
    key("admin.max_label_sets", old.max_label_sets == *max_label_sets);
    key("admin.user_header", old.admin.user_header == *user_header);
    key("external_url", old.admin.external_url == *external_url);
    key("limits.max_agents", old.max_agents == *max_agents);
    key("limits.max_connections", old.max_connections == *max_connections);
    key("workers", old.workers == *workers);
    key("observations.file", old.observations == *observations);
    key("ledger", old.ledger == *ledger);
    key("log.format", old.log_format == *log_format);
    key("log.level", old.log_filter == *log_filter);
    key("drain_deadline", old.drain_deadline == *drain_deadline);
    key("watch", old.watch == *watch);
    key(
        "engine.observation_queue",
        old.observation_queue == *observation_queue,
    );
    key("engine.max_subjects", old.bounds.max_subjects == *max_subjects);
    key(
        "engine.max_executions",
        old.bounds.max_executions == *max_executions,
    );
    key(
        "engine.execution_idle",
        old.bounds.execution_idle_seconds == *execution_idle_seconds,
    );
    key(
        "engine.max_closed_incidents",
        old.bounds.max_closed_incidents == *max_closed_incidents,
    );
}

#[cfg(test)]
mod tests {
    use crate::config::{Compiled, Overrides, compile, diff};

    fn config(text: &str) -> Compiled {
        compile("f", text, &Overrides::default(), &|_| None).unwrap_or_else(|p| panic!("{p}"))
    }

    fn changes(old: &str, new: &str) -> Vec<String> {
        let d = diff(&config(old), &config(new));
        assert!(d.needs_restart.is_empty(), "{:?}", d.needs_restart);
        d.changes
    }

    const RULE: &str = "agent_incident_rules: [{name: r, metric: response_time, baseline: 2s, threshold_upper: 8s, action: notify_only}]\n";

    #[test]
    fn the_same_twice_is_no_change() {
        for text in ["", RULE, include_str!("../../config/minimal.yaml")] {
            let config = |text| compile("f", text, &Overrides::default(), &|_| None).unwrap();
            assert_eq!(diff(&config(text), &config(text)), super::Diff::default());
        }
    }

    #[test]
    fn rules_and_actions() {
        assert_eq!(
            changes(RULE, &RULE.replace("8s", "2x")),
            ["rule r: threshold_upper 8s → 2x"]
        );
        assert_eq!(
            changes(
                RULE,
                &RULE.replace(
                    "baseline: 2s",
                    "baseline: learned, for: 90s, mode: shadow, agents: [a, b]"
                )
            ),
            [
                "rule r: mode enforce → shadow",
                "rule r: baseline 2s → learned",
                "rule r: for 0s → 1m30s",
                "rule r: agents [] → [a, b]"
            ]
        );
        assert_eq!(
            changes(RULE, &RULE.replace("name: r", "name: q")),
            ["rule r removed", "rule q added"]
        );
        assert_eq!(
            changes(
                RULE,
                &format!("{RULE}actions: {{notify_only: {{steps: [escalate]}}, x: {{steps: [notify]}}}}")
            ),
            [
                "rule r: severity warning → critical",
                "action notify_only: steps changed",
                "action x added"
            ]
        );
        assert_eq!(
            changes("", "automation: {max_actions_per_hour: 0}"),
            ["automation.max_actions_per_hour 60 → 0"]
        );
    }

    #[test]
    fn upstreams_limits_identity() {
        let u = |more: &str| format!("upstreams: [{{name: o, url: 'https://o.example'{more}}}]\n");
        assert_eq!(
            changes(
                &u(""),
                &u(
                    ", timeouts: {first_byte: 30s, total: 1h}, http2: prior_knowledge, on_client_abort: {drain: 5s}"
                )
            ),
            [
                "upstream o: on_client_abort cancel → drain: 5s",
                "upstream o: timeouts.first_byte 10m → 30s",
                "upstream o: timeouts.total none → 1h",
                "upstream o: http2 auto → prior_knowledge"
            ]
        );
        assert_eq!(
            changes(&u(""), &u("").replace("o.example", "o.example/v1")),
            ["upstream o: url https://o.example → https://o.example/v1"]
        );
        let two = "upstreams: [{name: a, url: 'https://a'}, {name: b, url: 'https://b'}]";
        let swapped = "upstreams: [{name: b, url: 'https://b'}, {name: a, url: 'https://a'}]";
        assert_eq!(changes(two, swapped), ["order of upstreams changed"]);
        assert_eq!(
            changes(
                "",
                "limits: {max_request_bytes: 1MiB}\nagent: x\nidentity: {default_agent: y}\nmetering: false\n"
            ),
            [
                "agent none → x",
                "identity.default_agent default → y",
                "limits.max_request_bytes 64MiB → 1MiB",
                "metering true → false"
            ]
        );
    }

    #[test]
    fn failover_streams_and_conduct() {
        let u = |more: &str| {
            format!("upstreams: [{{name: a, url: 'https://a'{more}}}, {{name: b, url: 'https://b'}}]\n")
        };
        assert_eq!(
            changes(
                &u(""),
                &u(
                    ", failover: [b], breaker: {failures: 9}, retry_on: [503], model_map: {x: y}, credentials: {api_key: hunter2}"
                )
            ),
            [
                "upstream a: failover [] → [b]",
                "upstream a: retry_on changed",
                "upstream a: breaker changed",
                "upstream a: model_map changed",
                "upstream a: credentials changed"
            ]
        );
        assert_eq!(
            changes(
                "",
                "automation: {brake: true}\nincidents: {flaps_after: 9}\nretries: {budget_percent: 5}\nstreams: {cut_repetition: true}\n"
            ),
            [
                "incidents changed",
                "automation.brake false → true",
                "retries.budget_percent 20 → 5",
                "streams changed"
            ]
        );
    }

    #[test]
    fn secrets_are_told_as_changed_and_never_shown() {
        let old = "identity: {api_key_salt: hunter2-hunter2-old}\nalerts: [{name: a, url: 'https://h/hunter2', secret: hunter2, headers: {x: hunter2}}]\nupstreams: [{name: u, url: 'https://u', proxy: 'http://me:hunter2@p:1'}]\n";
        let new = old.replace("hunter2", "hunter3");
        let got = changes(old, &new);
        assert_eq!(
            got,
            [
                "upstream u: proxy changed",
                "identity.api_key_salt changed",
                "alert a: secret changed",
                "alert a: headers changed",
                "alert a: url changed"
            ]
        );
    }

    #[test]
    fn wiring_needs_a_restart() {
        let new = "listeners: [{listen: '127.0.0.1:1'}]\nadmin: {token: t}\nworkers: 3\nlog: {level: debug}\nengine: {execution_idle: 1m}\n";
        let old = "workers: 2\n";
        let d = diff(&config(old), &config(new));
        assert_eq!(
            d.needs_restart,
            [
                "listeners",
                "admin.token",
                "workers",
                "log.level",
                "engine.execution_idle"
            ]
        );
        assert!(d.changes.is_empty());
    }
}
