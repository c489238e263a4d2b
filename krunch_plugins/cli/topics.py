"""`krunch topics`: what a session is about, as a heat map of its topic memory with the topics' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from krunch_plugins.cli.plot import check_plot
from krunch_plugins.cli.terminal import console, printable
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.topics import SessionTopics
from krunch_plugins.settings import Settings
from krunch_plugins.storage.store import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from krunch_plugins.recall.topics import Topic
    from krunch_plugins.turns import Turn

_SHADES = " ·░▒▓█"
_COLOURS = ("", "blue", "cyan", "green", "yellow", "red")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TURNS_SHOWN = 8


def run(session: str, *, tenant: str | None, size: int, plot: Path | None) -> int:
    """Print the map, and draw it if a picture is asked for; the exit code."""
    if plot is not None:
        check_plot(plot, "krunch topics --plot")
    settings = Settings.from_environment()
    with ConversationStore(settings.home, durability=settings.durability) as store:
        turns = store.turns(session, tenant=tenant)
    if not turns:
        typer.echo(
            f"krunch: there is no session {session!r}; krunch sessions lists them, --tenant chooses whose", err=True
        )
        return 2
    memory, topics = _remember(turns, size)
    if plot is not None:
        draw(memory, topics, session, plot)
    out = console()
    out.print(_map(memory, topics))
    table = Table("", "topic", "heat", "place", "turns")
    for letter, topic in zip(_LETTERS, topics, strict=False):
        shown = ", ".join(map(str, topic.turns[-_TURNS_SHOWN:]))
        more = len(topic.turns) - _TURNS_SHOWN
        turns_of = f"{shown} and {more} before" if more > 0 else shown
        table.add_row(letter, printable(topic.name), f"{topic.heat:.2f}", f"{topic.x}, {topic.y}", turns_of)
    out.print(table)
    return 0


def draw(memory: SessionTopics, topics: Sequence[Topic], session: str, path: Path) -> None:
    """Draw the heat map into a picture; its format is the suffix's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(memory.memory.grid, cmap="inferno", vmin=0.0, origin="upper")
    size = memory.memory.width
    figure.colorbar(image, ax=axes, label="heat")
    for topic in topics:
        label = topic.name.replace("$", r"\$")  # matplotlib would read what stands between two as a formula
        side = "left" if topic.x < size / 5 else "right" if topic.x > size * 4 / 5 else "center"  # stay in the picture
        edge = "top" if topic.y < size / 20 else "bottom"
        axes.annotate(label, (topic.x, topic.y), color="white", fontsize=8, ha=side, va=edge)
        axes.plot(topic.x, topic.y, "w+", markersize=6)
    axes.set_title(f"{len(memory)} turns of {session}".replace("$", r"\$"))
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(path, dpi=120)


def _remember(turns: Sequence[Turn], size: int) -> tuple[SessionTopics, list[Topic]]:
    """The session's topic memory after all its turns, and the warm places; turns without any word have no place."""
    texts = [text_of(turn.message) for turn in turns]
    vectors = HashingEmbedder().embed(texts)
    some = np.flatnonzero(vectors.any(axis=1)).tolist()
    memory = SessionTopics(size)
    memory.add([turns[at].number for at in some], vectors[some])
    return memory, memory.topics([texts[at] for at in some], radius=max(2, size // 12))


def _map(memory: SessionTopics, topics: Sequence[Topic]) -> Text:
    """The grid, two rows in a line of text, with a letter at each topic."""
    grid = memory.memory.grid
    most = float(grid.max()) or 1.0
    letters = {(topic.x, topic.y // 2): letter for letter, topic in zip(_LETTERS, topics, strict=False)}
    lines = Text()
    for row in range(0, len(grid), 2):
        warm = grid[row : row + 2].max(axis=0) / most
        for column, share in enumerate(warm.tolist()):
            level = min(int(share * len(_SHADES)), len(_SHADES) - 1)
            letter = letters.get((column, row // 2))
            lines.append(letter or _SHADES[level], style="bold reverse" if letter else _COLOURS[level])
        lines.append("\n")
    return lines
