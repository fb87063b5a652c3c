#!/usr/bin/env python3
"""Alerts of the running program, as real receivers see them: Alertmanager of Debian, the official verifiers of Standard
Webhooks in Python and Node, and a receiver in trouble.

    tests/alerts/run.py [--binary target/debug/fusebox]

What is needed is installed below `target/`, never into the source tree; Alertmanager comes from the system. The last
line is `clients: N passed, M failed`.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VENV = ROOT / "target" / "test-alerts-venv"
NODE = ROOT / "target" / "test-alerts-node"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

sys.path.insert(0, str(HERE.parent / "clients"))
import mock_upstream  # noqa: E402
import run as clients  # noqa: E402

#: One rule that opens an incident on an agent's first tokens, and closes it soon after its last.
RULES = """
agent_incident_rules:
  - name: any_token
    metric: tokens_per_execution
    baseline: 1
    threshold_upper: 2
    window: 2s
    cooldown: 1s
    action: tell
actions:
  tell:
    steps:
      - notify
"""


class Receiver:
    """Keeps what it is sent, and answers as its script says, then with 200."""

    def __init__(self, script=(), port=0):
        self.got = []
        self.script = list(script)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                """Says nothing."""

            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                receiver.got.append({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body, "at": time.monotonic()})
                status, headers = receiver.script.pop(0) if receiver.script else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def do_GET(self):  # noqa: N802
                receiver.got.append({"path": self.path, "headers": {}, "body": "", "at": time.monotonic()})
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self):
        return [json.loads(g["body"]) for g in self.got]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, probe, patience=40):
    """Polls until the probe gives something."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {patience} s: {what}")


def call(fusebox, agent):
    """One exchange of an agent."""
    body = json.dumps({"model": "lab-large", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(f"{fusebox.url}/v1/chat/completions", body, {"content-type": "application/json", "x-agent-id": agent})
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read() or b"null")
    except (OSError, urllib.error.URLError):
        return None


class Alertmanager:
    """A real one, on a port that was free."""

    def __init__(self, directory, port, receiver):
        config = directory / "alertmanager.yml"
        config.write_text(
            "route:\n  receiver: back\n  group_by: [incident]\n  group_wait: 0s\n  group_interval: 1s\n"
            f"receivers:\n  - name: back\n    webhook_configs:\n      - url: {receiver.url}/back\n        send_resolved: true\n"
        )
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(directory / f"alertmanager-{port}.log", "w+")
        self.process = subprocess.Popen(
            ["prometheus-alertmanager", f"--config.file={config}", f"--storage.path={directory}/data-{port}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="],
            stdout=self.log, stderr=self.log,
        )

    def alerts(self):
        return get(f"{self.url}/api/v2/alerts") or []

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def install():
    """The official verifiers."""
    wanted = (HERE / "requirements.txt").read_text()
    mark = VENV / "installed.txt"
    if not mark.exists() or mark.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", HERE / "requirements.txt"], check=True)
        mark.write_text(wanted)
    if clients.node_is_new_enough():
        NODE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", "verify.mjs"):
            shutil.copy(HERE / "node" / name, NODE / name)
        if not (NODE / "node_modules" / "standardwebhooks").exists():
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=NODE, check=True)


VERIFY = """
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
for line in sys.stdin:
    sent = json.loads(line)
    hook = Webhook(sent["secret"])
    hook.verify(sent["body"], sent["headers"])
    try:
        hook.verify(sent["body"] + " ", sent["headers"])
    except WebhookVerificationError:
        continue
    sys.exit("a changed body was taken")
print("verified")
"""


def verify(got):
    """Every request must bear a signature that the official packages take."""
    lines = "".join(json.dumps({"secret": SECRET, "headers": g["headers"], "body": g["body"]}) + "\n" for g in got)
    subprocess.run([VENV / "bin" / "python", "-c", VERIFY], input=lines, text=True, check=True, capture_output=True)
    if not clients.node_is_new_enough():
        print("SKIPPED: the Node verifier needs Node 20 or later")
        return
    done = subprocess.run(["node", "verify.mjs"], cwd=NODE, input=lines, text=True, check=True, capture_output=True)
    assert f"verified {len(got)}" in done.stdout, done.stdout


