"""The official OpenAI client, unmodified."""

import time

import openai
import pytest
from conftest import BATCHED, CONTAINING, CUTTING, TEXT, THROTTLED, URL, aborted_within_a_second, aborts, exhaust, headers, needs_fusebox, observed, stats

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]


def client(agent, base=URL, **more):
    return openai.OpenAI(base_url=f"{base}/v1", api_key="sk-test", default_headers=headers(agent), **more)


def test_chat():
    answer = client("py-openai-chat").chat.completions.create(model="lab-large", messages=HI)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage.total_tokens == 18
    if line := observed("py-openai-chat"):
        assert (line["api"], line["model_requested"], line["total_tokens"]) == ("openai.chat", "lab-large", 18)
        assert line["output_chars"] == len(TEXT)


def test_stream_without_asking_for_usage():
    chunks = list(client("py-openai-stream").chat.completions.create(model="lab-large", messages=HI, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == TEXT
    assert all(c.usage is None for c in chunks)
    assert not any("usage" in c.model_fields_set for c in chunks), "usage that nobody asked for is not shown"
    if line := observed("py-openai-stream"):
        assert (line["stream"], line["total_tokens"], line["usage_source"]) == (True, 18, "reported")


def test_stream_with_usage():
    stream = client("py-openai-usage").chat.completions.create(
        model="lab-large", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 18


def test_tools():
    answer = client("py-openai-tools").chat.completions.create(model="lab-large", messages=HI, tools=TOOLS)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Z\\u00fcrich"}')
    if line := observed("py-openai-tools"):
        assert (line["tool_calls"], line["finish_reason"]) == (["get_weather"], "tool_calls")


def test_streamed_tools():
    with client("py-openai-stools").chat.completions.stream(model="lab-large", messages=HI, tools=TOOLS) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_responses():
    answer = client("py-openai-resp").responses.create(model="lab-large", input="hi")
    assert answer.output_text == TEXT
    with client("py-openai-sresp").responses.stream(model="lab-large", input="hi") as stream:
        assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == TEXT
        assert stream.get_final_response().usage.total_tokens == 18
    if line := observed("py-openai-sresp"):
        assert (line["api"], line["total_tokens"]) == ("openai.responses", 18)


def test_embeddings():
    answer = client("py-openai-embed").embeddings.create(model="lab-embed", input=["a", "b"])
    assert [d.embedding for d in answer.data] == [[0.25, -0.5, 1.0]] * 2
    if line := observed("py-openai-embed"):
        assert (line["api"], line["input_total"]) == ("openai.embeddings", 3)


@needs_fusebox
@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}])
def test_a_batch_in_parts_looks_like_one(more):
    inputs = [str(n) for n in range(40)]
    asking = client("py-openai-batch", BATCHED).embeddings.with_raw_response
    deadline = time.monotonic() + 20
    while (raw := asking.create(model="lab-embed", input=inputs, **more)).headers.get("x-fusebox-action") != "reduce_batch":
        assert time.monotonic() < deadline, "its batches are never sent in parts"
        time.sleep(0.05)
    answer = raw.parse()
    assert [(d.index, d.embedding) for d in answer.data] == [(n, [float(n), -0.5, 1.0]) for n in range(40)]
    assert (answer.object, answer.model) == ("list", "lab-embed")
    # Three tokens for each of at least two parts.
    assert answer.usage.total_tokens >= 6 and answer.usage.total_tokens % 3 == 0


def test_models():
    assert [m.id for m in client("py-openai-models").models.list()] == ["lab-large"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_errors_of_the_upstream(status, error):
    with pytest.raises(error) as caught:
        client("py-openai-error", max_retries=0).chat.completions.create(model=f"error-{status}", messages=HI)
    assert (caught.value.status_code, caught.value.code) == (status, f"mock_{status}")


def test_abort():
    before = aborts()
    stream = client("py-openai-abort").chat.completions.create(model="slow", messages=HI, stream=True)
    for _, _ in zip(range(5), stream):
        pass
    stream.close()
    aborted_within_a_second(before, time.monotonic())
    if line := observed("py-openai-abort"):
        assert line["outcome"] == "client_abort"


@needs_fusebox
def test_throttle_is_a_rate_limit_error():
    agent = "py-openai-throttle"
    exhaust(agent, "/v1/chat/completions", {"model": "lab-large", "messages": HI})
    with pytest.raises(openai.RateLimitError) as caught:
        client(agent, THROTTLED, max_retries=0).chat.completions.create(model="lab-large", messages=HI)
    error = caught.value
    assert error.status_code == 429
    assert error.code and error.type and "incident" in error.message
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert error.request_id


@needs_fusebox
def test_it_backs_off_for_as_long_as_it_is_told():
    agent = "py-openai-backoff"
    wait = float(exhaust(agent, "/v1/chat/completions", {"model": "lab-large", "messages": HI}).headers["retry-after-ms"]) / 1000
    begun = time.monotonic()
    answer = client(agent, THROTTLED, max_retries=5).chat.completions.create(model="lab-large", messages=HI)
    took = time.monotonic() - begun
    assert answer.choices[0].message.content == TEXT
    assert took > wait * 0.5, f"came back after {took:.2f} s, told to wait {wait:.2f} s"


@needs_fusebox
def test_a_stream_that_is_cut_ends_for_its_length():
    stream = client("py-openai-cut", CUTTING).chat.completions.create(
        model="slow-large", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    *pieces, finish, usage = list(stream)
    assert finish.choices[0].finish_reason == "length"
    assert "".join(c.choices[0].delta.content or "" for c in pieces).startswith("tick tick")
    assert (usage.choices, 20 < usage.usage.completion_tokens < 100) == ([], True)


@needs_fusebox
def test_the_helpers_see_that_it_was_cut():
    with pytest.raises(openai.LengthFinishReasonError):
        with client("py-openai-cut4", CUTTING).chat.completions.stream(model="slow-large", messages=HI) as stream:
            stream.get_final_completion()


@needs_fusebox
def test_a_stream_that_is_cut_shows_no_usage_unasked():
    stream = client("py-openai-cut2", CUTTING).chat.completions.create(model="slow-large", messages=HI, stream=True)
    chunks = list(stream)
    assert [c.choices[0].finish_reason for c in chunks][-1] == "length"
    assert not any("usage" in c.model_fields_set for c in chunks)


@needs_fusebox
def test_a_response_that_is_cut_is_incomplete():
    events = list(client("py-openai-cut3", CUTTING).responses.create(model="slow-large", input="hi", stream=True))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text.startswith("tick tick")
    numbers = [e.sequence_number for e in events if e.sequence_number is not None]
    assert numbers == sorted(set(numbers))


@needs_fusebox
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_contained_stream_raises_and_nothing_is_retried(api):
    agent = f"py-openai-contained-{api}"
    calls = client(agent, CONTAINING)
    if api == "chat":
        stream = calls.chat.completions.create(model="slow-large", messages=HI, stream=True)
    else:
        stream = calls.responses.create(model="slow-large", input="hi", stream=True)
    pieces = iter(stream)
    next(pieces)
    calls.chat.completions.create(model="lab-large", messages=HI)
    with pytest.raises(openai.APIError, match="incident"):
        for _ in pieces:
            pass
    before = len(stats()["seen"])
    with pytest.raises(openai.PermissionDeniedError) as caught:
        calls.chat.completions.create(model="lab-large", messages=HI)
    assert (caught.value.status_code, caught.value.code) == (403, "fusebox_contained")
    assert len(stats()["seen"]) == before, "nothing of it is sent"
