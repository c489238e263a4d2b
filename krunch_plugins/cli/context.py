"""`krunch context`: what a program would go on with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from krunch_plugins.cli.embedders import for_searching
from krunch_plugins.cli.terminal import console, printable
from krunch_plugins.krunch import Krunch
from krunch_plugins.settings import Settings
from krunch_plugins.storage.store import ConversationStore

if TYPE_CHECKING:
    from krunch_plugins.settings import ContextMode


def run(session: str, mode: ContextMode, query: str | None, budget: int, tenant: str | None) -> int:
    """Print a context; the exit code."""
    settings = Settings.from_environment()
    with ConversationStore(settings.home, durability=settings.durability) as store:
        if store.info(session, tenant) is None:
            typer.echo(f"krunch: there is no session {session!r}; krunch sessions lists them", err=True)
            return 2
        with Krunch(for_searching(settings, store, tenant) if mode == "smart" else settings, store=store) as krunch:
            messages = krunch.context(session, mode, query=query, budget=budget, tenant=tenant)
    out = console()
    for message in messages:
        out.print(printable(str(message.get("role", ""))), style="bold")
        content = message.get("content")
        text = content if isinstance(content, str) and len(message) == 2 else json.dumps(message, ensure_ascii=False)  # noqa: PLR2004 - role and content
        out.print(printable(text))
    return 0