def ids(receiver):
    return [g["headers"]["webhook-id"] for g in receiver.got]


def real_alertmanager(world):
    """Firing in Alertmanager and in what it passes on, then resolved in both; the second member was away for 10 s."""
    if not shutil.which("prometheus-alertmanager"):
        print("SKIPPED: prometheus-alertmanager is not installed")
        return
    back, late = Receiver(), Receiver()
    first_port, late_port = free_port(), free_port()
    first = Alertmanager(world.directory, first_port, back)
    started = [first]
    try:
        until("Alertmanager is ready", lambda: get(f"{first.url}/api/v2/status"))
        fusebox = world.start(
            f"alerts:\n  - name: am\n    kind: alertmanager\n    urls: ['{first.url}', 'http://127.0.0.1:{late_port}']\n    resend_every: 1s\n    labels: {{team: sre}}\n"
        )
        call(fusebox, "loud")
        alert = until("the alert fires", first.alerts)[0]
        assert alert["labels"]["alertname"] == "any_token" and alert["labels"]["team"] == "sre", alert
        incident = alert["labels"]["incident"]
        # Reminders prolong it and change nothing of what it is.
        end = alert["endsAt"]

        def prolonged():
            call(fusebox, "loud")
            now = first.alerts()
            assert len(now) == 1 and now[0]["fingerprint"] == alert["fingerprint"], now
            return now[0]["endsAt"] > end

        until("the alert is prolonged", prolonged)
        away = time.monotonic()
        while time.monotonic() - away < 10:
            call(fusebox, "loud")
            time.sleep(0.5)
        second = Alertmanager(world.directory, late_port, late)
        started.append(second)

        def caught_up():
            call(fusebox, "loud")
            return second.alerts()

        assert until("the member that was away is told", caught_up)[0]["labels"]["incident"] == incident
        for name, member in (("first", back), ("second", late)):
            until(f"the {name} member says firing", lambda m=member: any(b["status"] == "firing" for b in m.bodies()))
        for name, member in (("first", back), ("second", late)):
            until(f"the {name} member says resolved", lambda m=member: any(b["status"] == "resolved" for b in m.bodies()))
        until("nothing is left", lambda: not first.alerts() and not second.alerts())
        # The end is repeated, for members that are away; people hear of it once.
        time.sleep(4)
        for member in (back, late):
            said = [b["status"] for b in member.bodies()]
            assert said.count("resolved") == 1 and said[-1] == "resolved", said
        for one in (first, second):
            one.log.flush()
            one.log.seek(0)
            refused = [line for line in one.log if "err=" in line and "api" in line]
            assert not refused, refused
    finally:
        for one in started:
            one.stop()


def signatures(world):
    """Both official verifiers take what fusebox signs, in every format."""
    receivers = {form: Receiver() for form in ("standard", "cloudevents", "alertmanager")}
    alerts = "".join(f"  - name: {form}\n    url: {r.url}/{form}\n    secret: {SECRET}\n    format: {form}\n" for form, r in receivers.items())
    fusebox = world.start(f"alerts:\n{alerts}")
    call(fusebox, "loud")
    for form, receiver in receivers.items():
        until(f"{form} hears of the end", lambda r=receiver: len(r.got) >= 2)
        verify(receiver.got)
    standard, event, group = (r.bodies() for r in receivers.values())
    assert [b["type"] for b in (standard[0], standard[-1])] == ["incident.opened", "incident.resolved"], standard
    assert event[0]["specversion"] == "1.0" and event[0]["type"] == "dev.fusebox.incident.opened", event[0]
    assert receivers["cloudevents"].got[0]["headers"]["content-type"].startswith("application/cloudevents+json")
    assert (group[0]["status"], group[-1]["status"]) == ("firing", "resolved"), group


