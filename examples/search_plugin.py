"""A search plugin: it finds turns in a way of its own, and takes part in every search as an equal.

What all plugins find is fused by reciprocal rank: a turn that two of them find comes before one that only one finds,
and `hit.found_by` says who found it at which rank. `Settings(recall={"weights": {"tickets": 2.0}})` lets this one count
more.
"""

from __future__ import annotations

import re
import tempfile
from typing import TYPE_CHECKING

from krunch_plugins import ConversationStore, Krunch, SearchHit, SearchQuery, Settings, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

TICKET = re.compile(r"\b[A-Z]{2,10}-[0-9]+\b")


class Tickets:
    """Finds the turns that name the same tickets as the query: an id says more than all words around it.

    Args:
        store: whose turns.
    """

    name = "tickets"

    def __init__(self, store: ConversationStore) -> None:
        self._store = store

    @hookimpl
    def on_search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """The newest first. A plugin answers for `query.tenant` and nobody else; other filters are applied for it."""
        wanted = set(TICKET.findall(query.text))
        if not wanted:
            return []
        sessions = self._store.sessions(query.tenant) if query.session is None else [query.session]
        hits = []
        for session in sessions:
            for turn in self._store.turns(session, tenant=query.tenant):
                shared = wanted & set(TICKET.findall(str(turn.message.get("content"))))
                if shared:
                    hits.append(SearchHit(turn, session, score=float(len(shared))))
        return sorted(hits, key=lambda hit: (-hit.score, -hit.turn.timestamp, -hit.turn.number))[: query.k]


def main() -> None:
    """Show that both find something, and who found what."""
    with (
        tempfile.TemporaryDirectory() as home,
        ConversationStore(home) as store,
        Krunch(Settings(), store=store, plugins=[Tickets(store)]) as krunch,
    ):
        store.append("monday", [{"role": "user", "content": "OPS-17: the nightly backup fails on the mail server"}])
        store.append("tuesday", [{"role": "user", "content": "OPS-17 again. Ann thinks that it is the firewall."}])
        store.append("friday", [{"role": "user", "content": "Why are backups so slow? The disk is new."}])
        for hit in krunch.search("What was the backup problem in OPS-17?"):
            print(f"{hit.session:8} {dict(hit.found_by)}  {hit.turn.message['content']}")


if __name__ == "__main__":
    main()
