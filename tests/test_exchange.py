"""One request and its reply on their way through the hooks: isolation, refusal, threads."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import Exchange, Krunch, Problem, Reply, RequestRefused, Settings, hookimpl, restore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from krunch_plugins.turns import Message

MODEL = "gpt-4o"
WORDS = ("early", "late", "yesterday", "again", "as ever", "alas", "today", "twice")
LOG = " ".join(f"{word}, the largest disk of host db-7 was reported to be full;" for word in WORDS)
"""One line that says the same over and over, so that phrases of it become symbols."""
SECRET = "do not log me"


def ask(text: Any = "Hello") -> list[Message]:
    """A request of one message."""
    return [{"role": "user", "content": text}]


def answer(text: str = "Hi") -> Message:
    """A reply."""
    return {"role": "assistant", "content": text}


def chunk(text: str, finish: str | None = None, choice: int = 0) -> dict[str, Any]:
    """A streamed piece of a reply."""
    return {"id": "c", "choices": [{"index": choice, "delta": {"content": text}, "finish_reason": finish}]}


class Vandal:
    """Changes everything it can reach, then raises."""

    name = "vandal"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or RuntimeError(SECRET)

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Change the request and raise."""
        exchange.messages[0]["content"][0]["text"] = "changed"
        exchange.messages.append({"role": "user", "content": "added"})
        exchange.metadata["before"]["list"].append("changed")
        exchange.metadata["mine"] = 1
        exchange.substitute("<T>", "secret")
        exchange.model, exchange.session, exchange.tenant = "other", "other", "other"
        raise self.error

    @hookimpl
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        """Change the reply and raise."""
        reply.message["content"] = "changed"
        reply.message["tool_calls"][0]["function"]["name"] = "changed"
        reply.message = {"role": "changed"}
        exchange.metadata["before"]["list"].append("changed")
        raise self.error


class Before:
    """Runs before the vandal and leaves something to spoil."""

    @hookimpl(tryfirst=True)
    def pre_request(self, exchange: Exchange) -> None:
        """Change the request, properly."""
        exchange.metadata["before"] = {"list": []}
        exchange.messages[0]["content"][0]["text"] += "!"
        exchange.substitute("<B>", "kept")


