"""`krunch sessions`, `history`, `check`, `export`, `import` and `forget`: the history store from the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from krunch_plugins.cli.embedders import by_words
from krunch_plugins.cli.terminal import console, printable
from krunch_plugins.krunch import Krunch
from krunch_plugins.settings import Settings
from krunch_plugins.storage.store import ConversationStore

if TYPE_CHECKING:
    from pathlib import Path


def sessions(tenant: str | None) -> int:
    """Print the sessions of a tenant; the exit code."""
    table = Table("session", "turns", "bytes", "begun", "last used", "summary")
    with _open() as store:
        for session in store.sessions(tenant):
            info = store.info(session, tenant)
            if info is not None:
                figures = (f"{info.turns:,}", f"{info.bytes:,}", _time(info.created), _time(info.last_used))
                table.add_row(printable(session), *figures, printable(info.summary or ""))
    console().print(table)
    return 0


def history(session: str, tenant: str | None) -> int:
    """Print the turns of a session; the exit code."""
    with _open() as store:
        info = store.info(session, tenant)
        if info is None:
            return _unknown(session)
        out = console()
        if info.summary:
            out.print(printable(info.summary), style="italic")
        for turn in store.turns(session, tenant=tenant):
            role = turn.message.get("role", "")
            out.print(printable(f"{turn.number}  {_time(turn.timestamp)}  {role}"), style="bold")
            content = turn.message.get("content")
            out.print(printable(content if isinstance(content, str) else json.dumps(turn.message, ensure_ascii=False)))
    return 0


def check(*, repair: bool) -> int:
    """Read everything; the exit code is 1 if something is damaged."""
    with _open() as store:
        report = store.check(repair=repair)
    typer.echo(f"{report.tenants} tenants, {report.sessions} sessions, {report.turns} turns, {report.frames} frames")
    for damage in report.damage:
        typer.echo(f"damaged: {damage.key}: {damage.why}")
    if report.damage and not repair:
        typer.echo("krunch check --repair moves what is damaged aside and keeps the rest readable", err=True)
    if repair and report.damage:
        typer.echo(f"{report.quarantined} moved aside, {report.salvaged} salvaged, {report.missing} turns missing")
    return 0 if report.ok else 1


def export(session: str | None, tenant: str | None) -> int:
    """Write a session, or all of a tenant's, as JSON lines to standard output; the exit code."""
    with _open() as store:
        if session is not None and store.info(session, tenant) is None:
            return _unknown(session)
        for one in store.sessions(tenant) if session is None else [session]:
            for line in store.export(one, tenant=tenant):
                sys.stdout.write(line.rstrip("\n") + "\n")
    return 0


def import_(file: Path, tenant: str | None) -> int:
    """Store the sessions of an exported file; the exit code."""
    with _open() as store, file.open(encoding="utf-8") as lines:
        try:
            imported = store.import_(lines, tenant=tenant)
        except ValueError as error:
            typer.echo(f"krunch: {file} was not imported whole: {error}", err=True)
            return 2
    for session in imported:
        console().print(printable(f"imported {session}"))
    return 0


def forget(session: str, tenant: str | None) -> int:
    """Remove every trace of a session; the exit code."""
    settings = Settings.from_environment()
    # The indexes of recall forget with it. Vectors do so without their embedder, which only the program has.
    with _open() as store, Krunch(by_words(settings), store=store) as krunch:
        if store.info(session, tenant) is None:
            return _unknown(session)
        removed = krunch.forget(session, tenant=tenant)
    assert removed is not None
    for name, count in asdict(removed).items():
        if name != "scrubbed" and count:
            typer.echo(f"{name.replace('_', ' ')} removed: {count}")
    if not removed.scrubbed:
        typer.echo("another process was reading, or the disk is full: free pages are overwritten later", err=True)
    return 0


def _open() -> ConversationStore:
    """The store of the settings, else the one in the platform's place for a user's data."""
    settings = Settings.from_environment()
    return ConversationStore(settings.home, durability=settings.durability)


def _unknown(session: str) -> int:
    typer.echo(f"krunch: there is no session {session!r}; krunch sessions lists them, --tenant chooses whose", err=True)
    return 2


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
