"""Topic memory: near meanings lie near, turns warm their places, and the voice offers what is warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from krunch_plugins import Krunch, Settings
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.topics import SessionTopics, TopicMap
from krunch_plugins.settings import RecallSettings

if TYPE_CHECKING:
    from pathlib import Path

SUBJECTS = {
    "birds": "heron reeds kingfisher river wading beak feathers nest marsh osprey",
    "money": "invoice ledger payment overdue accountant quarter budget audit receipt tax",
    "servers": "kubernetes pod container restart cluster deployment replica ingress node helm",
    "music": "violin orchestra sonata rehearsal conductor cello bowing score tempo quartet",
}


def turns(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts, each about one of the subjects, and which."""
    random = np.random.default_rng(seed)
    names = [list(SUBJECTS)[n] for n in random.integers(len(SUBJECTS), size=count)]
    return [" ".join(random.choice(SUBJECTS[name].split(), 5, replace=False)) for name in names], names


def torus_distances(angles: Any) -> Any:
    """Distances of all pairs, the shortest way around."""
    apart = np.abs(angles[:, None] - angles[None])
    return np.sqrt((np.minimum(apart, 2 * np.pi - apart) ** 2).sum(axis=-1))


def test_near_meanings_lie_near_on_the_torus() -> None:
    """Turns of one subject lie much nearer to each other than to others, and neighbours by meaning are neighbours."""
    texts, names = turns(200)
    vectors = HashingEmbedder().embed(texts)
    distances = torus_distances(TopicMap.fit(vectors).angles(vectors))
    same = np.array([[one == other for other in names] for one in names])
    np.fill_diagonal(distances, np.inf)
    inside = distances[same & np.isfinite(distances)].mean()
    nearest = np.argsort(distances, axis=1)[:, :5]

    assert inside < 0.6 * distances[~same].mean()
    assert np.mean([same[row, found].mean() for row, found in enumerate(nearest)]) > 0.7  # by chance: 0.25


def test_the_map_is_the_same_however_turns_come() -> None:
    """One by one, in parts or at once: the same turns give the same grid and the same places."""
    texts, _ = turns(40)
    vectors = HashingEmbedder().embed(texts)
    memories = []
    for sizes in ([40], [1] * 40, [20, 3, 17]):
        memory, start = SessionTopics(), 0
        for size in sizes:
            memory.add(range(start, start + size), vectors[start : start + size])
            start += size
        memories.append(memory)

    for memory in memories[1:]:
        np.testing.assert_array_equal(memory.memory.grid, memories[0].memory.grid)
        assert memory.warm(vectors[3]) == memories[0].warm(vectors[3])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
def test_few_turns_have_places_too(count: int) -> None:
    """A session of a turn or two has a map, places and topics; the same text twice is no trouble."""
    texts = [turns(count)[0][0]] * count
    memory = SessionTopics(10)
    assert memory.warm(np.zeros(448, dtype=np.float32)) == []
    memory.add(range(count), HashingEmbedder().embed(texts))

    assert [number for number, _ in memory.warm(HashingEmbedder().embed(texts)[0])] == list(range(count))[::-1]
    assert np.isfinite(memory.memory.grid).all()
    assert len(memory.topics(texts)) >= 1


def test_a_query_warms_the_turns_of_its_subject() -> None:
    """The warmest turns are mostly those of the subject that is asked about."""
    texts, names = turns(120)
    embedder = HashingEmbedder()
    memory = SessionTopics()
    memory.add(range(120), embedder.embed(texts))
    for name, words in SUBJECTS.items():
        warm = memory.warm(embedder.embed([words])[0])[:10]
        assert sum(names[number] == name for number, _ in warm) >= 5  # by chance: 2.5
        assert [heat for _, heat in warm] == sorted((heat for _, heat in warm), reverse=True)


def test_heat_fades_when_nobody_speaks_of_it() -> None:
    """What was spoken of last is the warmest; what was spoken of long ago has gone cold."""
    birds, money = SUBJECTS["birds"].split(), SUBJECTS["money"].split()
    texts = [" ".join(birds[n % 3 :][:5]) for n in range(40)] + [" ".join(money[n % 3 :][:5]) for n in range(120)]
    memory = SessionTopics()
    memory.add(range(160), HashingEmbedder().embed(texts))
    topics = memory.topics(texts)

    assert set(topics[0].name.split(", ")) <= set(money)
    assert min(topics[0].turns) >= 40
    assert all(min(topic.turns, default=40) >= 40 for topic in topics if topic.heat > 0.05)


