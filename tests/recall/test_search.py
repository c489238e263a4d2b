"""Searching with all plugins: fusion, filters, other people's plugins, the cache, and what happens without a store."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunch_plugins import ConversationStore, Krunch, SearchHit, SearchQuery, Settings, Turn, hookimpl
from krunch_plugins.errors import NotStorable, StoreUnavailable
from krunch_plugins.recall.files import FileLock
from krunch_plugins.recall.search import fuse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "search_plugin.py"


def hit(number: int, session: str = "s", role: str = "user") -> SearchHit:
    """A turn that somebody found."""
    return SearchHit(Turn(number, {"role": role, "content": f"turn {number}"}, timestamp=float(number)), session, 0.5)


class Finder:
    """Always finds the same."""

    def __init__(self, name: str, hits: Sequence[SearchHit]) -> None:
        self.name, self.hits = name, hits
        self.asked: list[SearchQuery] = []

    @hookimpl
    def on_search(self, query: SearchQuery) -> Sequence[SearchHit]:
        self.asked.append(query)
        return self.hits


def places(hits: Sequence[SearchHit]) -> list[tuple[str, int]]:
    """Which turns were found."""
    return [(found.session, found.turn.number) for found in hits]


def test_what_all_plugins_find_is_fused_by_reciprocal_rank() -> None:
    """A turn's score is the sum of 1 / (60 + rank) over who found it; each hit says who did at which rank."""
    first, second = Finder("first", [hit(1), hit(2), hit(3)]), Finder("second", [hit(3), hit(4)])
    with Krunch(Settings(), plugins=[first, second]) as krunch:
        hits = krunch.search("anything", k=3)

    assert places(hits) == [("s", 3), ("s", 1), ("s", 2)]
    assert hits[0].found_by == {"first": 3, "second": 1}
    assert hits[0].score == pytest.approx(1 / 63 + 1 / 61)
    assert hits[1].found_by == {"first": 1}
    assert hits[1].turn.message == {"role": "user", "content": "turn 1"}


def test_a_weight_makes_a_plugin_count_more() -> None:
    """The settings say by name what a plugin counts; with 0 it only adds what nobody else found."""
    finders = [Finder("a", [hit(1)]), Finder("b", [hit(2)])]
    for weights, right in (({"b": 2.0}, [2, 1]), ({"a": 1.5}, [1, 2]), ({"a": 0.0}, [2, 1])):
        with Krunch(Settings(recall={"weights": weights}), plugins=finders) as krunch:
            assert [number for _, number in places(krunch.search("x"))] == right


def test_a_turn_that_a_plugin_names_twice_counts_once() -> None:
    """The better rank counts."""
    with Krunch(Settings(), plugins=[Finder("a", [hit(1), hit(1), hit(1)]), Finder("b", [hit(2)])]) as krunch:
        hits = krunch.search("x")

    assert [dict(found.found_by) for found in hits] == [{"a": 1}, {"b": 1}]


@given(
    answers=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.builds(hit, st.integers(0, 9), st.sampled_from("st")), max_size=12)
    ),
    k=st.integers(1, 30),
)
def test_fusion_is_determined_by_what_was_found(answers: dict[str, list[SearchHit]], k: int) -> None:
    """At most k hits, no turn twice, scores fall, and the order in which plugins answered plays no part."""
    hits = fuse(answers, {}, 60.0, k)

    found = {place for those in answers.values() for place in places(those)}
    assert len(hits) == min(k, len(found))
    assert len(set(places(hits))) == len(hits)
    assert [one.score for one in hits] == sorted((one.score for one in hits), reverse=True)
    assert hits == fuse(dict(reversed(answers.items())), {}, 60.0, k)


def test_filters_hold_for_every_plugin() -> None:
    """What another's plugin finds outside of session, time, role or metadata is left out."""
    finder = Finder("a", [hit(1), hit(2), hit(3, role="tool"), hit(4, session="other")])
    with Krunch(Settings(), plugins=[finder]) as krunch:
        assert places(krunch.search("x", session="s")) == [("s", 1), ("s", 2), ("s", 3)]
        assert places(krunch.search("x", after=2.0, before=4.0)) == [("s", 2), ("s", 3)]
        assert places(krunch.search("x", roles=["tool"])) == [("s", 3)]
        assert places(krunch.search("x", roles="tool")) == [("s", 3)]
        assert krunch.search("x", metadata={"a": 1}) == []


