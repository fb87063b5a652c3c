// The official Node clients, unmodified: openai, @anthropic-ai/sdk, and the AI SDK.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import Anthropic from "@anthropic-ai/sdk";
import { APICallError, embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

import {
  abortedWithinASecond,
  aborts,
  exhaust,
  headers,
  needsFusebox,
  observed,
  TEXT,
  THROTTLED,
  URL_,
} from "./shared.mjs";

const HI = [{ role: "user", content: "hi" }];
const PARAMETERS = { type: "object", properties: { city: { type: "string" } } };

const openai = (agent, more = {}, base = URL_) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: "sk-test", defaultHeaders: headers(agent), ...more });
const anthropic = (agent, more = {}, base = URL_) =>
  new Anthropic({ baseURL: base, apiKey: "sk-ant-test", defaultHeaders: headers(agent), ...more });
const vercel = (agent, base = URL_) =>
  createOpenAI({ baseURL: `${base}/v1`, apiKey: "sk-test", headers: headers(agent) });

test("openai: chat", async () => {
  const answer = await openai("js-openai").chat.completions.create({ model: "lab-large", messages: HI });
  assert.equal(answer.choices[0].message.content, TEXT);
  assert.equal(answer.usage.total_tokens, 18);
  const line = await observed("js-openai");
  if (line) assert.deepEqual([line.api, line.total_tokens], ["openai.chat", 18]);
});

test("openai: stream, with usage only for who asks", async () => {
  const plain = await openai("js-openai-stream").chat.completions.create({ model: "lab-large", messages: HI, stream: true });
  let text = "";
  for await (const chunk of plain) {
    assert.ok(!("usage" in chunk), "usage that nobody asked for is not shown");
    text += chunk.choices[0].delta.content ?? "";
  }
  assert.equal(text, TEXT);
  const line = await observed("js-openai-stream");
  if (line) assert.deepEqual([line.stream, line.total_tokens], [true, 18]);
  const asked = await openai("js-openai-usage").chat.completions.create({
    model: "lab-large",
    messages: HI,
    stream: true,
    stream_options: { include_usage: true },
  });
  let usage;
  for await (const chunk of asked) usage = chunk.usage ?? usage;
  assert.equal(usage.total_tokens, 18);
});

test("openai: tools", async () => {
  const tools = [{ type: "function", function: { name: "get_weather", parameters: PARAMETERS } }];
  const request = { model: "lab-large", messages: HI, tools };
  const answer = await openai("js-openai-tools").chat.completions.create(request);
  assert.equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather");
  const streamed = await openai("js-openai-stools").chat.completions.stream(request).finalChatCompletion();
  assert.deepEqual(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments), { city: "Zürich" });
  const line = await observed("js-openai-stools");
  if (line) assert.deepEqual(line.tool_calls, ["get_weather"]);
});

test("openai: responses", async () => {
  const answer = await openai("js-openai-resp").responses.create({ model: "lab-large", input: "hi" });
  assert.equal(answer.output_text, TEXT);
  const stream = await openai("js-openai-sresp").responses.create({ model: "lab-large", input: "hi", stream: true });
  let text = "";
  for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
  assert.equal(text, TEXT);
});

test("openai: embeddings", async () => {
  const answer = await openai("js-openai-embed").embeddings.create({ model: "lab-embed", input: ["a", "b"] });
  assert.deepEqual(answer.data.map((d) => d.embedding), [[0.25, -0.5, 1], [0.25, -0.5, 1]]);
});

test("openai: errors of the upstream", async () => {
  for (const [status, error] of [
    [400, OpenAI.BadRequestError],
    [401, OpenAI.AuthenticationError],
    [429, OpenAI.RateLimitError],
    [500, OpenAI.InternalServerError],
  ]) {
    const asked = openai("js-openai-error", { maxRetries: 0 }).chat.completions.create({ model: `error-${status}`, messages: HI });
    await assert.rejects(asked, (e) => e instanceof error && e.status === status && e.code === `mock_${status}`);
  }
});

test("openai: abort", async () => {
  const before = await aborts();
  const stream = await openai("js-openai-abort").chat.completions.create({ model: "slow", messages: HI, stream: true });
  let count = 0;
  for await (const _ of stream) if (++count === 5) break;
  await abortedWithinASecond(before, performance.now());
  const line = await observed("js-openai-abort");
  if (line) assert.equal(line.outcome, "client_abort");
});

test("openai: a throttle is a RateLimitError", needsFusebox, async () => {
  await exhaust("js-openai-throttle", "/v1/chat/completions", { model: "lab-large", messages: HI });
  const asked = openai("js-openai-throttle", { maxRetries: 0 }, THROTTLED).chat.completions.create({ model: "lab-large", messages: HI });
  await assert.rejects(asked, (e) => {
    assert.ok(e instanceof OpenAI.RateLimitError);
    assert.ok(e.code && e.type && e.requestID);
    const after = Number(e.headers.get("retry-after"));
    return after >= 1 && after <= 60;
  });
});

test("openai: backs off for as long as it is told", needsFusebox, async () => {
  const refusal = await exhaust("js-openai-backoff", "/v1/chat/completions", { model: "lab-large", messages: HI });
  const wait = Number(refusal.headers.get("retry-after-ms"));
  const begun = performance.now();
  const answer = await openai("js-openai-backoff", { maxRetries: 5 }, THROTTLED).chat.completions.create({ model: "lab-large", messages: HI });
  assert.equal(answer.choices[0].message.content, TEXT);
  assert.ok(performance.now() - begun > wait * 0.5);
});

