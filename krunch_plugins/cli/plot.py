"""`krunch replay --plot`: tokens and cost per request, plain against sent."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING

import typer

from krunch_plugins.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from krunch_plugins.replay import Played

MOST_LINES = 40
"""Conversations are parted by thin lines as long as there are no more than this; more would be a grey area."""


def check_plot(path: Path, command: str = "krunch replay --plot") -> None:
    """Find out before the work, not after it, that nothing can be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
        typer.BadParameter: the picture's folder does not exist, or its suffix is no format.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtra("plot", command)
    from matplotlib.figure import Figure

    folder, formats = path.resolve().parent, Figure().canvas.get_supported_filetypes()
    if not folder.is_dir():
        raise typer.BadParameter(f"the folder {folder} does not exist", param_hint="--plot")
    if path.suffix.removeprefix(".").lower() not in formats:
        raise typer.BadParameter(f"{path.name} must end in one of .{', .'.join(formats)}", param_hint="--plot")


def draw(played: Sequence[Played], path: Path) -> None:
    """Draw all requests, in the order in which they were played, into a picture; its format is the suffix's."""
    from matplotlib.figure import Figure

    requests = [request for one in played for request in one.requests]
    numbers = range(1, len(requests) + 1)
    figure = Figure(figsize=(10, 7), layout="constrained")
    tokens, cost = figure.subplots(2, 1, sharex=True)
    tokens.plot(numbers, [request.plain_tokens for request in requests], color="tab:gray", label="plain")
    tokens.plot(numbers, [request.sent_tokens for request in requests], color="tab:purple", label="sent")
    tokens.set_ylabel("tokens per request")
    cost.plot(numbers, [request.plain_cost for request in requests], color="tab:gray", label="plain")
    cost.plot(numbers, [request.sent_cost for request in requests], color="tab:purple", label="sent")
    cost.set_ylabel("cost per request, with prefix caching\n(in plain input tokens)")
    cost.set_xlabel("request")
    starts = list(accumulate(len(one.requests) for one in played))[:-1]
    for axes in (tokens, cost):
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
        for start in starts if len(played) <= MOST_LINES else ():
            axes.axvline(start + 0.5, color="lightgray", linewidth=0.6, zorder=0)
    figure.savefig(path, dpi=120)
