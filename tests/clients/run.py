#!/usr/bin/env python3
"""Runs the official clients against the running program: starts a mock upstream and fusebox, then both suites.

    tests/clients/run.py [--binary target/debug/fusebox] [--direct] [python] [node]

What the suites need is installed below `target/`, never into the source tree. `--direct` lets the clients talk to the
mock itself, which proves the mock. The last line is `clients: N passed, M failed`.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VENV = ROOT / "target" / "test-venv"
NODE = ROOT / "target" / "test-node"

sys.path.insert(0, str(HERE))
import mock_upstream  # noqa: E402

#: One rule that opens an incident on an agent's first tokens, and holds it to a call every two seconds.
THROTTLE = """
limits: {max_admission_wait: 10ms}
agent_incident_rules:
  - name: throttle_at_once
    metric: tokens_per_execution
    baseline: 1
    threshold_upper: 2
    window: 5m
    action: slow_down
actions:
  slow_down:
    steps:
      - throttle: {requests_per_minute: 30}
        lease: 10m
"""

#: One rule that opens an incident on an agent's first tokens, and has its batches sent in parts.
BATCHED = """
agent_incident_rules:
  - name: batches_in_parts
    metric: tokens_per_execution
    baseline: 1
    threshold_upper: 2
    window: 5m
    action: smaller_batches
actions:
  smaller_batches:
    steps:
      - reduce_batch
"""

#: One rule that stops an agent for good, on its first tokens.
CONTAIN = """
agent_incident_rules:
  - name: stop_at_once
    metric: tokens_per_execution
    baseline: 1
    threshold_upper: 2
    window: 5m
    action: stop
actions:
  stop:
    steps:
      - contain: {}
        approval: automatic
        lease: 10m
"""

#: No stream may be longer than this.
CUT = """
agent_incident_rules: []
streams: {max_output_tokens: 20}
"""


class Fusebox:
    """The running program."""

    def __init__(self, binary, mock, directory, name, more):
        self.observations = directory / f"{name}.jsonl"
        config = directory / f"{name}.yaml"
        config.write_text(
            "listeners:\n  - listen: 127.0.0.1:0\nadmin:\n  listen: 127.0.0.1:0\n"
            f"observations:\n  file: {self.observations}\nupstreams:\n  - name: mock\n    url: {mock}\n{more}"
        )
        self.process = subprocess.Popen([binary, "run", "--config", config], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.log = []
        self.ready = threading.Event()
        self.url = None
        threading.Thread(target=self.read, daemon=True).start()
        if not self.ready.wait(20) or not self.url:
            self.process.kill()
            sys.exit("fusebox does not become ready:\n" + "".join(self.log[-30:]))

    def read(self):
        """Keeps the log, and finds the line that says `ready`."""
        for line in self.process.stderr:
            self.log.append(line)
            if '"ready"' in line:
                said = json.loads(line)
                said = said.get("fields", said)
                self.url = "http://" + said["listeners"].split(",")[0]
                self.ready.set()
        self.ready.set()

    def stop(self):
        """Ends it as an operator would; it must end well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "nothing within 20 s"
        if code != 0:
            print(f"fusebox ended with {code}:\n" + "".join(self.log[-30:]))
        return code == 0


def install_python():
    """The pinned Python clients in a virtual environment."""
    wanted = (HERE / "python" / "requirements.txt").read_text()
    mark = VENV / "installed.txt"
    if not mark.exists() or mark.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", HERE / "python" / "requirements.txt"], check=True)
        mark.write_text(wanted)


def install_node():
    """The pinned Node clients, and the suite beside them, where it finds them."""
    NODE.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "node" / "package-lock.json").read_text()
    mark = NODE / "installed.txt"
    for name in ("package.json", "package-lock.json", "shared.mjs", "clients.test.mjs"):
        shutil.copy(HERE / "node" / name, NODE / name)
    if not mark.exists() or mark.read_text() != wanted:
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=NODE, check=True)
        mark.write_text(wanted)


def node_is_new_enough():
    """Whether there is Node 20 or later."""
    try:
        version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return int(version.strip().lstrip("v").split(".")[0]) >= 20


def suite(command, directory, env, passed, failed):
    """Runs one suite, shows what it says, and counts."""
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    good = sum(map(int, re.findall(passed, said)))
    bad = sum(map(int, re.findall(failed, said)))
    if done.returncode != 0 and bad == 0:
        bad = 1
    if bad:
        print(said)
    return good, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "fusebox", type=Path)
    parser.add_argument("--direct", action="store_true", help="without fusebox in between")
    parser.add_argument("suites", nargs="*", choices=["python", "node", []], default=[])
    arguments = parser.parse_args()
    suites = arguments.suites or ["python", "node"]

    mock = mock_upstream.start()
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith(("FUSEBOX", "OPENAI", "ANTHROPIC", "GOOGLE", "GEMINI", "LANGCHAIN", "LANGSMITH"))}
    env |= {"MOCK_URL": mock, "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    good = bad = 0
    with tempfile.TemporaryDirectory() as directory:
        started = []
        if arguments.direct:
            env["FUSEBOX_URL"] = mock
        else:
            plain = Fusebox(arguments.binary, mock, Path(directory), "plain", "agent_incident_rules: []\n")
            throttled = Fusebox(arguments.binary, mock, Path(directory), "throttled", THROTTLE)
            batched = Fusebox(arguments.binary, mock, Path(directory), "batched", BATCHED)
            containing = Fusebox(arguments.binary, mock, Path(directory), "containing", CONTAIN)
            cutting = Fusebox(arguments.binary, mock, Path(directory), "cutting", CUT)
            started = [plain, throttled, batched, containing, cutting]
            env |= {"FUSEBOX_CONTAINING_URL": containing.url, "FUSEBOX_CUTTING_URL": cutting.url, "FUSEBOX_BATCHED_URL": batched.url}
            env |= {"FUSEBOX_URL": plain.url, "FUSEBOX_THROTTLED_URL": throttled.url, "FUSEBOX_OBSERVATIONS": str(plain.observations)}
        try:
            for name in suites:
                begun = time.monotonic()
                if name == "python":
                    install_python()
                    command = [VENV / "bin" / "python", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
                    counts = suite(command, HERE / "python", env, r"(\d+) passed", r"(\d+) (?:failed|error)")
                elif not node_is_new_enough():
                    print("SKIPPED: the Node clients need Node 20 or later")
                    continue
                else:
                    install_node()
                    command = ["node", "--test", "--test-reporter=tap", "clients.test.mjs"]
                    counts = suite(command, NODE, env, r"(?m)^# pass (\d+)", r"(?m)^# (?:fail|cancelled) (\d+)")
                print(f"  {name}: {counts[0]} passed, {counts[1]} failed in {time.monotonic() - begun:.0f} s", flush=True)
                good, bad = good + counts[0], bad + counts[1]
        finally:
            for fusebox in started:
                bad += not fusebox.stop()
    print(f"clients: {good} passed, {bad} failed")
    return 1 if bad or not good else 0


if __name__ == "__main__":
    sys.exit(main())
