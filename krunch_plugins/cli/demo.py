"""`krunch demo`: recorded conversations through LiteLLM to a local stand-in for the model, and back."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from krunch_plugins.cli.terminal import console, measuring_krunch, measuring_settings, percent, tokenizer_for
from krunch_plugins.conversations import Conversation, demo_conversations
from krunch_plugins.errors import MissingExtra
from krunch_plugins.replay import Meter, RequestFigures, Totals
from krunch_plugins.upstream import Answer, ToolCall, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from krunch_plugins.krunch import Krunch
    from krunch_plugins.settings import Settings
    from krunch_plugins.turns import Message

MODEL = "gpt-4o"


@dataclass(slots=True)
class Checks:
    """What was looked at, and how often it was as it must be.

    Attributes:
        replies: replies that came back.
        exact: those that were, to the character, what the model was recorded to say.
        symbols: symbols that the replies held on the wire.
        alike: requests that another Krunch, which saw nothing of the conversation before, sends byte for byte alike.
        totals: figures of all requests.
        conversations: figures of each conversation.
    """

    replies: int = 0
    exact: int = 0
    symbols: int = 0
    alike: int = 0
    totals: Totals = field(default_factory=Totals)
    conversations: list[Totals] = field(default_factory=list)

    def add(self, requests: Sequence[RequestFigures]) -> None:
        """Add a conversation that has been played."""
        self.totals.add(requests)
        self.conversations.append(Totals())
        self.conversations[-1].add(requests)

    @property
    def passed(self) -> bool:
        """Nothing was wrong."""
        return self.exact == self.alike == self.replies and self.totals.sound


class RecordedModel:
    """Stands in for the model: says what it said when the conversation was recorded, in the symbols it is sent.

    A model that reads a legend may write in symbols or not; one that always does where it can is the hardest test of
    what comes back.

    Attributes:
        turn: the recorded assistant message that comes next.
        legend: what the symbols in the request stand for.
        symbols: how many symbols it has written since this was last set to 0.
    """

    def __init__(self) -> None:
        self.turn: Message = {}
        self.legend: Mapping[str, str] = {}
        self.symbols = 0

    def answer(self, _body: Mapping[str, Any]) -> Answer:
        """The reply to one request, as it stands on the wire."""
        content = self.turn.get("content")
        calls = [
            ToolCall(
                call["function"]["name"],
                self._shortened(call["function"]["arguments"], lambda text: json.dumps(text)[1:-1]),
                call["id"],
            )
            for call in self.turn.get("tool_calls") or ()
        ]
        return Answer(None if content is None else self._shortened(content, str), calls)

    def _shortened(self, text: str, written: Callable[[str], str]) -> str:
        """`text` with every phrase that has a symbol replaced by it; `written` is how a phrase stands in this text."""
        symbols = {written(meaning): symbol for symbol, meaning in self.legend.items()}
        if not symbols:
            return text
        phrases = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
        # Not in front of a digit, which would make it another symbol, nor in the middle of a JSON escape.
        shortened, count = re.subn(rf"(?<!\\)(?:{phrases})(?![0-9])", lambda found: symbols[found[0]], text)
        self.symbols += count
        return shortened


def run(model: RecordedModel | None = None) -> int:
    """Play all conversations and print what was saved and checked.

    Args:
        model: who answers; default the model as recorded.

    Returns:
        The exit code.

    Raises:
        MissingExtra: litellm is not installed.
    """
    if find_spec("litellm") is None:
        raise MissingExtra("litellm", "krunch demo")
    # LiteLLM looks for a list of prices on the network when it is imported; the demo needs neither.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    out = console()
    out.print("Recorded conversations go through LiteLLM to a stand-in for the model on this machine, and come back.")
    model, checks, settings = model or RecordedModel(), Checks(), measuring_settings(None)
    tokenizer = tokenizer_for(MODEL, settings)
    with Upstream(model.answer) as upstream, measuring_krunch(settings) as krunch:
        stage = Stage(model, upstream, krunch, settings)
        for conversation in demo_conversations():
            table = _table(conversation)
            # Without a terminal, rich would print the finished table only, and without the end of its last line.
            with Live(table, console=out) if out.is_terminal else nullcontext() as live:
                for row in _play(conversation, Meter(tokenizer), stage, checks):
                    table.add_row(*row)
                    if live is not None:
                        live.refresh()
            if live is None:
                out.print(table)
            out.print(_gain(checks.conversations[-1]))
    out.print(_summary(checks))
    return 0 if checks.passed else 1


def _play(conversation: Conversation, meter: Meter, stage: Stage, checks: Checks) -> Iterator[tuple[str | Text, ...]]:
    """Send the conversation's requests, one after the other, the second and every other one streamed; their rows."""
    requests: list[RequestFigures] = []
    for number, stop in enumerate(conversation.requests(), 1):
        plain, recorded, stream = conversation.messages[:stop], conversation.messages[stop], number % 2 == 0
        asked = stage.ask(conversation, stop, stream=stream)
        requests.append(meter.add(plain, asked.sent, entries=len(stage.model.legend)))
        exact = _said(asked.reply) == _said(recorded)
        checks.replies += 1
        checks.exact += exact
        checks.symbols += stage.model.symbols
        checks.alike += asked.alike
        yield *_cells(number, requests[-1]), _reply_cell(stage.model.symbols, exact=exact, stream=stream)
    checks.add(requests)