class After:
    """Runs after the vandal and sees what is left."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}
        self.reply: Message = {}

    @hookimpl(trylast=True)
    def pre_request(self, exchange: Exchange) -> None:
        """Note what there is."""
        names = ("messages", "metadata", "substitutions", "model", "session", "tenant")
        self.request = copy.deepcopy({name: getattr(exchange, name) for name in names})

    @hookimpl(trylast=True)
    def post_response(self, reply: Reply) -> None:
        """Note what there is."""
        self.reply = copy.deepcopy(reply.message)


def test_what_a_failing_plugin_changed_is_undone(caplog: pytest.LogCaptureFixture) -> None:
    """The plugins after it, and the caller, find everything as it was before it; the report names it, the log too."""
    after = After()
    request = ask([{"type": "text", "text": "Hello"}])
    reply = {**answer(), "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{}"}}]}
    untouched = copy.deepcopy((request, reply))

    with (
        caplog.at_level(logging.DEBUG, "krunch"),
        Krunch(Settings(mode="off"), plugins=[Before(), Vandal(), after]) as krunch,
    ):
        exchange = krunch.prepare(request, model=MODEL, session="s", tenant="t")
        finished = exchange.finish(reply)

    assert after.request == {
        "messages": ask([{"type": "text", "text": "Hello!"}]),
        "metadata": {"before": {"list": []}},
        "substitutions": {"<B>": "kept"},
        "model": MODEL,
        "session": "s",
        "tenant": "t",
    }
    assert exchange.messages == after.request["messages"]
    assert finished == after.reply == reply
    assert exchange.metadata == {"before": {"list": []}}
    assert (request, reply) == untouched
    assert exchange.report.problems == [
        Problem("vandal", "pre_request", "RuntimeError"),
        Problem("vandal", "post_response", "RuntimeError"),
    ]
    assert "plugin 'vandal' raised RuntimeError in pre_request" in caplog.text
    assert "in pre_request\n    raise self.error" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("spoilt", [None, ("not", "a", "list"), [1], "text"])
def test_messages_that_are_none_are_undone_too(spoilt: Any) -> None:
    """A plugin that leaves no list of dicts counts as one that raised."""

    class Spoils:
        name = "spoils"

        @hookimpl
        def pre_request(self, exchange: Exchange) -> None:
            exchange.messages = spoilt

        @hookimpl
        def post_response(self, reply: Reply) -> None:
            reply.message = spoilt

    with Krunch(Settings(mode="off"), plugins=[Spoils()]) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)

        assert exchange.finish(answer()) == answer()
    assert exchange.messages == ask()
    assert [problem.error for problem in exchange.report.problems] == ["TypeError", "TypeError"]


def test_a_hook_that_hands_back_a_coroutine_counts_as_failed() -> None:
    """A plain function that returns a coroutine has done nothing; the report says so."""

    class Sneaky:
        name = "sneaky"

        @hookimpl
        def pre_request(self, exchange: Exchange) -> Any:
            return asyncio.sleep(0)

    with Krunch(Settings(mode="off"), plugins=[Sneaky()]) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)

    assert exchange.report.problems == [Problem("sneaky", "pre_request", "TypeError")]


def test_the_callers_objects_never_change() -> None:
    """Plugins and compression change copies, at any depth; `exchange.original` is what the caller gave."""

    class Deep:
        @hookimpl
        def pre_request(self, exchange: Exchange) -> None:
            exchange.messages[0]["content"][0]["text"] = "changed"
            exchange.messages[1]["tool_calls"][0]["function"]["arguments"] = "changed"
            exchange.messages[2]["content"] += "changed"

    function = {"name": "f", "arguments": "{}"}
    messages: list[Message] = [
        {"role": "user", "content": ({"type": "text", "text": LOG},)},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "t", "content": LOG},
    ]
    before = copy.deepcopy(messages)

    with Krunch(Settings(), plugins=[Deep()]) as krunch:
        exchange = krunch.prepare(messages, model=MODEL)

    assert messages == before
    assert exchange.original is messages
    assert exchange.messages[0]["content"][0]["text"] == "changed"
    assert exchange.messages[1]["tool_calls"][0]["function"]["arguments"] == "changed"
    assert restore(exchange.messages)[2]["content"] == LOG + "changed"


def test_a_compressor_that_fails_lets_the_request_through() -> None:
    """If Krunch's own part breaks, the request goes out as it stood before that part, and the report says so."""

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError(SECRET)

    with Krunch(Settings()) as krunch:
        exchange = krunch.prepare(ask(LOG), model=MODEL, tools=[{"type": "function", "function": Unprintable()}])

        assert exchange.messages == ask(LOG)
        assert exchange.report.problems == [Problem("compression", "pre_request", "RuntimeError")]
        assert exchange.finish(answer()) == answer()


class Refuses:
    """Stops calls, at one of the two hooks."""

    name = "refuses"

    def __init__(self, hook: str) -> None:
        self.hook = hook

    @hookimpl
    def pre_request(self) -> None:
        """Refuse requests."""
        if self.hook == "pre_request":
            raise RequestRefused("no request")

    @hookimpl
    def post_response(self, reply: Reply) -> None:
        """Refuse replies."""
        reply.message["content"] = "spoilt"
        if self.hook == "post_response":
            raise RequestRefused("no reply")


async def test_a_refused_request_is_stopped() -> None:
    """`RequestRefused` from `pre_request` reaches the caller, sync and async, as it was raised."""
    with Krunch(Settings(), plugins=[Refuses("pre_request")]) as krunch:
        with pytest.raises(RequestRefused) as sync:
            krunch.prepare(ask(), model=MODEL)
        with pytest.raises(RequestRefused) as not_sync:
            await krunch.aprepare(ask(), model=MODEL)

    assert sync.value.reason == not_sync.value.reason == "no request"


