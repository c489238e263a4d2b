"""What a query finds in KrunchStore without embeddings of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krunch_langchain import KrunchStore
from langgraph.store.base import PutOp

from krunch_plugins import ConversationStore, Krunch, SearchHit, SearchQuery, Settings, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


WORDY = "Ann told us at great length one evening in the long winter, after much else, that her favourite food is trout."
MINE = {"food": WORDY, "job": "She repairs church organs in the north.", "car": "The car is blue and needs new tyres."}


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    others=st.integers(0, 12),
    each=st.integers(1, 12),
    nested=st.booleans(),
    kind=st.sampled_from([None, "mine"]),
    order=st.permutations(list(MINE)),
    limit=st.integers(1, 3),
)
def test_the_most_relevant_comes_first_whatever_else_is_stored(
    tmp_path_factory: pytest.TempPathFactory,
    others: int,
    each: int,
    kind: str | None,
    order: list[str],
    limit: int,
    *,
    nested: bool,
) -> None:
    """Without `embed`: other namespaces and items that a filter leaves out, all better fits, push nothing out."""
    with ConversationStore(tmp_path_factory.mktemp("store"), upkeep_seconds=0) as conversations:
        store = KrunchStore(conversations, index={"fields": ["text"]})
        better = {"text": "favourite food, favourite food always", "kind": "other"}
        for other in range(others):
            name = ("users", "ann", f"more{other}") if kind else ("users", f"u{other}", "prefs")
            store.batch([PutOp(name, f"a{number}", better) for number in range(each)])
        for place, key in enumerate(order):
            name = ("users", "ann", f"part{place}") if nested else ("users", "ann", "prefs")
            store.put(name, key, {"text": MINE[key], "kind": "mine"})

        wanted = {"kind": kind} if kind else None
        found = store.search(("users", "ann"), query="favourite food", filter=wanted, limit=limit)

        assert found[0].key == "food"
        assert found[0].score is not None
        assert len({item.key for item in found}) == limit
        pages = [
            store.search(("users", "ann"), query="favourite food", filter=wanted, limit=1, offset=n) for n in range(3)
        ]
        assert [page[0].key for page in pages][:limit] == [item.key for item in found]
        assert {page[0].key for page in pages} == set(MINE)


def test_a_crowd_of_more_than_a_thousand(tmp_path: Path) -> None:
    """However many others fit better, all items that are asked for are ranked."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as conversations:
        store = KrunchStore(conversations)
        better = {"text": "favourite food, favourite food always", "kind": "other"}
        store.batch([PutOp(("users", "ann", "prefs"), f"a{number}", better) for number in range(1200)])
        store.put(("users", "ann", "prefs"), "job", {"text": MINE["job"], "kind": "mine"})
        store.put(("users", "ann", "pets"), "food", {"text": MINE["food"], "kind": "mine"})

        for filters in ({"kind": "mine"}, {"kind": {"$ne": "other"}}):
            found = store.search(("users", "ann"), query="favourite food", filter=filters, limit=2)
            assert [item.key for item in found] == ["food", "job"]
            assert all(item.score is not None for item in found)


def test_a_search_among_very_many_reads_few(tmp_path: Path) -> None:
    """Where there are more than a thousand items, no more hits are asked for than a page needs, and pages follow on."""

    class Asked:
        depths: ClassVar[list[int]] = []

        @hookimpl
        def on_search(self, query: SearchQuery) -> list[SearchHit]:
            self.depths.append(query.k)
            return []

    with (
        ConversationStore(tmp_path, upkeep_seconds=0) as conversations,
        Krunch(Settings(), store=conversations, plugins=[Asked()]) as krunch,
    ):
        store = KrunchStore(conversations, krunch=krunch)
        texts = [f"The {kind} of house number {number} is old." for kind in ("door", "roof") for number in range(600)]
        store.batch([PutOp(("houses",), f"h{number}", {"text": text}) for number, text in enumerate(texts)])
        krunch.flush()
        pages = [store.search(("houses",), query="an old roof", limit=5, offset=start) for start in (0, 5)]
        both = store.search(("houses",), query="an old roof", limit=10)

        assert max(Asked.depths) <= krunch.settings.recall.depth
        assert [item.key for page in pages for item in page] == [item.key for item in both]
        assert all("roof" in item.value["text"] for item in both)
        everything = store.search(("houses",), query="an old roof", limit=2000)
        assert len({item.key for item in everything}) == 1200
