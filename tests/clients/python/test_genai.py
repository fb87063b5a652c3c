"""The official Google client, unmodified."""

import time

import pytest
from conftest import TEXT, THROTTLED, URL, aborted_within_a_second, aborts, exhaust, headers, needs_fusebox, observed
from google import genai
from google.genai import errors, types


#: A client closes its connections when it is collected; these are kept.
kept = []


def client(agent, base=URL):
    kept.append(genai.Client(api_key="test", http_options=types.HttpOptions(base_url=base, headers=headers(agent))))
    return kept[-1]


def test_generate():
    answer = client("py-genai").models.generate_content(model="lab-flash", contents="hi")
    assert answer.text == TEXT
    assert answer.usage_metadata.total_token_count == 18
    if line := observed("py-genai"):
        assert (line["api"], line["model_requested"], line["output_total"]) == ("gemini.generate_content", "lab-flash", 7)


def test_stream():
    chunks = client("py-genai-stream").models.generate_content_stream(model="lab-flash", contents="hi")
    assert "".join(c.text or "" for c in chunks) == TEXT
    if line := observed("py-genai-stream"):
        assert (line["stream"], line["total_tokens"], line["finish_reason"]) == (True, 18, "STOP")


def test_tools():
    declaration = types.FunctionDeclaration(
        name="get_weather", description="weather", parameters={"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
    )
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declaration])])
    answer = client("py-genai-tools").models.generate_content(model="lab-flash", contents="hi", config=config)
    assert answer.function_calls[0].args == {"city": "Bern"}
    if line := observed("py-genai-tools"):
        assert line["tool_calls"] == ["get_weather"]


def test_embeddings():
    answer = client("py-genai-embed").models.embed_content(model="lab-embed", contents=["a", "b"])
    assert answer.embeddings[0].values == [0.25, -0.5]


def test_errors_of_the_upstream():
    with pytest.raises(errors.ClientError) as caught:
        client("py-genai-error").models.generate_content(model="error-400", contents="hi")
    assert caught.value.code == 400


def test_abort():
    before = aborts()
    stream = client("py-genai-abort").models.generate_content_stream(model="slow", contents="hi")
    for _, _ in zip(range(5), stream):
        pass
    stream.close()
    aborted_within_a_second(before, time.monotonic())


@needs_fusebox
def test_throttle_is_resource_exhausted():
    agent = "py-genai-throttle"
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    exhaust(agent, "/v1beta/models/lab-flash:generateContent", body)
    with pytest.raises(errors.ClientError) as caught:
        client(agent, THROTTLED).models.generate_content(model="lab-flash", contents="hi")
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
