// Where everything is, from the driver; and what all suites share.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

export const { MOCK_URL: MOCK, FUSEBOX_URL: URL_, FUSEBOX_THROTTLED_URL: THROTTLED = "", FUSEBOX_OBSERVATIONS = "" } =
  process.env;
export const TEXT = "Hello, wörld \u{1f600}!";
export const needsFusebox = { skip: THROTTLED ? false : "the clients talk to the mock itself" };
export const headers = (agent) => ({ "x-agent-id": agent, "x-execution-id": agent });

export async function aborts() {
  return (await (await fetch(`${MOCK}/_mock/stats`)).json()).aborts.length;
}

/** The upstream noticed within a second that its client had left. */
export async function abortedWithinASecond(before, leftAt) {
  while (performance.now() - leftAt < 5000) {
    if ((await aborts()) > before) {
      const took = performance.now() - leftAt;
      assert.ok(took < 1000, `the upstream noticed after ${took} ms`);
      return;
    }
    await sleep(20);
  }
  assert.fail("the upstream never noticed that its client left");
}

/** The last observation of an agent, once it is there; null when the clients talk to the mock itself. */
export async function observed(agent) {
  if (!FUSEBOX_OBSERVATIONS) return null;
  for (const until = performance.now() + 5000; performance.now() < until; await sleep(20)) {
    const lines = readFileSync(FUSEBOX_OBSERVATIONS, "utf8").split("\n").slice(0, -1);
    const found = lines.map((line) => JSON.parse(line)).filter((line) => line.agent === agent);
    if (found.length) return found.at(-1);
  }
  assert.fail(`no observation of ${agent}`);
}

/** Uses up what the throttled fusebox lets an agent do; gives the refusal. */
export async function exhaust(agent, path, body) {
  for (const until = performance.now() + 30_000; performance.now() < until; ) {
    const answer = await fetch(THROTTLED + path, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers(agent) },
      body: JSON.stringify(body),
    });
    await answer.text();
    if (answer.status === 429) return answer;
    assert.equal(answer.status, 200);
  }
  assert.fail(`${agent} is never throttled`);
}