def receiver_in_trouble(world):
    """500, 429 with Retry-After, then taken; a redirect is refused and its goal never sees a thing."""
    canary = Receiver()
    trouble = Receiver([(500, {}), (429, {"retry-after": "3"}), (200, {})])
    moved = Receiver([(302, {"location": f"{canary.url}/x"}), (307, {"location": f"{canary.url}/y"})])
    fusebox = world.start(
        f"alerts:\n  - name: trouble\n    url: {trouble.url}/hook\n    secret: {SECRET}\n  - name: moved\n    url: {moved.url}/hook\n"
    )
    call(fusebox, "loud")
    until("the third attempt comes", lambda: len(trouble.got) >= 3)
    first = ids(trouble)[:3]
    assert len(set(first)) == 1, first
    waited = trouble.got[2]["at"] - trouble.got[1]["at"]
    assert waited >= 2.9, f"only {waited} s after a retry-after of 3"
    verify(trouble.got[:3])
    until("the end is told to both", lambda: len(moved.got) >= 2 and len(trouble.got) >= 4)
    assert len(set(ids(moved))) == len(moved.got), "what was refused was tried again"
    assert not canary.got, canary.got


def receiver_down(world):
    """Nobody listens for 10 s; then everything comes, in order."""
    port = free_port()
    fusebox = world.start(f"alerts:\n  - name: down\n    url: http://127.0.0.1:{port}/hook\n")
    call(fusebox, "loud")
    time.sleep(10)
    receiver = Receiver(port=port)
    until("both notices come", lambda: len(receiver.got) >= 2)
    assert [b["type"] for b in receiver.bodies()][:2] == ["incident.opened", "incident.resolved"], receiver.bodies()


def trial(world):
    """`fusebox notify test` says what came of it, and leaves nothing open."""
    good, bad = Receiver(), Receiver([(404, {})])
    config = world.directory / "trial.yaml"
    config.write_text(
        f"alerts:\n  - {{name: good, url: '{good.url}/x', secret: {SECRET}}}\n  - {{name: bad, kind: slack, url: '{bad.url}/hidden'}}\n"
        f"  - {{name: pager, kind: pagerduty, url: '{good.url}/pd', routing_key: R0}}\n"
    )

    def run(*names):
        return subprocess.run([world.binary, "notify", "test", *names, "--config", config], capture_output=True, text=True)

    done = run("good")
    assert done.returncode == 0 and "good (webhook): delivered" in done.stderr, done
    verify(good.got)
    assert good.bodies()[0]["type"] == "notice.test"
    done = run("bad")
    assert done.returncode == 1 and "answered 404" in done.stderr and "hidden" not in done.stderr, done
    assert run("nobody").returncode == 2
    done = run("pager")
    assert done.returncode == 0, done
    assert [b["event_action"] for b in good.bodies()[-2:]] == ["trigger", "resolve"]


class World:
    """What a test needs."""

    def __init__(self, binary, mock, directory):
        self.binary, self.mock, self.directory = binary, mock, directory
        self.started = []

    def start(self, alerts):
        fusebox = clients.Fusebox(self.binary, self.mock, self.directory, f"f{len(list(self.directory.iterdir()))}", RULES + alerts)
        self.started.append(fusebox)
        return fusebox


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "fusebox", type=Path)
    arguments = parser.parse_args()
    install()
    mock = mock_upstream.start()
    good = bad = 0
    for test in (trial, signatures, receiver_in_trouble, receiver_down, real_alertmanager):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            world = World(arguments.binary, mock, Path(directory))
            try:
                test(world)
                said = "passed"
                good += 1
            except (AssertionError, OSError, subprocess.SubprocessError, KeyError, IndexError) as e:
                said = f"FAILED: {e}\n{getattr(e, 'stderr', '') or ''}" + "".join("".join(f.log[-15:]) for f in world.started)
                bad += 1
            finally:
                for fusebox in world.started:
                    bad += not fusebox.stop()
        print(f"  {test.__name__}: {said} in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"clients: {good} passed, {bad} failed")
    return 1 if bad or not good else 0


if __name__ == "__main__":
    sys.exit(main())
