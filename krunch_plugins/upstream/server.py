"""The server itself: sockets, threads, HTTP, server-sent events."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from krunch_plugins.upstream import chat, messages, others, responses
from krunch_plugins.upstream.answers import Answer, echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType


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


class Upstream:
    """A model server on 127.0.0.1, at a free port, in threads of its own. A context manager; `close()` does the same.

    Args:
        answer: called with each request's parsed body, in the thread that serves it; returns one `Answer`, which
            every choice gets, or a sequence with one for each choice (`n`). Default: `echo`. If it raises, the
            client gets a 500 that names the exception.

    Attributes:
        url: what an OpenAI client wants as base URL, "http://127.0.0.1:PORT/v1".
        root: what an Anthropic client wants as base URL, "http://127.0.0.1:PORT".
        received: every request so far, in order of arrival.
        kept: replies that can be fetched again, by their path.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Answer | Sequence[Answer]] = echo) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.kept: dict[str, dict[str, Any]] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.upstream = self
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/v1"
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
        protocol = _PROTOCOLS.get(self.path.partition("?")[0])
        if protocol is None:
            self.send_error_body(HTTPStatus.NOT_FOUND, f"no such path; served are {', '.join(_PROTOCOLS)}")
            return
        try:
            answers = upstream.answer(body)
        except Exception as error:  # noqa: BLE001 - the script's failure is an answer too: the client must see it
            self.send_error_body(HTTPStatus.INTERNAL_SERVER_ERROR, f"answer() raised {type(error).__name__}: {error}")
            return
        count = body.get("n") or 1
        choices = [answers] * count if isinstance(answers, Answer) else list(answers)
        if choices[0].raw is not None:
            self.send_raw(choices[0].raw, "text/event-stream" if body.get("stream") else "application/json")
        elif choices[0].status >= HTTPStatus.BAD_REQUEST:
            self.send_error_body(choices[0].status, choices[0].text or "refused")
        elif body.get("stream") and protocol.events is not None:
            self.send_events(protocol, protocol.events(body, choices, len(upstream.received)), choices[0])
        else:
            self.send_json(protocol.whole(body, choices, len(upstream.received)))
        if protocol.kept:
            whole = protocol.whole(body, choices, len(upstream.received))
            upstream.kept[f"{self.path}/{whole['id']}"] = whole

    def do_GET(self) -> None:
        kept = self.server.upstream.kept.get(self.path.partition("?")[0])
        if kept is None:
            self.send_error_body(HTTPStatus.NOT_FOUND, "no such path, or nothing is kept there")
        else:
            self.send_json(kept)

    def send_error_body(self, status: int, message: str) -> None:
        self.send_json({"error": {"message": message, "type": "upstream_error", "code": str(status)}}, status)

    def send_json(self, value: Mapping[str, Any], status: int = 200) -> None:
        self.send_raw(json.dumps(value).encode(), "application/json", status)

    def send_raw(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_events(self, protocol: _Protocol, events: Iterable[Mapping[str, Any]], answer: Answer) -> None:
        """Server-sent events; with `break_after` the connection is cut in the middle, as a dying server would."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events):
            if number == answer.break_after:
                self.close_connection = True
                return
            if number == answer.error_after:
                self._send_event(protocol, protocol.error(answer.text or "overloaded"))
                break
            self._send_event(protocol, event)
        if not protocol.named:
            self._send_piece(b"data: [DONE]\n\n")
        self._send_piece(b"")

    def _send_event(self, protocol: _Protocol, event: Mapping[str, Any]) -> None:
        name = f"event: {event['type']}\n" if protocol.named else ""
        self._send_piece(f"{name}data: {json.dumps(event)}\n\n".encode())

    def _send_piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Nothing: the requests are kept, and stderr belongs to the program that started the server."""


class _Protocol(NamedTuple):
    """What is spoken at one path.

    Attributes:
        whole: a request's body, its answers and its number → the plain reply.
        events: the same → the events of the streamed reply; None: there are no streams.
        error: a message → the event that tells of an error.
        named: each event is announced by its type, and no [DONE] comes last.
        kept: replies can be fetched again by their id.
    """

    whole: Callable[[Mapping[str, Any], Sequence[Answer], int], dict[str, Any]]
    events: Callable[[Mapping[str, Any], Sequence[Answer], int], Iterator[dict[str, Any]]] | None = None
    error: Callable[[str], dict[str, Any]] = chat.error
    named: bool = False
    kept: bool = False


_PROTOCOLS: Mapping[str, _Protocol] = {
    "/v1/chat/completions": _Protocol(chat.whole, chat.events),
    "/v1/messages": _Protocol(messages.whole, messages.events, messages.error, named=True),
    "/v1/messages/count_tokens": _Protocol(messages.count),
    "/v1/responses": _Protocol(responses.whole, responses.events, responses.error, named=True, kept=True),
    "/v1/completions": _Protocol(others.completion, others.completion_events),
    "/v1/embeddings": _Protocol(others.embeddings),
}
"""What is served, by path."""
