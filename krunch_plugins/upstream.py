"""A small model server on loopback, for the demo and for tests: real HTTP, OpenAI's protocol, replies from a function.

It stands in for the model and for nothing else: what a framework sends travels through that framework's own client
and a real socket, is kept, and can be looked at afterwards.

    with Upstream(lambda body: Answer("Hello")) as upstream:
        litellm.completion(model="openai/gpt-4o", api_base=upstream.url, api_key="none", messages=[...])
        upstream.requests[0]["messages"]
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, Self

from krunch_plugins.errors import TokenizerUnavailable
from krunch_plugins.tokens import encoding_for, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply.

    Attributes:
        name: the tool's name.
        arguments: its arguments as the model writes them: JSON for "function", free text for "custom".
        id: the call's id.
        type: "function", or "custom" for a tool with free-form input.
    """

    name: str
    arguments: str
    id: str = "call_1"
    type: Literal["function", "custom"] = "function"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model replies, one choice of it.

    Attributes:
        text: the reply's text; None when there is none.
        tool_calls: tool calls. A request with `functions` instead of `tools` gets the first as `function_call`.
        extra: further keys of the assistant message ("reasoning_content", …); in a stream, of its first delta.
        pieces: characters per streamed delta, text and arguments alike, over and over.
        break_after: in a stream, how many chunks are sent before the connection is cut; None: it ends as it should.
        status: HTTP status; one of 400 and above answers with an error that holds `text`.
        cached_tokens: how many of a chat request's tokens the usage says were read from the cache.
    """

    text: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    pieces: Sequence[int] = (1, 3, 2, 5, 8, 4)
    break_after: int | None = None
    status: int = 200
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived.

    Attributes:
        path: the path of its URL.
        headers: its headers, names in lower case.
        body: its body, parsed.
    """

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


def echo(body: dict[str, Any]) -> Answer:
    """The default answer: the text of the last message."""
    return Answer(_text(body.get("messages", [{}])[-1].get("content")))