class Asked(NamedTuple):
    """One call: what the program got, what the server received, and whether another Krunch would have sent the same."""

    reply: Message
    sent: list[Message]
    alike: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """Who takes part: the model, the server that it answers on, and the Krunch in front of it, with its settings."""

    model: RecordedModel
    upstream: Upstream
    krunch: Krunch
    settings: Settings

    def ask(self, conversation: Conversation, stop: int, *, stream: bool) -> Asked:
        """Make one call as a program would, with the first `stop` messages."""
        import krunch_litellm

        plain = conversation.messages[:stop]
        with measuring_krunch(self.settings) as another:
            expected = another.prepare(plain, model=MODEL, tools=conversation.tools)
        self.model.turn, self.model.legend, self.model.symbols = conversation.messages[stop], expected.symbols, 0
        tools: dict[str, Any] = {"tools": list(conversation.tools)} if conversation.tools else {}
        reply = krunch_litellm.completion(
            model=f"openai/{MODEL}",
            messages=plain,
            api_base=self.upstream.url,
            api_key="none",
            metadata={"session_id": conversation.id},
            stream=stream,
            krunch=self.krunch,
            **tools,
        )
        if stream:
            message = _assembled(chunk.choices[0].delta for chunk in reply)
        else:
            message = reply.choices[0].message.model_dump()
        # LiteLLM leaves out the empty content of messages that are tool calls only; they mean the same.
        sent = [{"content": None, **message} for message in self.upstream.requests[-1]["messages"]]
        return Asked(message, sent, sent == expected.messages)


def _assembled(deltas: Iterable[Any]) -> Message:
    """A streamed message, put together the way every client does: text to text, arguments to arguments."""
    content: str | None = None
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.content is not None:
            content = (content or "") + delta.content
        for piece in delta.tool_calls or ():
            call = calls.setdefault(piece.index, {"id": piece.id, "function": {"name": "", "arguments": ""}})
            call["function"]["name"] += piece.function.name or ""
            call["function"]["arguments"] += piece.function.arguments or ""
    return {"content": content, "tool_calls": list(calls.values())}


def _said(message: Message) -> tuple[object, ...]:
    """What has to be the same to the character: text and tool calls. No text and empty text are the same."""
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return message.get("content") or "", calls


def _table(conversation: Conversation) -> Table:
    table = Table(title=f"{conversation.id}: {conversation.title}", title_justify="left")
    for heading in ("request", "messages", "plain", "sent", "saved", "net", "entries", "cost plain", "cost sent"):
        table.add_column(heading, justify="right")
    for heading in ("restored", "reply"):
        table.add_column(heading)
    return table


def _reply_cell(symbols: int, *, exact: bool, stream: bool) -> Text:
    said = f"{'exact' if exact else 'WRONG'}, {'streamed' if stream else 'whole'}"
    if symbols:
        said += f", {symbols} symbol{'s' * (symbols > 1)}"
    return Text(said, style="" if exact else "bold red")


def _cells(number: int, figures: RequestFigures) -> tuple[str | Text, ...]:
    """One request's row, without the reply."""
    return (
        str(number),
        str(figures.messages),
        f"{figures.plain_tokens:,}",
        f"{figures.sent_tokens:,}",
        f"{figures.saved_tokens:,}",
        percent(figures.net),
        str(figures.entries),
        f"{figures.plain_cost:,.0f}",
        f"{figures.sent_cost:,.0f}",
        Text("yes" if figures.restored else "NO", style="" if figures.restored else "bold red"),
    )


def _gain(totals: Totals) -> str:
    return (
        f"{percent(totals.saved)} fewer tokens over {totals.requests} requests, {percent(totals.net)} fewer in the "
        f"last one. Input cost with prefix caching: {totals.cost:.2f} of the plain one.\n"
    )


def _summary(checks: Checks) -> Group:
    totals = checks.totals
    lines = [
        (
            checks.exact == checks.replies,
            f"{checks.exact} of {checks.replies} replies came back exact, {checks.symbols} symbols in them expanded",
        ),
        (
            totals.restored == totals.requests,
            f"{totals.restored} of {totals.requests} requests are restored exactly from nothing but what was sent",
        ),
        (
            checks.alike == checks.replies,
            f"{checks.alike} of {checks.replies} requests are sent alike by a Krunch that saw nothing before",
        ),
        (not totals.changed, f"{totals.changed} of {totals.requests} requests changed something sent before"),
    ]
    return Group(
        Text("Checked:", style="bold"),
        *(
            Text(f"  {'ok  ' if good else 'FAIL'}  {line}", style="green" if good else "bold red")
            for good, line in lines
        ),
        Text(
            "Tokens are those of the messages, legends included. Cost: input tokens at the price of plain ones, with "
            "prefix caching as providers sell it: 0.1 for a token read, 1.25 for one written, 1,024 at least."
        ),
    )