async def test_a_refused_reply_is_stopped() -> None:
    """`RequestRefused` from `post_response` reaches the caller of `finish` and `afinish` instead of the reply."""
    with Krunch(Settings(), plugins=[Refuses("post_response")]) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        with pytest.raises(RequestRefused, match="no reply"):
            exchange.finish(answer())
        with pytest.raises(RequestRefused, match="no reply"):
            await exchange.afinish(answer())


async def test_a_stream_that_has_gone_out_cannot_be_refused() -> None:
    """At the end of a stream a refusal is one more failure: undone, reported, and the stream ends as it should."""
    after = After()
    with Krunch(Settings(mode="off"), plugins=[Refuses("post_response"), after]) as krunch:
        for end in ("flush", "aflush"):
            exchange = krunch.prepare(ask(), model=MODEL)
            stream = exchange.stream()
            stream.feed(chunk("Hi", "stop"))
            rest = stream.flush() if end == "flush" else await stream.aflush()

            assert rest == []
            assert after.reply == answer()
            assert exchange.report.problems == [Problem("refuses", "post_response", "RequestRefused")]


class Listens:
    """Notes every reply."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    @hookimpl
    def post_response(self, reply: Reply) -> None:
        """Note it."""
        self.replies.append(copy.deepcopy(reply))


def symbol_of(exchange: Exchange) -> tuple[str, str]:
    """A symbol that the request defines, and its text."""
    return next(iter(exchange.symbols.items()))


def test_a_stream_runs_the_hook_once_per_choice_at_its_end() -> None:
    """The hook sees each choice's assembled, expanded reply once, when the stream is flushed, be it twice."""
    listens = Listens()
    with Krunch(Settings(), plugins=[listens]) as krunch:
        exchange = krunch.prepare(ask(LOG), model=MODEL)
        symbol, text = symbol_of(exchange)
        stream = exchange.stream()
        out = stream.feed(chunk("one ")) + stream.feed(chunk(f"two {symbol}", choice=1)) + stream.feed(chunk(symbol))
        heard_before = list(listens.replies)
        out += stream.flush()

        assert heard_before == []
        assert listens.replies == [
            Reply(answer(f"one {text}"), 0, streamed=True, expanded=True),
            Reply(answer(f"two {text}"), 1, streamed=True, expanded=True),
        ]
        said = {0: "", 1: ""}
        for part in out:
            said[part["choices"][0]["index"]] += part["choices"][0]["delta"]["content"]
        assert said == {0: f"one {text}", 1: f"two {text}"}
        assert exchange.report.symbols_expanded == 2
        assert stream.flush() == []
        assert len(listens.replies) == 2


async def test_a_broken_stream_is_marked() -> None:
    """Flushed with `partial`, a stream's hooks see what came, held-back text included, and that it is not all."""
    listens = Listens()
    with Krunch(Settings(), plugins=[listens]) as krunch:
        exchange = krunch.prepare(ask(LOG), model=MODEL)
        symbol, text = symbol_of(exchange)
        stream = exchange.stream()
        stream.feed(chunk(f"see {symbol}"))
        rest = await stream.aflush(partial=True)

        assert listens.replies == [Reply(answer(f"see {text}"), streamed=True, partial=True, expanded=True)]
        assert [part["choices"][0]["delta"] for part in rest] == [{"content": text}]
        assert await stream.aflush() == []


async def test_texts_are_expanded_one_by_one() -> None:
    """For protocols of their own: a window for each text, plain or JSON, and the hooks at the end, when told to."""
    listens = Listens()
    with Krunch(Settings(), plugins=[listens]) as krunch:
        exchange = krunch.prepare(ask(LOG), model=MODEL)
        symbol, text = symbol_of(exchange)
        texts = exchange.texts()
        plain, quoted = texts.open(), texts.open(json_text=True)
        said = [plain.feed(symbol[:1]) + plain.feed(f"{symbol[1:]}."), quoted.feed(f'"{symbol}"')]
        said = [said[0] + plain.end(), said[1] + quoted.end()]
        await texts.aend(answer("whole"), partial=True)
        texts.end(answer("other"), choice=1)

        assert said == [f"{text}.", json.dumps(text, ensure_ascii=False)]
        assert exchange.report.symbols_expanded == 2
        assert listens.replies == [
            Reply(answer("whole"), streamed=True, partial=True, expanded=True),
            Reply(answer("other"), 1, streamed=True, expanded=True),
        ]


