//! Every kind of problem with its place and hint, all at once, and never with a secret.

use super::{Overrides, bad, with};

/// Each text has exactly the problem beside it: line, column, text and hint.
#[test]
fn every_kind_of_problem_has_its_place_and_hint() {
    let rule = |lines: &str| {
        format!(
            "agent_incident_rules:\n  - name: r\n    metric: tokens_per_minute\n    action: notify_only\n    threshold_upper: 9\n{lines}"
        )
    };
    let bare = |lines: &str| format!("agent_incident_rules:\n  - name: r\n    action: notify_only\n{lines}");
    let up = |lines: &str| format!("upstreams:\n  - name: a\n    url: https://a.example\n{lines}");
    let alert = |lines: &str| format!("alerts:\n  - name: a\n    url: https://h.example/x\n{lines}");
    let step = |step: &str| format!("actions: {{a: {{steps: [{step}]}}}}");
    let table: Vec<(String, &str)> = vec![
        // Keys, types, words.
        ("listners: []".into(), "1:1: unknown key `listners` (did you mean `listeners`?)"),
        (rule("    threshold_uper: 5\n"), "6:5: unknown key `threshold_uper` (did you mean `threshold_upper`?)"),
        (rule("    mode: enforced\n"), "6:11: unknown value for `mode` (did you mean `enforce`?)"),
        (rule("    enabled: maybe\n"), "6:14: `enabled` must be true or false, not text (write true or false, without quotes)"),
        (rule("    agents: billing\n"), "6:13: `agents` must be a list, not text (write each entry in a line of its own after `- `, or [a, b])"),
        ("limits: 5".into(), "1:9: `limits` must be a map of keys, not a whole number (write its keys in the lines below, further to the right, as KEY: VALUE)"),
        ("- a\n".into(), "1:1: this must be a map of keys, not a list (write its keys in the lines below, further to the right, as KEY: VALUE)"),
        ("workers: 2\nworkers: 3\n".into(), "2:1: `workers` is given twice (the first one is in line 1; keep one of them)"),
        ("workers: two".into(), "1:10: `workers` must be a whole number from 0 up, not text (write digits only, without quotes or a unit, as 4)"),
        ("workers: 5000".into(), "1:10: `workers` is out of range (from 0 to 1024)"),
        ("drain_deadline: 30".into(), "1:17: `30` is not a duration (give it a unit, as 30s or 30m)"),
        ("drain_deadline: 5 parsecs".into(), "1:17: `5 parsecs` is not a duration (write a number with a unit, as 500ms, 2.5s, 15m or 1h30m)"),
        ("drain_deadline: 90d".into(), "1:17: `drain_deadline` is out of range (from 0s to 7d)"),
        ("limits: {max_request_bytes: 64M}".into(), "1:29: `64M` is not a size (write a number of bytes, or one with a unit, as 64KiB, 64MiB or 10MB)"),
        ("limits: {max_request_bytes: 0}".into(), "1:29: `max_request_bytes` is out of range (from 1B to 4GiB)"),
        ("log: {level: inof}".into(), "1:14: `inof` is not a log level (did you mean `info`?)"),
        ("observations: {file: ''}".into(), "1:22: the path for observations is empty (write a path, or - for standard output)"),
        ("ledger: {path: ' '}".into(), "1:16: the path of the ledger is empty (write the path of a file, as /var/lib/fusebox/ledger.db, or remove it to keep nothing)"),
        ("ledger: {path: /var/lib/}".into(), "1:16: the path of the ledger is that of a directory (write the path of a file, as /var/lib/fusebox/ledger.db, or remove it to keep nothing)"),
        ("ledger: {path: l, observations: {max_bytes: 1KiB}}".into(), "1:45: `max_bytes` is out of range (from 1MiB to 16384GiB)"),
        ("ledger: {path: l, incidents: {keep: 1s}}".into(), "1:37: `keep` is out of range (from 1m to 3650d)"),
        // Environment and files.
        ("agent: ${UNSET}".into(), "1:8: the environment variable UNSET is not set (set it, or write ${UNSET:-default})"),
        ("agent: ${SET".into(), "1:8: `${` without `}` (write ${NAME} or ${NAME:-default}; a plain dollar sign before a brace is written $$)"),
        ("admin: {token_file: /nowhere/t}".into(), "1:21: `token_file` cannot be read: No such file or directory (os error 2) (/nowhere/t must be a readable file that holds the value and nothing else)"),
        ("admin: {token_file: /dev/null}".into(), "1:21: `token_file` cannot be read: no regular file (/dev/null must be a readable file that holds the value and nothing else)"),
        ("admin: {token: a, token_file: b}".into(), "1:31: both `token` and `token_file` are given (keep one of them)"),
        ("identity: {api_key_salt: short}".into(), "1:26: `api_key_salt` is shorter than 16 bytes (a short one lets agent names be traced back to API keys; make one with: openssl rand -base64 32)"),
        // Listeners and admin.
        ("listeners: []".into(), "1:12: `listeners` is empty (give at least one, or remove the key)"),
        ("listeners: [{agent: a}]".into(), "1:13: `listen` is missing (write HOST:PORT or unix:PATH)"),
        ("listeners: [{listen: '4310'}]".into(), "1:22: `4310` is not an address to listen on (write 127.0.0.1:4310 for this host only, or 0.0.0.0:4310 for all interfaces)"),
        ("listeners: [{listen: nowhere}]".into(), "1:22: `nowhere` is not an address to listen on (write ADDRESS:PORT as 127.0.0.1:4310 or [::]:4310, or unix:PATH)"),
        ("listeners: [{listen: 'unix:'}]".into(), "1:22: not the path of a Unix socket (write unix:/run/fusebox.sock; at most 107 bytes)"),
        ("listeners:\n  - listen: 127.0.0.1:1\n  - listen: 127.0.0.1:1\n".into(), "3:13: two listeners at one address (give each its own address, or remove one)"),
        ("listeners:\n  - listen: 127.0.0.1:1\n    tls: {key_file: k}\n".into(), "3:10: `certificate_file` is missing (TLS needs certificate_file and key_file, both PEM)"),
        ("admin: {listen: '0.0.0.0:4311'}".into(), "1:17: an admin listener beyond loopback needs a token (set admin.token_file (or admin.token), or listen on 127.0.0.1)"),
        ("admin: {listen: '127.0.0.1:4310'}".into(), "1:17: the admin listener has the address of a listener for agents (give it another port; the default is 127.0.0.1:4311)"),
        // Upstreams.
        ("upstreams: []".into(), "1:12: `upstreams` is empty (give at least one, or remove the key)"),
        ("upstreams:\n  - url: https://a\n".into(), "2:5: `name` is missing (a short word, as openai: it appears in metrics and observations)"),
        ("upstreams:\n  - name: a\n".into(), "2:5: `url` is missing (write https://HOST, https://HOST:PORT or https://HOST/PATH)"),
        ("upstreams:\n  - name: a\n    url: a.example\n".into(), "3:10: a URL needs http:// or https:// (write https://HOST, https://HOST:PORT or https://HOST/PATH)"),
        ("upstreams:\n  - name: a\n    url: https://me:pw@a.example\n".into(), "3:10: a URL with a user name or password in it (remove everything up to the @; credentials come from the clients' own headers, or from *_file keys)"),
        (up("  - {name: a, url: 'https://b'}\n"), "4:12: two upstreams named `a` (names are unique; rename one of them)"),
        (up("    families: [opnai]\n"), "4:16: unknown value (did you mean `openai`?)"),
        (up("    path_prefix: eu\n"), "4:18: `eu` is not a path prefix (write /NAME, as /eu; not / alone)"),
        (up("    path_prefix: /eu\n  - {name: b, url: 'https://b', path_prefix: /eu/}\n"), "5:46: upstream `a` has the same path prefix (give each its own prefix)"),
        (up("    on_client_abort: {drain: soon}\n"), "4:30: `soon` is not a duration (write a number with a unit, as 500ms, 2.5s, 15m or 1h30m)"),
        (up("    on_client_abort: drain\n"), "4:22: `drain` needs a value: drain: …"),
        (up("    timeouts: {total: 1s}\n"), "4:23: `total` is shorter than `connect` (make it the longest of all)"),
        (up("    proxy: https://p\n"), "4:12: only plain HTTP proxies are supported (none, environment, or a URL: write http://HOST:PORT; what goes through it is still TLS)"),
        (up("    tls: {server_name: 'a b'}\n"), "4:24: `a b` is not a host name (write the name that the certificate holds)"),
        ("upstreams:\n  - name: a\n    url: http://a\n    tls: {ca_files: [x]}\n".into(), "3:10: TLS settings for a plain http URL (write https://, or remove `tls`)"),
        // Identity, prices, models.
        ("identity: {agent_headers: ['x agent']}".into(), "1:28: `x agent` is not the name of a header (letters, digits and - only, as x-agent-id)"),
        ("identity: {agent_order: [default, path]}".into(), "1:35: nothing is looked for after `default` (move `default` to the end of the list)"),
        ("agent: ' '".into(), "1:8: `agent` is empty (write a short word, as letters, digits, - and _)"),
        ("prices: {m: {input: 1}}".into(), "1:13: `output` is missing (in US dollars per million tokens; 0 for a model that costs nothing)"),
        ("prices: {m: {input: -1, output: 1}}".into(), "1:21: `input` is out of range (from 0 to 1000000)"),
        ("prices: {'a*b': {input: 1, output: 1}}".into(), "1:10: `*` can only stand at the end of a model's name (write gpt-5* for all that begin with gpt-5)"),
        ("models: {downgrade: {a: a}}".into(), "1:25: a model cannot stand in for itself (name a cheaper model)"),
        // Alerts.
        ("alerts: [{url: 'https://h'}]".into(), "1:10: `name` is missing (a short word, as on-call: steps and status name the target by it)"),
        ("alerts: [{name: a}]".into(), "1:10: `url` is missing (set `url`, or `url_file` to a file that holds it)"),
        ("alerts: [{name: a, url: hooks}]".into(), "1:25: `url`: a URL needs http:// or https:// (write https://HOST, https://HOST:PORT or https://HOST/PATH)"),
        (alert("  - {name: a, url: 'https://i'}\n"), "4:12: two alert targets named `a` (names are unique; rename one of them)"),
        (alert("    kind: slak\n"), "4:11: unknown value for `kind` (did you mean `slack`?)"),
        (alert("    kind: slack\n    secret: s\n"), "5:13: `secret` is not for kind: slack (remove it; it is for kind: webhook)"),
        (alert("    kind: discord\n    headers: {x-a: b}\n"), "5:15: `headers` is not for kind: discord (remove it; it is for kind: webhook, alertmanager)"),
        (alert("    resend_every: 1m\n"), "4:19: `resend_every` is not for kind: webhook (remove it; it is for kind: alertmanager)"),
        (alert("    group: {wait: 1s}\n"), "4:12: `group` is not for kind: webhook (remove it; it is for kind: slack, teams, discord)"),
        (alert("    kind: slack\n    group: {wait: 2m}\n"), "5:19: `wait` is out of range (from 0s to 1m)"),
        (alert("    source: /a\n"), "4:13: `source` is for CloudEvents (remove it, or set format: cloudevents)"),
        (alert("    format: cloudevents\n    source: 'a b'\n"), "5:13: `source` is no URI reference (write it as /fusebox/NAMESPACE/POD, without blanks)"),
        (alert("    kind: alertmanager\n    urls: ['http://b']\n"), "5:11: both `url` and `urls` are given (keep one of them)"),
        (alert("    kind: alertmanager\n    labels: {a-b: c}\n"), "5:14: `a-b` is not the name of a label (letters, digits and _ only, and no digit first)"),
        (alert("    kind: alertmanager\n    labels: {severity: c}\n"), "5:14: label `severity` is set by fusebox (remove it)"),
        ("alerts: [{name: a, kind: alertmanager, urls: []}]".into(), "1:46: `urls` is empty (list the base URL of each member, or set `url`)"),
        ("alerts: [{name: a, kind: pagerduty}]".into(), "1:10: `routing_key` is missing (the integration key of a service with an Events API v2 integration; or routing_key_file)"),
        ("notification_webhooks: {hosts: ['https://h/x']}".into(), "1:33: `https://h/x` is not a host (write a host name without scheme and port, as hooks.slack.com or *.corp.example)"),
        (alert("    headers: {host: a}\n"), "4:15: `host` is set by fusebox (remove it)"),
        (alert("    min_severity: urgent\n"), "4:19: unknown value for `min_severity` (one of info, warning, error, critical)"),
        // Rules.
        ("agent_incident_rules:\n  - metric: tokens_per_minute\n    threshold_upper: 1\n    action: notify_only\n".into(), "2:5: `name` is missing (a short word; incidents survive a reload by it)"),
        (bare("    threshold_upper: 1\n"), "2:5: `metric` is missing (what is measured, as tokens_per_execution or p95_response_time)"),
        ("agent_incident_rules:\n  - name: r\n    metric: tokens_per_minute\n    threshold_upper: 1\n".into(), "2:5: `action` is missing (one of contain_and_escalate, escalate_to_on_call, notify_only, rollback_and_notify, scale_down, throttle_and_alert)"),
        (bare("    metric: token_per_execution\n    threshold_upper: 1\n"), "4:13: unknown metric `token_per_execution` (did you mean `tokens_per_execution`?)"),
        (bare("    metric: tokens_per_minute\n"), "2:5: a rule without a threshold (give threshold_upper or threshold_lower: without either it finds nothing)"),
        (bare("    metric: tokens_per_minute\n    treshold_lower: 5\n"), "5:5: unknown key `treshold_lower` (did you mean `threshold_lower`?)"),
        (rule("    action: x\n").replace("    action: notify_only\n", ""), "5:13: unknown action `x` (define it under `actions`, or use one of contain_and_escalate, escalate_to_on_call, notify_only, rollback_and_notify, scale_down, throttle_and_alert)"),
        (rule("    action: throttle_and_alarm\n").replace("    action: notify_only\n", ""), "5:13: unknown action `throttle_and_alarm` (did you mean `throttle_and_alert`?)"),
        (rule("    statistic: p95\n"), "6:16: `tokens_per_minute` is a share or a rate over the whole window already (remove `statistic`)"),
        (bare("    metric: p95_response_time\n    threshold_upper: 1s\n    statistic: p99\n"), "6:16: the metric's name says another statistic (remove one of the two)"),
        (bare("    metric: response_time\n    threshold_upper: 1s\n    statistic: mid\n"), "6:16: unknown statistic `mid` (did you mean `min`?)"),
        (rule("    baseline: lerned\n"), "6:15: `lerned` is not a baseline (did you mean `learned`?)"),
        (rule("    baseline: 2x\n"), "6:15: a baseline cannot be relative (write a value, learned or fleet)"),
        (rule("    baseline: 5s\n"), "6:15: `baseline` is a duration, but the metric is counted in tokens (write a number of tokens, as 5000)"),
        (rule("    baseline: 10\n"), "5:22: `threshold_upper` is not above the baseline: what is normal would be a breach (raise it, or use threshold_lower for what must not fall)"),
        (rule("    threshold_lower: 9\n"), "6:22: `threshold_lower` is not below `threshold_upper`: every value would be a breach (leave room between the two)"),
        (rule("    threshold_lower: 2x\n"), "6:22: `threshold_lower` is relative to a baseline that is not given (give `baseline` a value (or learned), or write the threshold as a value)\n6:22: `threshold_lower` is not below the baseline: what is normal would be a breach (lower it, or use threshold_upper for what must not rise)"),
        (bare("    metric: tokens_per_minute\n    threshold_upper: 2x\n"), "5:22: `threshold_upper` is relative to a baseline that is not given (give `baseline` a value (or learned), or write the threshold as a value)"),
        (bare("    metric: tokens_per_minute\n    baseline: 5\n    threshold_upper: -30%\n"), "6:22: `threshold_upper` is not above the baseline: what is normal would be a breach (raise it, or use threshold_lower for what must not fall)"),
        (bare("    metric: tokens_per_minute\n    threshold_upper: lots\n"), "5:22: `lots` is not a threshold (write a number of tokens, as 5000, or relative to the baseline as 2x, +40% or -30%)"),
        (bare("    metric: tokens_per_minute\n    threshold_upper: -5\n"), "5:22: `threshold_upper` is out of range (a number from 0 up)"),
        (bare("    metric: response_time\n    threshold_upper: 8\n"), "5:22: `threshold_upper` needs a unit, since the metric is a time (write 8s or 8ms)"),
        (bare("    metric: error_rate\n    threshold_upper: 5\n"), "5:22: `threshold_upper` is out of range (a share is from 0 to 1 (or from 0% to 100%))"),
        (rule("    window: 0s\n"), "6:13: `window` is out of range (from 1s to 1d)"),
        (rule("    for: -1s\n"), "6:10: `-1s` is not a duration (write a number with a unit, as 500ms, 2.5s, 15m or 1h30m)"),
        (rule("    min_samples: 0\n"), "6:18: `min_samples` is out of range (from 1 to 1000000)"),
        (rule("    hysteresis: 1.5\n"), "6:17: `hysteresis` is out of range (from 0 to 0.9)"),
        (rule("    upstreams: [opnai]\n"), "6:17: unknown upstream `opnai` (did you mean `openai`?)"),
        (rule("  - {name: r, metric: tokens_per_minute, threshold_upper: 1, action: notify_only}\n"), "6:12: two rules named `r` (incidents survive a reload by the rule's name; rename one of them)"),
        // Actions.
        ("actions: {a: {}}".into(), "1:14: `steps` is missing (a list, as steps: [throttle, notify])"),
        ("actions: {a: {steps: []}}".into(), "1:14: an action without steps (give at least one, as notify)"),
        ("actions: {a: {steps: [throtle]}}".into(), "1:23: unknown key `throtle` (did you mean `throttle`?)"),
        ("actions: {a: {steps: [{throtle: {}}]}}".into(), "1:24: unknown key `throtle` (did you mean `throttle`?)"),
        ("actions: {a: {steps: [{lease: 5m}]}}".into(), "1:23: a step that does nothing (one of throttle, cap_concurrency, reduce_batch, cap_output, downgrade_model, reroute, extend_timeouts, set_parameters, rollback, contain, run_webhook, notify, escalate)"),
        ("actions: {a: {steps: [{throttle: {}, notify: {}}]}}".into(), "1:23: a step of several kinds (write each kind as a step of its own, with its own `- `)"),
        ("actions: {a: {steps: [{throttle: {tokens_per_minute: 0}}]}}".into(), "1:54: `tokens_per_minute` is out of range (from 1 to 4294967295)"),
        ("actions: {a: {steps: [cap_concurrency]}}".into(), "1:23: `max_in_flight` is missing (as cap_concurrency: {max_in_flight: 2})"),
        ("actions: {a: {steps: [{notify: {targets: [x]}}]}}".into(), "1:43: unknown alert target `x` (define it under `alerts`)"),
        ("actions: {a: {steps: [{throttle: {}, approval: sometimes}]}}".into(), "1:48: unknown value for `approval` (one of automatic, required)"),
        ("actions: {a: {steps: [[x]]}}".into(), "1:23: this must be the name of a step, or a step with its settings, not a list"),
        // Settings of steps.
        (step("cap_output"), "1:23: `max_tokens` is missing (as cap_output: {max_tokens: 2000})"),
        (step("reroute"), "1:23: `to` is missing (the name of an upstream, as reroute: {to: backup})"),
        (step("{reroute: {to: opnai}}"), "1:38: unknown upstream `opnai` (did you mean `openai`?)"),
        (step("{extend_timeouts: {factor: 11}}"), "1:50: `factor` is out of range (from 1 to 10)"),
        (step("{reduce_batch: {max_inputs: 0}}"), "1:51: `max_inputs` is out of range (from 1 to 4294967295)"),
        (step("set_parameters"), "1:23: set_parameters without any parameter (as set_parameters: {temperature: 0})"),
        (step("{set_parameters: {model: x}}"), "1:41: `model` cannot be set (use the step downgrade_model)"),
        (step("{set_parameters: {messages: x}}"), "1:41: `messages` cannot be set (content is never changed)"),
        (step("{set_parameters: {stream: false}}"), "1:41: `stream` cannot be set (the client reads the answer as it asked for it; remove it)"),
        (step("{set_parameters: {'top p': 1}}"), "1:41: `top p` is not the name of a parameter (letters, digits and _ only, as temperature)"),
        (step("{set_parameters: {stop: [a]}}"), "1:47: `stop` must be a number, text, true or false, not a list"),
        (step("{rollback: {by: restor}}"), "1:39: unknown value for `by` (did you mean `restore`?)"),
        (step("{rollback: {by: reroute}}"), "1:23: `to` is missing (the upstream that serves the good version, as rollback: {by: reroute, to: stable})"),
        (step("{rollback: {by: webhook}}"), "1:23: `target` is missing (the alert target that is asked, as rollback: {by: webhook, target: deployer})"),
        (step("{rollback: {to: openai}}"), "1:39: `to` is for a rollback by reroute (set by: reroute, or remove it)"),
        (step("{run_webhook: {action: x}}"), "1:23: `target` is missing (as run_webhook: {target: deployer, action: restart_workers})"),
        (step("{contain: {now: true}}"), "1:34: unknown key `now`"),
        (format!("alerts: [{{name: s, kind: slack, url: 'https://h'}}]\n{}", step("{run_webhook: {target: s, action: x}}")), "2:46: only a webhook can be asked to do something (name an alert target of kind webhook)"),
        (step("{escalate: {levels: [{targets: []}]}}"), "1:44: `after` is missing (how long after the escalation began, as 15m)"),
        (step("{escalate: {levels: [{after: 15m}, {after: 10m}]}}"), "1:66: a level that is not later than the one before (write levels in the order of their time, each later than the one before)"),
        (step("{throttle: {}, on_failure: stop}"), "1:50: unknown value for `on_failure` (one of next, revert, escalate)"),
        (step("{throttle: {}, on_timeout: no}"), "1:50: unknown value for `on_timeout` (one of deny, approve, keep)"),
        (step("{throttle: {}, success: {improved_by: lots}}"), "1:61: `lots` is not a share (write a percentage as 30%, or a number from 0 to 1 as 0.3)"),
        (step("{throttle: {}, success: {improved_by: 130%}}"), "1:61: `improved_by` is out of range (from 1% to 100%)"),
        (step("{throttle: {}, verify_after: 0s}"), "1:52: `verify_after` is out of range (from 1s to 1d)"),
        (step("{throttle: {}, approval_timeout: 1s}"), "1:56: `approval_timeout` is out of range (from 10s to 7d)"),
        (step("{throttle: {}, lease: 8d}"), "1:45: `lease` is out of range (from 1s to 7d)"),
        (step("{throttle: {}, blast_radius: {max_agents: 0}}"), "1:65: `max_agents` is out of range (from 1 to 1000000)"),
        (step("{throttle: {}, blast_radius: {max_share: 0}}"), "1:64: `max_share` is out of range (from 1% to 100%)"),
        (step("{notify: {}, approval: required}"), "1:46: `approval` means nothing for a step that only tells people (remove it)"),
        (step("{escalate: {}, lease: 5m}"), "1:45: `lease` means nothing for a step that only tells people (remove it)"),
        (format!("alerts: [{{name: w, url: 'https://h'}}]\n{}", step("{run_webhook: {target: w, action: x}, on_failure: revert, approval: required}")), "2:73: `on_failure` means nothing for a call, which cannot be lifted or judged (remove it)"),
        // Incidents, automation.
        ("incidents: {flaps_after: 0}".into(), "1:26: `flaps_after` is out of range (from 1 to 1000)"),
        ("incidents: {good_version: {max_error_rate: 2}}".into(), "1:44: `max_error_rate` is out of range (from 0% to 100%)"),
        ("incidents: {maintenance: [{name: n, from: '22:00'}]}".into(), "1:27: `lasts` is missing (how long it lasts, as lasts: 4h)"),
        ("incidents: {maintenance: [{name: n, from: '24:00', lasts: 1h}]}".into(), "1:43: `24:00` is not a time of day (write hours and minutes in UTC, as \"22:00\")"),
        ("incidents: {maintenance: [{name: n, from: '22:00', lasts: 1h, days: [sunday]}]}".into(), "1:70: unknown value (one of mon, tue, wed, thu, fri, sat, sun)"),
        // Who may use the admin listener.
        ("admin: {tokens: [{token: t}]}".into(), "1:18: `name` is missing (who bears it: the record of what is done says it)"),
        ("admin: {tokens: [{name: a}]}".into(), "1:18: a token without its text (give one of token, token_file and token_sha256)"),
        ("admin: {tokens: [{name: a, token_sha256: abc}]}".into(), "1:42: `token_sha256` is not a SHA-256 digest (64 hexadecimal digits, as `printf %s TOKEN | sha256sum` gives)"),
        ("admin: {tokens: [{name: a, token: t, token_sha256: abc}]}".into(), "1:52: both a token and its digest are given (keep one of token, token_file and token_sha256)"),
        ("admin: {tokens: [{name: a, token: t}, {name: a, token: u}]}".into(), "1:46: two tokens named `a` (names are unique; rename one of them)"),
        ("admin: {token: t, tokens: [{name: a, token: t}]}".into(), "1:45: the same token is given twice (give each bearer a token of its own, so that the record tells them apart)"),
        ("admin: {tokens: [{name: a, token: t, role: admin}]}".into(), "1:44: unknown value for `role` (one of viewer, operator)"),
        ("external_url: fusebox.example".into(), "1:15: `external_url`: a URL needs http:// or https:// (write the URL by which people reach the admin listener, as https://fusebox.example)"),
        // Failover.
        (up("    failover: [b]\n"), "4:16: unknown upstream `b` (define it under `upstreams`)"),
        (up("    failover: [a]\n"), "4:16: an upstream cannot stand in for itself (name another upstream)"),
        (up("    failover: [b]\n  - {name: b, url: 'https://b', failover: [c]}\n  - {name: c, url: 'https://c', failover: [b]}\n"), "4:16: failover goes round in a circle: b → c → b (remove one of these links: a request must come to an end)\n5:44: failover goes round in a circle: b → c → b (remove one of these links: a request must come to an end)\n6:44: failover goes round in a circle: c → b → c (remove one of these links: a request must come to an end)"),
        (up("    families: [openai]\n    failover: [b]\n  - {name: b, url: 'https://b', families: [gemini]}\n"), "5:16: `b` serves no dialect that `a` serves (name an upstream of the same dialect; set `families` where it serves more than is told here)"),
        (up("    failover: [b, c]\n  - {name: b, url: 'https://b', failover: [d]}\n  - {name: c, url: 'https://c', failover: [e]}\n  - {name: d, url: 'https://d'}\n  - {name: e, url: 'https://e'}\n"), "4:19: failover would try 4 upstreams (`e` is one too many) (at most 3, those of the listed ones included)"),
        (up("    retry_on: [conect_error]\n"), "4:16: `conect_error` is not a failure (did you mean `connect_error`?)"),
        (up("    retry_on: [200]\n"), "4:16: `200` is not a failure (one of connect_error, first_byte_timeout, first_event_error, or a status from 400 to 599)"),
        (up("    breaker: {open_for: 0s}\n"), "4:25: `open_for` is out of range (from 1s to 1h)"),
        (up("    model_map: {a: 'b*'}\n"), "4:20: a model is called by one name, not by a pattern (write the name of a model)"),
        (up("    credentials: {header: x-key}\n"), "4:27: a header for a key that is not given (set api_key or api_key_file, or remove `header`)"),
        (up("    credentials: {api_key: k, header: 'x y'}\n"), "4:39: `x y` is not the name of a header (letters, digits and - only, as x-api-key)"),
        (up("    credentials: {api_key: k, header: Host}\n"), "4:39: `host` cannot hold a key (name the header that the API expects its key in, as x-api-key)"),
        ("retries: {budget_percent: 101}".into(), "1:27: `budget_percent` is out of range (from 0 to 100)"),
        ("streams: {max_cost_usd: 0}".into(), "1:25: `max_cost_usd` is out of range (from 0.000001 to 1000000)"),
    ];
    let mut wrong = Vec::new();
    for (text, want) in table {
        let got = match with(&text, &Overrides::default()) {
            Ok(_) => "no problem".to_owned(),
            Err(p) => {
                p.to_string();
                p.lines()
                    .iter()
                    .map(|l| {
                        l.strip_prefix("f.yaml:")
                            .filter(|r| !r.starts_with(' '))
                            .unwrap_or(l)
                            .to_owned()
                    })
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        if got != want {
            wrong.push(format!("--- {text}\nwant: {want}\n got: {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let problems = bad(
        "workrs: 2\ndrain_deadline: soon\nlimits:\n  max_agents: x\n  max_waiting: -1\nadmin: {listen: '0.0.0.0:1'}\n\
         agent_incident_rules:\n  - name: a\n    metric: [x]\n    threshold_upper: 1\n    action: nope\n  - name: b\n    metric: nope\n    acton: notify_only\n",
    );
    let places: Vec<&str> = problems.iter().map(|l| l.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "1:1", "2:17", "4:15", "5:16", "6:17", "9:13", "11:13", "13:13", "14:5"
        ],
        "{problems:#?}"
    );
}

#[test]
fn text_that_is_no_yaml_has_one_problem_with_its_place() {
    let problems = bad("limits:\n  max_agents: 1\n workers: 2\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("3:"), "{problems:?}");
    assert!(problems[0].contains("not YAML"), "{problems:?}");
}

#[test]
fn secrets_never_appear_in_problems() {
    for text in [
        "admin: {token: hunter2, open_metrics: 5}",
        "admin: {tokn: hunter2}",
        "admin:\n  token: [hunter2]\n",
        "admin:\n  token: hunter2\n  token: hunter2\n",
        "admin:\n  token: hunter2\n bad indent: [\n",
        "alerts: [{name: a, url: 'hunter2', knd: x}]",
        "alerts: [{name: a, url: 'https://u:hunter2@h/'}]",
        "alerts: [{name: a, url: 'https://h/hunter2', headers: {authorization: hunter2, 'x y': hunter2}, kind: slakc}]",
        "alerts: [{name: a, urll: 'https://h/hunter2'}]",
        "alerts: [{name: a, kind: pagerduty, routing_key: hunter2, knd: x}]",
        "alerts: [{name: a, kind: alertmanager, urls: ['hunter2', 'https://u:hunter2@h'], knd: x}]",
        "upstreams: [{name: a, url: 'https://me:hunter2@h'}]",
        "upstreams: [{name: a, url: 'https://h', proxy: 'me:hunter2@h:1/x'}]",
        "identity: {api_key_salt: hunter2}",
        "admin: {tokens: [{name: a, token: hunter2, rule: x}]}",
        "admin: {tokens: [{name: a, tokn: hunter2}]}",
        "admin: {tokens: hunter2}",
        "admin: {tokens: [{name: a, token: hunter2}, {token: hunter2}]}",
        "admin: {tokens: [{name: a, token: hunter2",
        "upstreams: [{name: a, url: 'https://h', credentials: {api_key: hunter2, header: 'x y'}}]",
        "upstreams: [{name: a, url: 'https://h', credentials: {api_ky: hunter2}}]",
        "upstreams: [{name: a, url: 'https://h', credentials: hunter2}]",
        "upstreams: [{name: a, url: 'https://h', credentials: {api_key: \"hunter2\\u0001\"}}]",
        "identity: {api_key_salt_file: hunter2, api_key_salt: hunter2-and-more-of-it}",
    ] {
        let problems = with(text, &Overrides::default()).expect_err(text);
        let told = format!("{problems}\n{}\n{problems:?}", problems.lines().join("\n"));
        let told = told.replace("api_key_salt_file: hunter2", "");
        assert!(!told.contains("hunter2"), "{text}\n{told}");
    }
    for text in [
        "agent_incident_rules: [{name: a, metric: '${HIDDEN}'}]",
        "log: {level: '${HIDDEN}'}",
        "drain_deadline: ${HIDDEN}",
        "log: {format: '${HIDDEN}'}",
    ] {
        let told = with(text, &Overrides::default()).expect_err(text).to_string();
        assert!(
            !told.contains("hidden-value") && told.contains("${HIDDEN}"),
            "{told}"
        );
    }
}