@pytest.mark.parametrize("voice", ["words", "vectors"])
def test_metadata_is_compared_as_it_is_stored(voice: str, tmp_path: Path) -> None:
    """A tuple is the list that it has become in the store, for every voice; what nothing could hold is an error."""
    turn = Turn(0, {"role": "user", "content": "a heron at the lake"}, 1.0, metadata={"seen": ("lake", 2)})
    with Krunch(Settings(home=str(tmp_path), recall={"voices": [voice]})) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [turn, {"role": "user", "content": "a heron"}])
        krunch.flush()

        for wanted in (("lake", 2), ["lake", 2]):
            assert places(krunch.search("heron", metadata={"seen": wanted})) == [("s", 0)]
        with pytest.raises(NotStorable, match=r"metadata\.seen is of type set"):
            krunch.search("heron", metadata={"seen": {"lake"}})


def test_a_plugin_is_handed_the_whole_query() -> None:
    """All that was asked, as it was asked; k is how many hits a plugin may return, which is more than the caller's."""
    finder = Finder("a", [])
    with Krunch(Settings(recall={"depth": 7}), plugins=[finder]) as krunch:
        krunch.search("x", session="s", tenant="t", k=2, after=1.0, before=2.0, roles=["user"], metadata={"a": 1})

    assert finder.asked == [SearchQuery("x", "s", "t", 7, 1.0, 2.0, frozenset({"user"}), {"a": 1})]


@pytest.mark.parametrize(
    "broken",
    [
        SearchHit(None, "s", 1.0),  # type: ignore[arg-type]  # what a careless plugin may return
        SearchHit(Turn(0, {}, 1.0), None, 1.0),  # type: ignore[arg-type]
        SearchHit(Turn(None, {}, 1.0), "s", 1.0),  # type: ignore[arg-type]
        SearchHit(Turn(0, "text", 1.0), "s", 1.0),  # type: ignore[arg-type]
    ],
)
def test_a_broken_hit_spoils_no_search(broken: SearchHit) -> None:
    """A plugin whose hits cannot be worked with counts as one that found nothing."""
    with Krunch(Settings(), plugins=[Finder("broken", [broken]), Finder("whole", [hit(1)])]) as krunch:
        assert places(krunch.search("x", after=0.5, roles=["user"])) == [("s", 1)]


@pytest.mark.parametrize("k", [0, -1])
def test_a_search_is_for_one_turn_at_least(k: int) -> None:
    """Less is an error that says so."""
    with Krunch(Settings()) as krunch, pytest.raises(ValueError, match="at least"):
        krunch.search("x", k=k)


def test_without_a_store_only_outside_plugins_are_asked() -> None:
    """There is nothing to search, no index is made, and flush has nothing to wait for."""
    with Krunch(Settings()) as krunch:
        assert krunch.search("x") == []
        assert krunch.flush()
        assert {info.name for info in krunch.plugins()} == {"compression", "recent"}


def test_the_voices_are_plugins_of_their_own(open_krunch: Callable[..., Krunch]) -> None:
    """Each built-in search is listed by its name, as far as the settings ask for it."""
    names = {info.name: info for info in open_krunch(voices=["words"]).plugins() if "on_search" in info.hooks}

    assert list(names) == ["words"]
    assert names["words"].builtin


async def test_asearch_finds_the_same(open_krunch: Callable[..., Krunch]) -> None:
    """The async twin takes the same arguments and gives the same answer."""
    krunch = open_krunch()
    assert krunch.store is not None
    for number in range(12):
        message = {"role": ("user", "assistant")[number % 2], "content": f"amber and teal {number}"}
        turn = Turn(0, message, float(number), None, {"odd": number % 4 > 1})
        krunch.store.append(f"s{number % 3}", [turn], tenant=("mine", None)[number % 5 == 0])
    every: list[dict[str, Any]] = [
        {},
        {"k": 3},
        {"session": "s1"},
        {"after": 3.0, "before": 9.0},
        {"roles": ["assistant"]},
        {"metadata": {"odd": True}},
    ]
    found = [await krunch.asearch("amber", tenant="mine", **asked) for asked in every]

    assert found == [krunch.search("amber", tenant="mine", **asked) for asked in every]
    assert [len(hits) for hits in found] == [9, 3, 3, 5, 5, 5]
    assert len(await krunch.asearch("amber")) == 3


