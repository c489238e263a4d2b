"""`krunch show`: one message, original beside sent."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from krunch_plugins.cli.terminal import CONTROLS, console, measuring_krunch, measuring_settings, percent, tokenizer_for
from krunch_plugins.compression import legend
from krunch_plugins.compression.decoder import Reader
from krunch_plugins.compression.dictionary import View
from krunch_plugins.compression.json_styles import STYLES
from krunch_plugins.compression.legend import texts
from krunch_plugins.compression.segments import Mark
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.conversations import Conversation, read_conversations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from krunch_plugins.compression.dictionary import Dictionary
    from krunch_plugins.compression.segments import Segment
    from krunch_plugins.exchange import Exchange
    from krunch_plugins.report import MessageReport
    from krunch_plugins.settings import Profile
    from krunch_plugins.turns import Message

_HIGHLIGHT = "bold magenta"
_PART = 100
"""Characters that are shown of the beginning and of the end of a long meaning."""


def run(file: Path, *, turn: int, line: int, model: str, profile: Profile | None) -> int:
    """Print one turn; the exit code."""
    found = next((found for found, _ in read_conversations(file) if found.line == line), None)
    if not isinstance(found, Conversation):
        typer.echo(f"krunch: {found or f'{file} has no conversation in line {line}'}", err=True)
        return 2
    if turn >= len(found.messages):
        last = len(found.messages) - 1
        typer.echo(f"krunch: {found.id} has no turn {turn}; its turns are 0 to {last}", err=True)
        return 2
    settings = measuring_settings(profile)
    tokenizer_for(model, settings)
    with measuring_krunch(settings) as krunch:
        exchange = krunch.prepare(found.messages[: turn + 1], model=model, session=found.id, tools=found.tools)
    _print(found, exchange, turn)
    return 0


class _Used(NamedTuple):
    """Something that the text of a turn uses: what it is, the turn that defined it, how often, what it stands for."""

    kind: str
    turn: int
    times: int
    meaning: str


def _print(conversation: Conversation, exchange: Exchange, turn: int) -> None:
    original, sent = conversation.messages[turn], exchange.messages[turn]
    spans, used = _read(exchange.messages, turn)
    replaced = [one.meaning for one in used.values() if one.kind in ("phrase", "lines")]
    out = console()
    out.print(_headline(conversation, exchange.report.messages[turn]), soft_wrap=True)
    sides = Table(expand=True, show_lines=False)
    sides.add_column("original", ratio=1, overflow="fold")
    sides.add_column("sent", ratio=1, overflow="fold")
    sides.add_row(
        _highlighted(_shown(original), _occurrences(replaced, _shown(original))), _highlighted(_shown(sent), spans)
    )
    out.print(sides)
    if not used:
        return
    meanings = Table("mark", "what it is", "defined in turn", "times here", "stands for")
    for name, one in used.items():
        shown = Text(_shortened(one.meaning).translate(CONTROLS), overflow="fold")
        turns = "" if one.turn < 0 else str(one.turn)
        meanings.add_row(Text(name, style=_HIGHLIGHT), one.kind, turns, str(one.times), shown)
    out.print(meanings)


def _read(sent: Sequence[Message], turn: int) -> tuple[list[tuple[int, int]], dict[str, _Used]]:
    """Where the marks stand in what is shown of a turn, and what they mean, read as anybody can who has the request."""
    reader, defined = Reader(), dict[str, int]()
    places: list[tuple[int, int]] = []
    used: dict[str, _Used] = {}
    for index, message in enumerate(sent[: turn + 1]):
        start = 0
        for text in texts(message):
            dictionary, known = reader.dictionary, len(reader.dictionary.definitions)
            spans = legend.spans(text, View(dictionary, known)) if index == turn else []
            lines: dict[Segment, str] = {
                segment: meaning for segment, meaning in reader.read(text) if isinstance(segment, Mark)
            }
            defined |= {definition.name: index for definition in dictionary.definitions[known:]}
            for span in spans:
                places.append((start + span.start, start + span.end))
                before = used.get(span.name) or _meaning(span.name, dictionary, defined, lines)
                if before is not None:
                    used[span.name] = before._replace(times=before.times + (not span.defines))
            start += len(text) + 1
    return places, used


def _meaning(
    name: str, dictionary: Dictionary, defined: Mapping[str, int], lines: Mapping[Segment, str]
) -> _Used | None:
    """What a mark stands for; None for one that has no meaning of its own, such as what escapes a literal."""
    if name in lines:
        return _Used("lines", -1, 0, lines[name])
    if style := STYLES.get(name[2:-1]):
        indent = f", indented by {style.indent!r}" if style.indent else ""
        return _Used("style", -1, 0, f"JSON with {style.comma!r} and {style.colon!r}{indent}")
    position = dictionary.position.get(name)
    if position is None:
        return None
    definition = dictionary.definitions[position]
    if isinstance(definition, Shape):
        keys = dict.fromkeys(string[1:] for string in definition.keys[2:] if string.startswith("."))
        return _Used("shape", defined[name], 0, "keys " + ", ".join(keys))
    return _Used(definition.kind, defined[name], 0, definition.text)


def _shown(message: Message) -> str:
    return "\n".join(texts(message)).translate(CONTROLS)


def _shortened(meaning: str) -> str:
    """A meaning on one line; of a long one the beginning and the end."""
    if len(meaning) > 2 * _PART:
        meaning = f"{meaning[:_PART]} … {meaning[-_PART:]}"
    return json.dumps(meaning, ensure_ascii=False)


def _headline(conversation: Conversation, report: MessageReport) -> Text:
    saved = report.tokens_before - report.tokens_after
    share = saved / report.tokens_before if report.tokens_before else 0.0
    return Text(
        f"{conversation.id}, turn {report.index} ({report.role}): {report.reason}. "
        f"{report.tokens_before:,} tokens plain, {report.tokens_after:,} sent "
        f"({report.overhead_tokens:,} of them legend), {percent(share)} saved"
    )


def _occurrences(meanings: Iterable[str], text: str) -> list[tuple[int, int]]:
    """Where any of these stands in a text, the longest first."""
    ordered = sorted((meaning.translate(CONTROLS) for meaning in meanings if meaning), key=len, reverse=True)
    return [found.span() for found in re.finditer("|".join(map(re.escape, ordered)), text)] if ordered else []


def _highlighted(text: str, places: Iterable[tuple[int, int]]) -> Text:
    shown = Text(text)
    for start, end in places:
        shown.stylize(_HIGHLIGHT, start, end)
    return shown
