"""A stand-in for LLM APIs with their real wire shapes, in the standard library alone.

The model's name picks what happens: `slow…` streams for a long time, `error-STATUS` answers with that status, all
others answer at once. `GET /_mock/stats` tells what was seen. Run it with `--port 0`; it prints its URL.
"""

import argparse
import base64
import json
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TEXT = ["Hel", "lo, ", "wörld ", "\U0001f600", "!"]
SLOW_PIECES = 1500
SLOW_PAUSE = 0.02

lock = threading.Lock()
seen = []
aborts = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):  # noqa: N802
        path = urlsplit(self.path).path
        if path == "/_mock/stats":
            with lock:
                return self.answer({"seen": seen, "aborts": aborts})
        if path.endswith("/models"):
            return self.answer({"object": "list", "data": [{"id": "lab-large", "object": "model", "created": 1, "owned_by": "lab"}]})
        return self.answer({"error": {"message": "no such path", "type": "invalid_request_error", "param": None, "code": None}}, 404)

    def do_POST(self):  # noqa: N802
        url = urlsplit(self.path)
        raw = self.body()
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return self.answer({"error": {"message": "not JSON", "type": "invalid_request_error", "param": None, "code": None}}, 400)
        headers = {k.lower(): v for k, v in self.headers.items()}
        with lock:
            seen.append({"path": self.path, "headers": headers, "body": body, "time": time.time()})
        self.path_only, self.query = url.path, parse_qs(url.query)
        model = body.get("model") or self.path_model()
        if model.startswith("error-"):
            return self.error(int(model.removeprefix("error-")))
        for ending, act in ROUTES:
            if url.path.endswith(ending):
                return act(self, model, body)
        return self.answer({"error": {"message": "no such path", "type": "invalid_request_error", "param": None, "code": None}}, 404)

    def path_model(self):
        """The model of Gemini's paths."""
        last = self.path_only.rsplit("/", 1)[-1]
        return last.split(":", 1)[0] if ":" in last else ""

    def body(self):
        """The request's body, whichever way it is framed."""
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def answer(self, value, status=200, headers=()):
        """A whole JSON answer."""
        data = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("x-request-id", f"req_{len(seen)}")
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def events(self, events, pause=0.0):
        """A stream of server-sent events; `(name, value)`, where a name of None is left out."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        sent = 0
        try:
            for name, value in events:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                data = ((f"event: {name}\n" if name else "") + f"data: {text}\n\n").encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
                sent += 1
                time.sleep(pause)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            with lock:
                aborts.append({"path": self.path, "sent": sent, "time": time.time()})
            self.close_connection = True

    def error(self, status):
        """An error in the API's own shape."""
        words = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = words.get(status, "api_error")
        if "/messages" in self.path:
            body = {"type": "error", "error": {"type": kind, "message": f"mock {status}"}, "request_id": "req_mock"}
        elif ":" in self.path:
            body = {"error": {"code": status, "message": f"mock {status}", "status": "INVALID_ARGUMENT"}}
        else:
            body = {"error": {"message": f"mock {status}", "type": kind, "param": "x", "code": f"mock_{status}"}}
        self.answer(body, status)


def pieces(model):
    """The text of an answer, and the pause between its pieces."""
    return (["tick "] * SLOW_PIECES, SLOW_PAUSE) if model.startswith("slow") else (TEXT, 0.0)


def wants_tool(body, messages="messages"):
    """Whether to call a tool: one is offered and no result is there yet."""
    if not body.get("tools"):
        return False
    last = (body.get(messages) or [{}])[-1]
    text = json.dumps(last)
    return not any(mark in text for mark in ('"tool"', "tool_result", "function_call_output", "functionResponse", "function_response"))


