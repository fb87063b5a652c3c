"""LangChain's OpenAI classes, unmodified."""

import openai
import pytest
from conftest import TEXT, THROTTLED, URL, exhaust, headers, needs_fusebox, observed
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def model(agent, base=URL, name="lab-large", **more):
    return ChatOpenAI(model=name, base_url=f"{base}/v1", api_key="sk-test", default_headers=headers(agent), **more)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


def test_chat():
    answer = model("py-langchain").invoke("hi")
    assert answer.content == TEXT
    assert answer.usage_metadata["total_tokens"] == 18


def test_stream():
    assert "".join(c.content for c in model("py-langchain-stream").stream("hi")) == TEXT
    if line := observed("py-langchain-stream"):
        assert (line["total_tokens"], line["usage_source"]) == (18, "reported"), "although LangChain does not ask for it"


def test_tools():
    answer = model("py-langchain-tools").bind_tools([get_weather]).invoke("hi")
    assert answer.tool_calls[0]["args"] == {"city": "Zürich"}
    chunks = list(model("py-langchain-stools").bind_tools([get_weather]).stream("hi"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["name"] == "get_weather"


def test_embeddings():
    embeddings = OpenAIEmbeddings(
        model="lab-embed",
        base_url=f"{URL}/v1",
        api_key="sk-test",
        default_headers=headers("py-langchain-embed"),
        check_embedding_ctx_length=False,
    )
    assert embeddings.embed_documents(["a", "b"]) == [[0.25, -0.5, 1.0]] * 2


@needs_fusebox
def test_throttle_is_a_rate_limit_error():
    agent = "py-langchain-throttle"
    exhaust(agent, "/v1/chat/completions", {"model": "lab-large", "messages": []})
    with pytest.raises(openai.RateLimitError):
        model(agent, THROTTLED, max_retries=0).invoke("hi")