def test_an_unreadable_chunk_passes_as_it_came(caplog: pytest.LogCaptureFixture) -> None:
    """A chunk of a shape that nobody expects is handed on, the stream goes on, and the report says so."""
    odd = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": {}}, "id": []}]}}]}
    worse: dict[str, Any] = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": []}, {"index": {}}, 7]}}]}

    class Unreadable(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError(SECRET)

    with Krunch(Settings()) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        stream = exchange.stream()

        assert stream.feed(odd) == [odd]
        assert stream.feed(worse) == [worse]
        assert stream.feed(Unreadable(a=1)) == [{"a": 1}]
        assert stream.feed(chunk("Hi")) == [chunk("Hi")]
    assert exchange.report.problems == [Problem("compression", "stream", "RuntimeError")]
    assert SECRET not in caplog.text


def test_several_choices_are_told_apart() -> None:
    """`finish` tells the hooks which choice a reply is."""
    listens = Listens()
    with Krunch(Settings(), plugins=[listens]) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        for choice in (0, 1):
            exchange.finish(answer(), choice=choice)

    assert [reply.choice for reply in listens.replies] == [0, 1]


def test_substitutions_come_back_everywhere() -> None:
    """What a token stands for comes back in text, tool arguments and streams, also out of an expanded symbol."""

    class Hides:
        @hookimpl
        def pre_request(self, exchange: Exchange) -> None:
            for message in exchange.messages:
                message["content"] = message["content"].replace("db-7", "<HOST>")
            exchange.substitute("<HOST>", 'the "seventh"')

    with Krunch(Settings(), plugins=[Hides()]) as krunch:
        exchange = krunch.prepare(ask(LOG), model=MODEL)
        symbol, text = next((symbol, text) for symbol, text in exchange.symbols.items() if "<HOST>" in text)
        call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{symbol}"}}'}}
        reply = exchange.finish({**answer(symbol), "tool_calls": [call]})
        stream = exchange.stream()
        out = [piece for char in f"{symbol} <HOST>" for piece in stream.feed(chunk(char))] + stream.flush()

    plain = text.replace("<HOST>", 'the "seventh"')
    assert "db-7" not in repr(exchange.messages)
    assert reply["content"] == plain
    assert reply["tool_calls"][0]["function"]["arguments"] == f'{{"a": "{plain}"}}'.replace('"seventh"', r"\"seventh\"")
    assert "".join(part["choices"][0]["delta"]["content"] for part in out) == f'{plain} the "seventh"'


def test_a_token_stands_for_one_thing() -> None:
    """A token is not empty and has one meaning; to say the same thing twice is fine."""
    with Krunch(Settings(mode="off")) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        exchange.substitute("<A>", "a")
        exchange.substitute("<A>", "a")
        with pytest.raises(ValueError, match="already stands for another text"):
            exchange.substitute("<A>", "b")
        with pytest.raises(ValueError, match="at least one character"):
            exchange.substitute("", "b")


def test_an_exchange_of_ones_own_cannot_finish() -> None:
    """An exchange that no Krunch made says so, instead of handing back the reply unexpanded."""
    with Krunch(Settings(mode="off")) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
    exchange.runtime = None

    with pytest.raises(RuntimeError, match=r"not made by Krunch\.prepare"):
        exchange.finish(answer())


@pytest.mark.parametrize("messages", ["text", b"bytes", ["text"], [None], [("role", "user")]])
def test_what_is_no_request_is_a_type_error(messages: Any) -> None:
    """Arguments that are no messages at all raise; nothing else does."""
    with Krunch(Settings()) as krunch, pytest.raises(TypeError, match="sequence of dicts"):
        krunch.prepare(messages, model=MODEL)


class Waits:
    """Holds up a hook until the event loop has done something: for long, if the loop is what it holds up."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.freed: list[bool] = []

    def wait(self) -> None:
        """Wait for the loop."""
        self.started.set()
        self.freed.append(self.go.wait(timeout=30))


class WaitsBefore(Waits):
    """Holds up requests."""

    @hookimpl
    def pre_request(self) -> None:
        """Wait."""
        self.wait()


class WaitsAfter(Waits):
    """Holds up replies."""

    @hookimpl
    def post_response(self) -> None:
        """Wait."""
        self.wait()


@pytest.mark.parametrize("call", ["aprepare", "afinish", "aflush"])
async def test_the_event_loop_runs_while_plugins_work(call: str) -> None:
    """While a plugin's hook is busy other coroutines go on: the hook waits for one of them, and it comes."""
    waits = WaitsBefore() if call == "aprepare" else WaitsAfter()
    with Krunch(Settings(mode="off")) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        stream = exchange.stream()
        stream.feed(chunk("Hi"))
        krunch.register(waits)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "aprepare": lambda: krunch.aprepare(ask(), model=MODEL),
            "afinish": lambda: exchange.afinish(answer()),
            "aflush": stream.aflush,
        }

        async def free() -> None:
            await asyncio.to_thread(waits.started.wait, 30)
            waits.go.set()

        await asyncio.gather(calls[call](), free())

    assert waits.freed == [True]


