"""Where everything is, from the driver; and what all suites share."""

import json
import os
import time
import urllib.error
import urllib.request

import pytest

MOCK = os.environ["MOCK_URL"]
URL = os.environ["FUSEBOX_URL"]
#: A fusebox that throttles an agent after its first exchange; empty when the clients talk to the mock itself.
THROTTLED = os.environ.get("FUSEBOX_THROTTLED_URL", "")
BATCHED = os.environ.get("FUSEBOX_BATCHED_URL", "")
#: One that contains an agent after its first whole answer, and one that ends streams of more than 20 tokens.
CONTAINING = os.environ.get("FUSEBOX_CONTAINING_URL", "")
CUTTING = os.environ.get("FUSEBOX_CUTTING_URL", "")
OBSERVATIONS = os.environ.get("FUSEBOX_OBSERVATIONS", "")

TEXT = "Hello, wörld \U0001f600!"

needs_fusebox = pytest.mark.skipif(not THROTTLED, reason="the clients talk to the mock itself")


def stats():
    """What the mock saw."""
    with urllib.request.urlopen(f"{MOCK}/_mock/stats", timeout=5) as answer:
        return json.load(answer)


def aborts():
    """How many streams were left by their client."""
    return len(stats()["aborts"])


def aborted_within_a_second(before, left_at):
    """The upstream noticed within a second that its client had left."""
    while time.monotonic() - left_at < 5:
        if aborts() > before:
            took = time.monotonic() - left_at
            assert took < 1.0, f"the upstream noticed after {took:.2f} s"
            return
        time.sleep(0.02)
    raise AssertionError("the upstream never noticed that its client left")


def observed(agent):
    """The last observation of an agent, once it is there; None when the clients talk to the mock itself."""
    if not OBSERVATIONS:
        return None
    until = time.monotonic() + 5
    while time.monotonic() < until:
        with open(OBSERVATIONS, encoding="utf-8") as lines:
            found = [line for line in map(json.loads, (l for l in lines if l.endswith("\n"))) if line["agent"] == agent]
        if found:
            return found[-1]
        time.sleep(0.02)
    raise AssertionError(f"no observation of {agent}")


def exhaust(agent, path, body):
    """Uses up what the throttled fusebox lets an agent do; gives the refusal."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        request = urllib.request.Request(
            f"{THROTTLED}{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "x-agent-id": agent, "x-execution-id": agent},
        )
        try:
            urllib.request.urlopen(request, timeout=10).read()
        except urllib.error.HTTPError as refusal:
            assert refusal.code == 429, refusal.read()
            return refusal
    raise AssertionError(f"{agent} is never throttled")


def headers(agent):
    """Headers that say who calls."""
    return {"x-agent-id": agent, "x-execution-id": agent}