def chat(self, model, body):
    """Chat Completions."""
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    tool = wants_tool(body)
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Z\\u00fcrich"}'}}
    base = {"id": "chatcmpl-1", "created": 1, "model": f"{model}-2026-01-01"}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None if tool else "".join(TEXT)}
        if tool:
            message["tool_calls"] = [call]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tool else "stop", "logprobs": None}
        return self.answer({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
    asked = (body.get("stream_options") or {}).get("include_usage")
    words, pause = pieces(model)

    def stream():
        def chunk(delta, reason=None):
            one = {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            return None, {**one, "usage": None} if asked else one

        yield chunk({"role": "assistant", "content": None if tool else ""})
        if tool:
            yield chunk({"tool_calls": [{"index": 0, **call, "function": {"name": "get_weather", "arguments": ""}}]})
            for part in ('{"city":', ' "Z\\u00fcrich"}'):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
        else:
            for word in words:
                yield chunk({"content": word})
        yield chunk({}, "tool_calls" if tool else "stop")
        if asked:
            yield None, {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        yield None, "[DONE]"

    self.events(stream(), pause)


def responses(self, model, body):
    """Responses."""
    tool = wants_tool(body, "input") if isinstance(body.get("input"), list) else bool(body.get("tools"))
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 18,
    }
    if tool:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Bern"}', "status": "completed"}
    else:
        part = {"type": "output_text", "text": "".join(TEXT), "annotations": [], "logprobs": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    whole = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": f"{model}-2026-01-01",
        "output": [item],
        "usage": usage,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }
    if not body.get("stream"):
        return self.answer(whole)
    words, pause = pieces(model)

    def stream():
        number = 0

        def event(kind, **rest):
            nonlocal number
            number += 1
            return kind, {"type": kind, "sequence_number": number - 1, **rest}

        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        if tool:
            yield event("response.output_item.added", output_index=0, item={**item, "arguments": "", "status": "in_progress"})
            yield event("response.function_call_arguments.delta", item_id="fc_1", output_index=0, delta=item["arguments"])
            yield event("response.function_call_arguments.done", item_id="fc_1", output_index=0, arguments=item["arguments"], name="get_weather")
        else:
            place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
            yield event("response.output_item.added", output_index=0, item={**item, "content": [], "status": "in_progress"})
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield event("response.content_part.added", **place, part=empty)
            for word in words:
                yield event("response.output_text.delta", **place, delta=word, logprobs=[])
            yield event("response.output_text.done", **place, text="".join(TEXT), logprobs=[])
            yield event("response.content_part.done", **place, part=item["content"][0])
        yield event("response.output_item.done", output_index=0, item=item)
        yield event("response.completed", response=whole)

    self.events(stream(), pause)


def embeddings(self, model, body):
    """Embeddings, base64 or numbers."""
    inputs = body.get("input")
    count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1

    def value(i):
        # A number is told apart from others by its vector.
        said = inputs[i] if isinstance(inputs, list) else inputs
        vector = [float(said) if isinstance(said, str) and said.isdigit() else 0.25, -0.5, 1.0]
        packed = base64.b64encode(struct.pack("<3f", *vector)).decode()
        return packed if body.get("encoding_format") == "base64" else vector

    data = [{"object": "embedding", "index": i, "embedding": value(i)} for i in range(count)]
    self.answer({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 3, "total_tokens": 3}})


def messages(self, model, body):
    """Anthropic Messages."""
    tool = wants_tool(body)
    usage = {"input_tokens": 11, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 4, "output_tokens": 7}
    block = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}}
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": f"{model}-20260101", "stop_sequence": None}
    reason = "tool_use" if tool else "end_turn"
    if not body.get("stream"):
        content = [block] if tool else [{"type": "text", "text": "".join(TEXT)}]
        return self.answer({**base, "content": content, "stop_reason": reason, "usage": usage}, headers=[("request-id", "req_mock")])
    words, pause = pieces(model)

    def stream():
        def event(kind, **rest):
            return kind, {"type": kind, **rest}

        yield event("message_start", message={**base, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}})
        yield event("ping")
        if tool:
            yield event("content_block_start", index=0, content_block={**block, "input": {}})
            for part in ('{"city": ', '"Bern"}'):
                yield event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": part})
        else:
            yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            for word in words:
                yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        yield event("content_block_stop", index=0)
        yield event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 7})
        yield event("message_stop")

    self.events(stream(), pause)


def count_tokens(self, _model, _body):
    """Anthropic count_tokens."""
    self.answer({"input_tokens": 11})


def gemini_part(body):
    """What Gemini answers."""
    if wants_tool(body, "contents"):
        return {"functionCall": {"name": "get_weather", "args": {"city": "Bern"}}}
    return {"text": "".join(TEXT)}


def gemini_chunk(model, part, last):
    """One answer, or one piece of it."""
    usage = {"promptTokenCount": 11, "cachedContentTokenCount": 4, "totalTokenCount": 11}
    if last:
        usage |= {"candidatesTokenCount": 5, "thoughtsTokenCount": 2, "totalTokenCount": 18}
    candidate = {"content": {"role": "model", "parts": [part]}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "r1"}


def generate(self, model, body):
    """Gemini generateContent."""
    self.answer(gemini_chunk(model, gemini_part(body), True))


def stream_generate(self, model, body):
    """Gemini streamGenerateContent."""
    words, pause = pieces(model)
    part = gemini_part(body)
    parts = [part] if "functionCall" in part else [{"text": word} for word in words]
    chunks = (gemini_chunk(model, p, i == len(parts) - 1) for i, p in enumerate(parts))
    if self.query.get("alt") == ["sse"]:
        return self.events(((None, c) for c in chunks), pause)
    return self.answer(list(chunks))


def embed(self, _model, body):
    """Gemini embeddings, one or many."""
    if self.path_only.endswith(":batchEmbedContents"):
        return self.answer({"embeddings": [{"values": [0.25, -0.5]} for _ in body.get("requests", [])]})
    return self.answer({"embedding": {"values": [0.25, -0.5]}})


ROUTES = [
    ("/chat/completions", chat),
    ("/responses", responses),
    ("/embeddings", embeddings),
    ("/messages/count_tokens", count_tokens),
    ("/messages", messages),
    (":generateContent", generate),
    (":streamGenerateContent", stream_generate),
    (":embedContent", embed),
    (":batchEmbedContents", embed),
]


class Server(ThreadingHTTPServer):
    """Clients that leave are what the tests are about: no traceback for them."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """Says nothing."""


def start(port=0):
    """Starts it on a thread of its own and gives its URL."""
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0)
    print(start(arguments.parse_args().port), flush=True)
    threading.Event().wait()