class Upstream:
    """A model server on 127.0.0.1, at a free port, in threads of its own. A context manager; `close()` does the same.

    Args:
        answer: called with each request's parsed body, in the thread that serves it; returns one `Answer`, which
            every choice gets, or a sequence with one for each choice (`n`). Default: `echo`. If it raises, the
            client gets a 500 that names the exception.

    Attributes:
        url: what an OpenAI client wants as base URL, "http://127.0.0.1:PORT/v1".
        received: every request so far, in order of arrival.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Answer | Sequence[Answer]] = echo) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.upstream = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="krunch-upstream")
        self._thread.daemon = True
        self._thread.start()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of all requests so far, parsed."""
        return [received.body for received in self.received]

    def close(self) -> None:
        """Stop serving and cut open connections. Safe to call twice."""
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """Knows its open connections: clients keep them alive, and threads that wait on them would outlive the server."""

    daemon_threads = False  # so that server_close() joins them
    upstream: Upstream

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as typeshed has it
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as typeshed has it
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as typeshed has it
        """Say nothing: what goes wrong outside an answer is a client that went away."""

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        upstream = self.server.upstream
        upstream.received.append(Received(self.path, headers, body))
        serve = _ROUTES.get(self.path)
        if serve is None:
            self.send_error_body(HTTPStatus.NOT_FOUND, f"no such path; served are {', '.join(_ROUTES)}")
            return
        try:
            answers = upstream.answer(body)
        except Exception as error:  # noqa: BLE001 - the script's failure is an answer too: the client must see it
            self.send_error_body(HTTPStatus.INTERNAL_SERVER_ERROR, f"answer() raised {type(error).__name__}: {error}")
            return
        count = body.get("n") or 1
        choices = [answers] * count if isinstance(answers, Answer) else list(answers)
        if choices[0].status >= HTTPStatus.BAD_REQUEST:
            self.send_error_body(choices[0].status, choices[0].text or "refused")
            return
        serve(self, body, choices, len(upstream.received))

    def send_error_body(self, status: int, message: str) -> None:
        self.send_json({"error": {"message": message, "type": "upstream_error", "code": str(status)}}, status)

    def send_json(self, value: Mapping[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_events(self, events: Iterable[Mapping[str, Any]], break_after: int | None) -> None:
        """Server-sent events; with `break_after` the connection is cut in the middle, as a dying server would."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events):
            if number == break_after:
                self.close_connection = True
                return
            self._send_piece(f"data: {json.dumps(event)}\n\n".encode())
        self._send_piece(b"data: [DONE]\n\n")
        self._send_piece(b"")

    def _send_piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Nothing: the requests are kept, and stderr belongs to the program that started the server."""


def _chat(handler: _Handler, body: dict[str, Any], answers: Sequence[Answer], number: int) -> None:
    """POST /v1/chat/completions, plain or streamed."""
    envelope = {"id": f"chatcmpl-{number}", "created": 1_700_000_000 + number, "model": body.get("model", "")}
    if not body.get("stream"):
        choices = [_whole(body, answer, index) for index, answer in enumerate(answers)]
        handler.send_json({**envelope, "object": "chat.completion", "choices": choices, "usage": _usage(body, answers)})
        return
    handler.send_events(
        ({**envelope, "object": "chat.completion.chunk", **event} for event in _events(body, answers)),
        answers[0].break_after,
    )


def _embeddings(handler: _Handler, body: dict[str, Any], answers: Sequence[Answer], number: int) -> None:
    """POST /v1/embeddings: a vector for each text, eight numbers that depend on nothing but the text."""
    del answers, number
    given = body.get("input") or []
    texts = [given] if isinstance(given, str) else [str(text) for text in given]
    digests = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    data = [
        {"object": "embedding", "index": index, "embedding": [byte / 255 for byte in digest]}
        for index, digest in enumerate(digests)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    handler.send_json({"object": "list", "model": body.get("model", ""), "data": data, "usage": usage})


def _whole(body: Mapping[str, Any], answer: Answer, index: int) -> dict[str, Any]:
    """One choice of a plain reply."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, **answer.extra}
    calls = [_call(call, call.arguments) for call in answer.tool_calls]
    if calls and "functions" in body:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(body, answer.text or ""),
        "finish_reason": _finish_reason(body, answer),
    }


def _events(body: Mapping[str, Any], answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed reply, without their envelope; the choices take turns."""
    streams = [_choice_events(body, answer, index) for index, answer in enumerate(answers)]
    while streams:
        for stream in tuple(streams):
            choice = next(stream, None)
            if choice is None:
                streams.remove(stream)
            else:
                yield {"choices": [choice]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {"choices": [], "usage": _usage(body, answers)}


def _choice_events(body: Mapping[str, Any], answer: Answer, index: int) -> Iterator[dict[str, Any]]:
    """One choice, delta by delta."""

    def event(delta: dict[str, Any], text: str = "", finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(body, text) if text else None,
            "finish_reason": finish_reason,
        }

    sizes = cycle(answer.pieces)
    yield event({"role": "assistant", "content": None if answer.text is None else "", **answer.extra})
    for piece in _split(answer.text or "", sizes):
        yield event({"content": piece}, piece)
    for position, call in enumerate(answer.tool_calls):
        legacy = "functions" in body
        opening = _call(call, "")
        yield event(
            {"function_call": opening["function"]} if legacy else {"tool_calls": [{"index": position, **opening}]}
        )
        for piece in _split(call.arguments, sizes):
            key = "input" if call.type == "custom" else "arguments"
            if legacy:
                yield event({"function_call": {key: piece}})
            else:
                yield event({"tool_calls": [{"index": position, call.type: {key: piece}}]})
    yield event({}, finish_reason=_finish_reason(body, answer))


def _split(text: str, sizes: Iterator[int]) -> Iterator[str]:
    start = 0
    while start < len(text):
        size = next(sizes)
        yield text[start : start + size]
        start += size


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    key = "input" if call.type == "custom" else "arguments"
    return {"id": call.id, "type": call.type, call.type: {"name": call.name, key: arguments}}


def _finish_reason(body: Mapping[str, Any], answer: Answer) -> str:
    if not answer.tool_calls:
        return "stop"
    return "function_call" if "functions" in body else "tool_calls"


def _logprobs(body: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """One made-up entry per word, for requests that ask for them."""
    if not body.get("logprobs"):
        return None
    entries = [
        {"token": word, "logprob": -0.25, "bytes": list(word.encode()), "top_logprobs": []} for word in text.split()
    ]
    return {"content": entries, "refusal": None}


def _usage(body: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of the texts on the wire, counted with the model's tokenizer (by fours of characters without one)."""
    try:
        count = load(encoding_for(str(body.get("model", "")))[0]).count
    except TokenizerUnavailable:

        def count(text: str) -> int:
            return (len(text) + 3) // 4

    prompt = sum(count(_text(message.get("content"))) for message in body.get("messages", ()))
    reply = sum(count(answer.text or "") + sum(count(c.arguments) for c in answer.tool_calls) for answer in answers)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    if answers[0].cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": min(answers[0].cached_tokens, prompt)}
    return usage


def _text(content: object) -> str:
    """The text of a message's content, whichever of its forms it has."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict))


_ROUTES: Mapping[str, Callable[[_Handler, dict[str, Any], Sequence[Answer], int], None]] = {
    "/v1/chat/completions": _chat,
    "/v1/embeddings": _embeddings,
}
"""What is served, by path."""
