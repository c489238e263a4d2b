"""Commands beside a program with an embedder of its own: they leave its vectors alone, and start none beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from krunch_plugins.recall.embedders import BUILT_IN
from krunch_plugins.recall.embedding_pages import PAGE, models_of

if TYPE_CHECKING:
    from krunch_plugins.settings import Settings
    from krunch_plugins.storage.store import ConversationStore

_LOOKED_AT = 20
"""Sessions that are looked at, the last used first: those of a program that runs have their vectors soon."""


def by_words(settings: Settings) -> Settings:
    """The settings with no voice that embeds anything."""
    voices = settings.recall.voices & {"words"}
    return settings.model_copy(update={"recall": settings.recall.model_copy(update={"voices": voices})})


def for_searching(settings: Settings, store: ConversationStore, tenant: str | None) -> Settings:
    """The settings, without what embeds where a tenant's vectors belong to an embedder that a command has not.

    Says so on standard error: a command has the built-in embedder only, whose vectors would be made of all turns first.
    """
    if not settings.recall.voices & {"vectors", "topics"}:
        return settings
    models = _models(store, tenant)
    if not models or any(name.startswith(BUILT_IN) for name in models):
        return settings
    names = ", ".join(map(repr, sorted(models)))
    typer.echo(f"krunch: the vectors here are of {names}, which is the program's: this looks for words only", err=True)
    return by_words(settings)


def _models(store: ConversationStore, tenant: str | None) -> set[str]:
    """Names of the embedders whose vectors a tenant's last used sessions have."""
    found: set[str] = set()
    for session in store.sessions(tenant)[:_LOOKED_AT]:
        for turn in store.recent(session, 1, tenant=tenant):
            # The newest may wait for theirs, and those before may lie in the page before.
            for number in {turn.number, max(0, turn.number - PAGE)}:
                found |= models_of(store, session, number, tenant)
    return found