def test_topics_have_the_names_of_their_words() -> None:
    """A warm place is named by words of its turns, with the turns that lie there."""
    texts, names = turns(150)
    memory = SessionTopics()
    memory.add(range(150), HashingEmbedder().embed(texts))
    topics = memory.topics(texts, most=3)

    assert 1 <= len(topics) <= 3
    for topic in topics:
        subjects = {name for name, words in SUBJECTS.items() if set(topic.name.split(", ")) & set(words.split())}
        assert subjects & {names[number] for number in topic.turns}


def test_the_voice_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    """By default topics are no voice, because they lower recall (docs/topics.md)."""
    with Krunch(Settings(home=tmp_path / "home")) as krunch:
        assert "topics" not in {plugin.name for plugin in krunch.plugins()}


@pytest.mark.parametrize("voices", [{"topics"}, {"topics", "vectors"}])
def test_the_voice_offers_turns_of_the_session(tmp_path: Path, voices: set[Any]) -> None:
    """With the voice on, a search in a session finds turns of its warm places, and says that topics did it."""
    texts, names = turns(80)
    settings = Settings(home=tmp_path / "home", recall=RecallSettings(voices=frozenset(voices)))
    with Krunch(settings) as krunch:
        assert krunch.store is not None
        for role, start in (("user", 0), ("assistant", 40)):
            krunch.store.append("s", [{"role": role, "content": text} for text in texts[start : start + 40]])
        krunch.flush()
        hits = krunch.search(SUBJECTS["music"], session="s", k=10)
        filtered = krunch.search(SUBJECTS["music"], session="s", k=10, roles=["assistant"])
        everywhere = krunch.search(SUBJECTS["music"], k=10)
        krunch.forget("s")
        gone = krunch.search(SUBJECTS["music"], session="s", k=10)

    assert any("topics" in hit.found_by for hit in hits)
    assert sum(names[hit.turn.number] == "music" for hit in hits) >= 6
    assert filtered
    assert all(hit.turn.message["role"] == "assistant" for hit in filtered)
    assert not any("topics" in hit.found_by for hit in everywhere)
    assert gone == []


def test_the_voice_takes_in_new_turns(tmp_path: Path) -> None:
    """Turns that come after a search are offered by the next one."""
    settings = Settings(home=tmp_path / "home", recall=RecallSettings(voices=frozenset({"topics"})))
    with Krunch(settings) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": text} for text in turns(30)[0]])
        krunch.flush()
        before = len(krunch.search("violin", session="s", k=100))
        krunch.store.append("s", [{"role": "user", "content": text} for text in turns(5, seed=1)[0]])
        krunch.flush()
        after = krunch.search("violin", session="s", k=100)

    assert {hit.turn.number for hit in after} > set(range(before))
    assert len(after) == 35


def test_the_voice_keeps_tenants_and_sessions_apart(tmp_path: Path) -> None:
    """Sessions of one id are each tenant's own: their turns, their places, and what is forgotten of them."""
    settings = Settings(home=tmp_path / "home", recall=RecallSettings(voices=frozenset({"topics"})))
    with Krunch(settings) as krunch:
        assert krunch.store is not None
        for tenant, seed in ((None, 1), ("acme", 2)):
            for session in "st":
                texts = [f"{text} {session} of {tenant}" for text in turns(30, seed)[0]]
                messages = [{"role": "user", "content": text} for text in texts]
                krunch.store.append(session, messages, tenant=tenant)
        assert krunch.flush()
        found = {
            (session, tenant): krunch.search(SUBJECTS["music"], session=session, tenant=tenant, k=50)
            for session in "st"
            for tenant in (None, "acme")
        }
        krunch.forget("s", tenant="acme")
        left = krunch.search(SUBJECTS["music"], session="s", k=50)
        gone = krunch.search(SUBJECTS["music"], session="s", tenant="acme", k=50)

    for (session, tenant), hits in found.items():
        assert len(hits) == 30
        assert all(hit.turn.message["content"].endswith(f" {session} of {tenant}") for hit in hits)
    assert left == found["s", None]
    assert gone == []