test("anthropic: messages, stream, tools, count_tokens", async () => {
  const request = { model: "lab-sonnet", max_tokens: 50, messages: HI };
  const answer = await anthropic("js-anthropic").messages.create(request);
  assert.equal(answer.content[0].text, TEXT);
  const streamed = await anthropic("js-anthropic-stream").messages.stream(request).finalMessage();
  assert.equal(streamed.content[0].text, TEXT);
  assert.equal(streamed.usage.output_tokens, 7);
  const tools = [{ name: "get_weather", input_schema: PARAMETERS }];
  const called = await anthropic("js-anthropic-tools").messages.stream({ ...request, tools }).finalMessage();
  assert.deepEqual(called.content[0].input, { city: "Bern" });
  const counted = await anthropic("js-anthropic-count").messages.countTokens({ model: "lab-sonnet", messages: HI });
  assert.equal(counted.input_tokens, 11);
  const line = await observed("js-anthropic-stream");
  if (line) assert.deepEqual([line.api, line.input_total, line.output_total], ["anthropic.messages", 17, 7]);
});

test("anthropic: errors of the upstream", async () => {
  for (const [status, error] of [
    [400, Anthropic.BadRequestError],
    [429, Anthropic.RateLimitError],
    [500, Anthropic.InternalServerError],
  ]) {
    const asked = anthropic("js-anthropic-error", { maxRetries: 0 }).messages.create({ model: `error-${status}`, max_tokens: 5, messages: HI });
    await assert.rejects(asked, (e) => e instanceof error && e.status === status);
  }
});

test("anthropic: abort", async () => {
  const before = await aborts();
  const stream = anthropic("js-anthropic-abort").messages.stream({ model: "slow", max_tokens: 50, messages: HI });
  let count = 0;
  for await (const _ of stream) if (++count === 8) break;
  await abortedWithinASecond(before, performance.now());
});

test("anthropic: a throttle is a RateLimitError", needsFusebox, async () => {
  const request = { model: "lab-sonnet", max_tokens: 50, messages: HI };
  const refusal = await exhaust("js-anthropic-throttle", "/v1/messages", request);
  const asked = anthropic("js-anthropic-throttle", { maxRetries: 0 }, THROTTLED).messages.create(request);
  await assert.rejects(asked, (e) => e instanceof Anthropic.RateLimitError && e.error.error.type === "rate_limit_error");
  const wait = Number(refusal.headers.get("retry-after-ms"));
  const begun = performance.now();
  const answer = await anthropic("js-anthropic-throttle", { maxRetries: 5 }, THROTTLED).messages.create(request);
  assert.equal(answer.content[0].text, TEXT);
  assert.ok(performance.now() - begun > wait * 0.25);
});

test("ai: text, stream, tools, embeddings", async () => {
  for (const [agent, model] of [
    ["js-ai-resp", vercel("js-ai-resp").responses("lab-large")],
    ["js-ai-chat", vercel("js-ai-chat").chat("lab-large")],
  ]) {
    const answer = await generateText({ model, prompt: "hi" });
    assert.equal(answer.text, TEXT, agent);
    assert.equal(answer.usage.totalTokens, 18, agent);
    let text = "";
    const streamed = streamText({ model, prompt: "hi" });
    for await (const part of streamed.textStream) text += part;
    assert.equal(text, TEXT, agent);
    assert.equal((await streamed.usage).totalTokens, 18, agent);
    const tools = { get_weather: tool({ description: "weather", inputSchema: jsonSchema(PARAMETERS) }) };
    // An agent of its own, so that its observation is not taken for one of the calls before.
    const called = await generateText({ model, prompt: "hi", tools, headers: headers(`${agent}-tools`) });
    assert.equal(called.toolCalls[0].toolName, "get_weather", agent);
    const line = await observed(`${agent}-tools`);
    if (line) assert.deepEqual([line.tool_calls, line.total_tokens], [["get_weather"], 18], agent);
  }
  const { embeddings } = await embedMany({ model: vercel("js-ai-embed").embedding("lab-embed"), values: ["a", "b"] });
  assert.deepEqual(embeddings, [[0.25, -0.5, 1], [0.25, -0.5, 1]]);
});

test("ai: abort", async () => {
  const before = await aborts();
  const controller = new AbortController();
  const streamed = streamText({
    model: vercel("js-ai-abort").chat("slow"),
    prompt: "hi",
    abortSignal: controller.signal,
    onError: () => {},
  });
  let count = 0;
  try {
    for await (const _ of streamed.textStream) if (++count === 5) controller.abort();
  } catch (e) {
    assert.equal(e.name, "AbortError");
  }
  await abortedWithinASecond(before, performance.now());
});

test("ai: a throttle is a retryable 429", needsFusebox, async () => {
  await exhaust("js-ai-throttle", "/v1/chat/completions", { model: "lab-large", messages: HI });
  const model = vercel("js-ai-throttle", THROTTLED).chat("lab-large");
  const asked = generateText({ model, prompt: "hi", maxRetries: 0 });
  await assert.rejects(asked, (e) => APICallError.isInstance(e) && e.statusCode === 429 && e.isRetryable);
  const answer = await generateText({ model, prompt: "hi", maxRetries: 5 });
  assert.equal(answer.text, TEXT);
});