async def test_asearch_lets_others_run() -> None:
    """A search that waits does not keep the event loop."""
    released = threading.Event()

    class Waits:
        @hookimpl
        def on_search(self) -> list[SearchHit]:
            assert released.wait(30)
            return [hit(1)]

    with Krunch(Settings(), plugins=[Waits()]) as krunch:
        searching = asyncio.create_task(krunch.asearch("anything"))
        await asyncio.sleep(0)
        released.set()

        assert places(await searching) == [("s", 1)]


def test_the_example_takes_part_as_an_equal(tmp_path: Path) -> None:
    """The example's plugin and the words each say what they found, and the turn that both found comes first."""
    spec = importlib.util.spec_from_file_location("example_search_plugin", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with ConversationStore(tmp_path) as store:
        options = Settings(recall={"voices": ["words"]})
        with Krunch(options, store=store, plugins=[example.Tickets(store)]) as krunch:
            for session, text in (("a", "OPS-17: backup fails"), ("b", "OPS-17 again"), ("c", "backup backup")):
                store.append(session, [{"role": "user", "content": text}])
            store.append("d", [{"role": "user", "content": "OPS-17 backup"}], tenant="other")
            hits = krunch.search("backup in OPS-17")

    assert {found.session: set(found.found_by) for found in hits} == {
        "a": {"tickets", "words"},
        "b": {"tickets", "words"},
        "c": {"words"},
    }
    assert hits[-1].session == "c"


def test_a_repeated_query_is_answered_from_the_cache_until_something_changes(
    open_krunch: Callable[..., Krunch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question asks no plugin again; an append by this or another Krunch, or forgetting, has it asked anew."""
    krunch, other = open_krunch(), open_krunch()
    assert krunch.store is not None
    assert other.store is not None
    asked: list[SearchQuery] = []
    voice = krunch._recall._voices["words"]
    search = voice.search

    def counted(query: SearchQuery) -> Sequence[SearchHit]:
        asked.append(query)
        return search(query)

    monkeypatch.setattr(voice, "search", counted)

    def found() -> tuple[int, int]:
        before = len(asked)
        return len(krunch.search("amber")), len(asked) - before

    krunch.store.append("s", [{"role": "user", "content": "amber"}])
    assert [found(), found()] == [(1, 1), (1, 0)]
    krunch.store.append("s", [{"role": "user", "content": "more amber"}])
    assert [found(), found()] == [(2, 1), (2, 0)]
    other.store.append("t", [{"role": "user", "content": "amber elsewhere"}])
    assert found() == (3, 1)
    krunch.store.append("u", [{"role": "user", "content": "amber of others"}], tenant="acme")
    assert found() == (3, 0)
    krunch.forget("s")
    assert found() == (1, 1)
    other.forget("t")
    assert found() == (0, 1)


@pytest.mark.parametrize("voices", [["words"], ["vectors"], ["topics"]])
def test_a_cached_answer_holds_nothing_that_another_process_forgot(
    open_krunch: Callable[..., Krunch], voices: list[str], tmp_path: Path
) -> None:
    """Also where the index is behind, because another process has the right to write it and takes its time."""
    krunch = open_krunch(voices=voices, wait_seconds=0.0)
    assert krunch.store is not None
    for session in ("s", "t"):
        krunch.store.append(session, [{"role": "user", "content": f"amber of {session}"}])
    krunch.flush()
    scope = "s" if "topics" in voices else None
    folder = next((tmp_path / "home" / "recall").iterdir())
    with FileLock(folder / "words.writer").holding() as first, FileLock(folder / "vectors.lock").holding() as second:
        assert first
        assert second
        krunch.store.append("u", [{"role": "user", "content": "violin"}])
        assert ("s", 0) in places(krunch.search("amber", session=scope))
        assert ("s", 0) in places(krunch.search("amber", session=scope))
        with ConversationStore(tmp_path / "home") as elsewhere:
            elsewhere.forget("s")
        assert ("s", 0) not in places(krunch.search("amber", session=scope))


def test_an_answer_of_an_index_that_is_behind_is_not_kept(open_krunch: Callable[..., Krunch], tmp_path: Path) -> None:
    """While another process builds the index, a search makes do with what there is, and the next one asks again."""
    krunch = open_krunch(wait_seconds=0.0)
    other = open_krunch()
    assert krunch.store is not None
    assert krunch.search("amber") == []
    folder = next((tmp_path / "home" / "recall").iterdir())
    index = krunch._recall._voices["words"]._index  # type: ignore[attr-defined]  # what happens to it is the point
    with FileLock(folder / "words.writer").holding():
        krunch.store.append("s", [{"role": "user", "content": "amber"}])
        assert krunch.search("amber") == []
        events, _ = krunch.store.since(None)
        with index.database(None)._writing, index.database(None)._translated():
            index.apply(None, events, None)  # a build that goes on
        assert places(krunch.search("amber")) == [("s", 0)]
    assert places(other.search("amber")) == [("s", 0)]


def test_a_voice_whose_index_cannot_be_opened_leaves_the_answer_to_the_others(tmp_path: Path) -> None:
    """That is logged and no error of the search; a direct call that needs the index says what to check."""
    with Krunch(Settings(home=tmp_path)) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": "amber"}])
        krunch.flush()
    (folder,) = (tmp_path / "recall").iterdir()
    (folder / "words.db").unlink()
    (folder / "words.db").mkdir()
    with Krunch(Settings(home=tmp_path)) as krunch:
        for _ in range(2):
            assert [dict(found.found_by) for found in krunch.search("amber")] == [{"vectors": 1}]
        assert not krunch.flush()
        with pytest.raises(StoreUnavailable, match="check its permissions"):
            krunch.forget("s")
        (folder / "words.db").rmdir()
        krunch.forget("s")

        assert krunch.search("amber") == []


def test_the_cache_is_not_reached_through_what_it_gives(open_krunch: Callable[..., Krunch]) -> None:
    """Whoever changes a hit does not change what the same question finds next."""
    krunch = open_krunch()
    assert krunch.store is not None
    krunch.store.append("s", [{"role": "user", "content": [{"type": "text", "text": "amber"}]}])
    right = krunch.search("amber")
    for _ in range(2):
        (found,) = krunch.search("amber")
        found.turn.message["content"][0]["text"] = "changed"

    assert krunch.search("amber") == right


def test_the_cache_holds_only_so_much_text(open_krunch: Callable[..., Krunch], monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers with long turns leave it earlier, the oldest first, and one that is too long is not kept at all."""
    monkeypatch.setattr("krunch_plugins.recall.search._MOST_CHARACTERS", 10_000)
    krunch = open_krunch(window_weight=0.0)
    assert krunch.store is not None
    for number, name in enumerate(("amber", "teal", "violin", "huge")):
        content = [{"type": "text", "text": name + " x" * (6_000 if name == "huge" else 2_000)}]
        krunch.store.append(f"s{number}", [{"role": "user", "content": content}])
    cache = krunch._recall._cache

    for name in ("amber", "teal", "violin"):
        assert len(krunch.search(name)) == 1
    assert [key.split('"')[1] for key in cache._answers] == ["teal", "violin"]
    assert len(krunch.search("huge")) == 1
    assert [key.split('"')[1] for key in cache._answers] == ["teal", "violin"]
    krunch.forget("s1")
    assert not cache._answers
    assert cache._characters == 0


def test_with_an_outside_plugin_nothing_is_cached(open_krunch: Callable[..., Krunch]) -> None:
    """What others find may change without a word to us."""
    krunch = open_krunch()
    finder = Finder("mine", [hit(1)])
    krunch.register(finder)

    assert places(krunch.search("x")) == [("s", 1)]
    finder.hits = [hit(2)]
    assert places(krunch.search("x")) == [("s", 2)]


def test_a_hit_whose_turn_is_gone_is_left_out(open_krunch: Callable[..., Krunch]) -> None:
    """Between finding and reading a session may be forgotten; the answer then is shorter, not an error."""
    krunch = open_krunch()
    assert krunch.store is not None
    store = krunch.store
    for session in "ab":
        store.append(session, [{"role": "user", "content": "amber"}])

    class Forgets:
        @hookimpl(trylast=True)
        def on_search(self) -> list[Any]:
            store.forget("a")
            return []

    krunch.register(Forgets())
    assert [place for place in places(krunch.search("amber")) if place[0] == "b"] == [("b", 0)]
