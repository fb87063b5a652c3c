"""The official Anthropic client, unmodified."""

import time

import anthropic
import pytest
from conftest import CONTAINING, CUTTING, TEXT, THROTTLED, URL, aborted_within_a_second, aborts, exhaust, headers, needs_fusebox, observed

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


def client(agent, base=URL, **more):
    return anthropic.Anthropic(base_url=base, api_key="sk-ant-test", default_headers=headers(agent), **more)


def ask(agent, base=URL, model="lab-sonnet", retries=0, **more):
    return client(agent, base, max_retries=retries).messages.create(model=model, max_tokens=50, messages=HI, **more)


def test_messages():
    answer = ask("py-anthropic")
    assert answer.content[0].text == TEXT
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (11, 4)
    if line := observed("py-anthropic"):
        assert (line["api"], line["input_tokens"], line["input_total"]) == ("anthropic.messages", 11, 17)


def test_stream():
    with client("py-anthropic-stream").messages.stream(model="lab-sonnet", max_tokens=50, messages=HI) as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_message().usage.output_tokens == 7
    if line := observed("py-anthropic-stream"):
        assert (line["stream"], line["output_tokens"], line["finish_reason"]) == (True, 7, "end_turn")


def test_tools():
    assert ask("py-anthropic-tools", tools=TOOLS).content[0].input == {"city": "Bern"}
    with client("py-anthropic-stools").messages.stream(model="lab-sonnet", max_tokens=50, messages=HI, tools=TOOLS) as stream:
        assert stream.get_final_message().content[0].input == {"city": "Bern"}
    if line := observed("py-anthropic-stools"):
        assert line["tool_calls"] == ["get_weather"]


def test_count_tokens():
    answer = client("py-anthropic-count").messages.count_tokens(model="lab-sonnet", messages=HI)
    assert answer.input_tokens == 11
    if line := observed("py-anthropic-count"):
        assert line["api"] == "anthropic.count_tokens"


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, anthropic.BadRequestError), (401, anthropic.AuthenticationError), (429, anthropic.RateLimitError), (500, anthropic.InternalServerError)],
)
def test_errors_of_the_upstream(status, error):
    with pytest.raises(error) as caught:
        ask("py-anthropic-error", model=f"error-{status}")
    assert caught.value.status_code == status


def test_abort():
    before = aborts()
    with client("py-anthropic-abort").messages.stream(model="slow", max_tokens=50, messages=HI) as stream:
        for _, _ in zip(range(5), stream.text_stream):
            pass
        stream.close()
        left = time.monotonic()
    aborted_within_a_second(before, left)
    if line := observed("py-anthropic-abort"):
        assert line["outcome"] == "client_abort"


@needs_fusebox
def test_throttle_is_a_rate_limit_error():
    agent = "py-anthropic-throttle"
    exhaust(agent, "/v1/messages", {"model": "lab-sonnet", "max_tokens": 50, "messages": HI})
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(agent, THROTTLED)
    body = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.request_id


@needs_fusebox
def test_it_backs_off_for_as_long_as_it_is_told():
    agent = "py-anthropic-backoff"
    refusal = exhaust(agent, "/v1/messages", {"model": "lab-sonnet", "max_tokens": 50, "messages": HI})
    wait = float(refusal.headers["retry-after-ms"]) / 1000
    begun = time.monotonic()
    assert ask(agent, THROTTLED, retries=5).content[0].text == TEXT
    assert time.monotonic() - begun > wait * 0.5


@needs_fusebox
def test_a_stream_that_is_cut_ends_for_its_length():
    with client("py-anthropic-cut", CUTTING).messages.stream(model="slow-sonnet", max_tokens=5000, messages=HI) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].text.startswith("tick tick")
    assert 20 < answer.usage.output_tokens < 100


@needs_fusebox
def test_a_contained_stream_raises_and_nothing_is_retried():
    agent = "py-anthropic-contained"
    with client(agent, CONTAINING).messages.stream(model="slow-sonnet", max_tokens=5000, messages=HI) as stream:
        pieces = iter(stream.text_stream)
        next(pieces)
        ask(agent, CONTAINING)
        with pytest.raises(anthropic.APIError, match="incident"):
            for _ in pieces:
                pass
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        ask(agent, CONTAINING, retries=2)
    assert caught.value.status_code == 403
