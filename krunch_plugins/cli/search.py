"""`krunch search`: old turns found again, from the command line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from krunch_plugins.cli.embedders import for_searching
from krunch_plugins.cli.terminal import console, printable
from krunch_plugins.krunch import Krunch
from krunch_plugins.recall.texts import text_of
from krunch_plugins.settings import Settings
from krunch_plugins.storage.store import ConversationStore

if TYPE_CHECKING:
    from krunch_plugins.turns import SearchHit

_SHOWN = 200
"""Characters of a turn that are shown."""


def run(query: str, *, session: str | None, tenant: str | None, k: int) -> int:
    """Print what is found; the exit code is 1 if that is nothing."""
    settings = Settings.from_environment()
    with (
        ConversationStore(settings.home, durability=settings.durability) as store,
        Krunch(for_searching(settings, store, tenant), store=store) as krunch,
    ):
        if not krunch.flush():
            typer.echo("not everything is indexed yet; what is missing is found later", err=True)
        hits = krunch.search(query, session=session, tenant=tenant, k=k)
    if not hits:
        typer.echo("nothing was found", err=True)
        return 1
    table = Table("session", "turn", "when", "who", "found by", "text")
    for hit in hits:
        table.add_row(
            printable(hit.session), str(hit.turn.number), _time(hit), _role(hit), _finders(hit), _excerpt(hit)
        )
    console().print(table)
    return 0


def _time(hit: SearchHit) -> str:
    return datetime.fromtimestamp(hit.turn.timestamp, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _role(hit: SearchHit) -> str:
    return str(printable(str(hit.turn.message.get("role", ""))))


def _finders(hit: SearchHit) -> str:
    """Who found it at which rank, the best rank first."""
    return ", ".join(f"{name} {rank}" for name, rank in sorted(hit.found_by.items(), key=lambda pair: pair[1]))


def _excerpt(hit: SearchHit) -> str:
    text = " ".join(text_of(hit.turn.message).split())
    return str(printable(text if len(text) <= _SHOWN else text[:_SHOWN] + " …"))