class Threads(logging.Handler):
    """Notes which threads compressed."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: set[int | None] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Note the thread."""
        self.seen.add(record.thread)


@pytest.mark.parametrize("large", [True, False])
async def test_large_requests_are_compressed_off_the_loop(large: bool) -> None:  # noqa: FBT001 - a test's case
    """`aprepare` compresses in a worker thread what has more characters than `large_request`, and nothing else."""
    threads = Threads()
    logger = logging.getLogger("krunch")
    before = logger.level
    logger.addHandler(threads)
    logger.setLevel(logging.DEBUG)
    try:
        with Krunch(Settings(large_request=len(LOG) - large)) as krunch:
            exchange = await krunch.aprepare(ask(LOG), model=MODEL)
    finally:
        logger.removeHandler(threads)
        logger.setLevel(before)

    assert exchange.report.tokens_saved > 0
    assert (threading.get_ident() in threads.seen) is not large
    assert len(threads.seen) == 1


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize("where", ["content", "arguments"])
async def test_large_replies_are_expanded_off_the_loop(where: str, size: int) -> None:
    """`afinish` expands large replies, be it text or tool arguments that make them large, in a worker thread."""
    threads = set()

    class Reported(dict[str, Any]):
        def items(self) -> Any:
            threads.add(threading.get_ident())
            return super().items()

    text = "x" * size
    reply = Reported(answer(text)) if where == "content" else Reported(answer())
    if where == "arguments":
        reply["tool_calls"] = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": text}}]
    with Krunch(Settings(large_request=100)) as krunch:
        exchange = krunch.prepare(ask(), model=MODEL)
        finished = await exchange.afinish(reply)

    assert finished == reply
    assert (threading.get_ident() in threads) is (size < 100)


async def test_async_and_sync_do_the_same() -> None:
    """The async calls send and give back exactly what the sync calls do."""
    for limit in (0, 10**9):
        with Krunch(Settings(large_request=limit)) as krunch, Krunch(Settings()) as other:
            exchange = krunch.prepare(ask(LOG), model=MODEL, session="s")
            same = await other.aprepare(ask(LOG), model=MODEL, session="s")
            symbol, text = symbol_of(exchange)

            assert same.messages == exchange.messages
            assert await same.afinish(answer(symbol)) == exchange.finish(answer(symbol)) == answer(text)
