"""The search by vectors over a real store: what it finds, what it embeds, and what is left of it after any accident."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from krunch_plugins import ConversationStore, Krunch, SearchQuery, Settings, Turn
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.files import FileLock, IndexFiles
from krunch_plugins.recall.vector_search import Vectors
from krunch_plugins.settings import RecallSettings
from krunch_plugins.snapshots import save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

HNSW = find_spec("hnswlib") is not None
TOPICS = ["heron", "invoice", "kubernetes", "violin", "glacier"]
BIRDS = ["the heron stands in the reeds", "an invoice was sent in march", "kubernetes restarts the pod again"]


THIRD = "violin number 269786 in case 3"


class Recording:
    """An embedder that notes what it is given, and may be down."""

    def __init__(self, name: str = "recording", dimension: int = 64) -> None:
        self.name, self.dimension = name, dimension
        self._hashing = HashingEmbedder(dimension)
        self.texts: Counter[str] = Counter()
        self.down = False
        self.gate: threading.Event | None = None
        self.at_gate = threading.Event()

    def embed(self, texts: Sequence[str]) -> Any:
        if self.gate is not None:
            self.at_gate.set()
            self.gate.wait(60)
        if self.down:
            raise ConnectionError("the embedder is down")
        self.texts.update(texts)
        return self._hashing.embed(texts)


def says(*texts: str) -> list[dict[str, Any]]:
    """Messages of a user."""
    return [{"role": "user", "content": text} for text in texts]


def many(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Messages about a few things in varying words."""
    random = np.random.default_rng(seed)
    return says(*(f"{TOPICS[n % 5]} number {random.integers(1_000_000)} in case {n}" for n in range(count)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "home"


@pytest.fixture
def opened(home: Path) -> Iterator[Callable[..., tuple[ConversationStore, Vectors]]]:
    """Opens a store and the vectors over it; closes both in the end, or when the same is asked for again."""
    held: list[tuple[ConversationStore, Vectors]] = []

    def close() -> None:
        while held:
            store, vectors = held.pop()
            vectors.close()
            store.close()

    def make(embedder: Any = None, **options: Any) -> tuple[ConversationStore, Vectors]:
        close()
        options = {"embed_seconds": 60.0, **options}  # on a busy machine a query may take its time
        store = ConversationStore(home, upkeep_seconds=0)
        vectors = Vectors(store, IndexFiles(store.directory), embedder, **options)
        store.on_forget(vectors.forget)
        held.append((store, vectors))
        return store, vectors

    yield make
    close()


def numbers(vectors: Vectors, text: str, **query: Any) -> list[tuple[str, int]]:
    """Which turns are found, the best first."""
    hits = vectors.search(SearchQuery(text, **query))
    return [(hit.session, hit.turn.number) for hit in hits]


def index_files(home: Path) -> list[Path]:
    """The index files there are."""
    return sorted(path for path in home.rglob("vectors-*") if path.is_file())


def test_turns_are_found_by_krunch_and_say_who_found_them(home: Path) -> None:
    """After `flush` the nearest turns come back from `Krunch.search`, with the rank that the vectors gave them."""
    settings = Settings(home=home, recall=RecallSettings(voices=frozenset({"vectors"})))
    with Krunch(settings) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", says(*BIRDS))
        assert krunch.flush()
        hits = krunch.search("herons standing in reed", session="s", k=2)

    assert hits[0].turn.message == says(BIRDS[0])[0]
    assert (hits[0].session, dict(hits[0].found_by)) == ("s", {"vectors": 1})


def test_an_embedder_of_ones_own_is_used(home: Path) -> None:
    """The embedder given to `Krunch` embeds turns and queries."""
    embedder = Recording()
    with Krunch(Settings(home=home), embedder=embedder) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", says(*BIRDS))
        krunch.flush()
        hits = krunch.search("herons standing", k=1)

    assert hits[0].turn.number == 0
    assert set(embedder.texts) == {*BIRDS, "herons standing"}


@pytest.mark.parametrize(
    "exact_up_to", [10_000, pytest.param(30, marks=pytest.mark.skipif(not HNSW, reason="no hnswlib"))]
)
def test_filters_are_exact(opened: Callable[..., tuple[ConversationStore, Vectors]], exact_up_to: int) -> None:
    """What session, time, role and metadata leave is searched exactly, whatever the index."""
    store, vectors = opened(exact_up_to=exact_up_to)
    roles = ("user", "assistant", "tool")
    turns = [
        Turn(
            0,
            {"role": roles[n % 3], "content": f"{TOPICS[n % 5]} case {n}"},
            1000.0 + n,
            None,
            {"even": n % 2 == 0, "n": [n % 4]},
        )
        for n in range(120)
    ]
    for session in range(4):
        store.append(f"s{session}", turns[session * 30 : session * 30 + 30])
    assert vectors.flush()
    embedder = HashingEmbedder()
    stored = embedder.embed([turn.message["content"] for turn in turns]).astype(np.float16).astype(np.float32)
    scores = np.round(stored @ embedder.embed(["the violin case"])[0], 4)

    def wanted(passes: Callable[[int], bool]) -> list[float]:
        return sorted((float(scores[n]) for n in range(120) if passes(n) and scores[n] > 0), reverse=True)[:7]

    for query, passes in (
        ({"session": "s2"}, lambda n: 60 <= n < 90),
        ({"after": 1050.0, "before": 1080.0}, lambda n: 50 <= n < 80),
        ({"roles": frozenset({"tool", "nobody"})}, lambda n: n % 3 == 2),
        ({"metadata": {"even": True, "n": [2]}}, lambda n: n % 4 == 2),
        ({"session": "s0", "roles": frozenset({"user"}), "after": 1010.0}, lambda n: 10 <= n < 30 and n % 3 == 0),
        ({"session": "nobody"}, lambda n: False),
        ({"metadata": {"none": 1}}, lambda n: False),
        ({}, lambda n: True),
    ):
        found = numbers(vectors, "the violin case", k=7, **query)
        got = [float(scores[int(session[1:]) * 30 + number]) for session, number in found]
        np.testing.assert_allclose(got, wanted(passes), atol=2e-4)


def test_no_text_is_embedded_twice(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """The same text in other turns, sessions and after a restart costs nothing; another tenant's texts are its own."""
    embedder = Recording()
    store, vectors = opened(embedder)
    store.append("a", says(*BIRDS, BIRDS[0], ""))
    assert vectors.flush()
    store.append("b", says(BIRDS[1], BIRDS[1], "something new"))
    assert vectors.flush()
    assert set(embedder.texts.values()) == {1}
    store, vectors = opened(embedder)
    assert vectors.flush()
    assert len(numbers(vectors, BIRDS[1], k=3)) == 3
    assert set(embedder.texts.values()) == {1}  # what is searched for is the text of a turn

    store.append("c", says(BIRDS[2]), tenant="acme")
    assert vectors.flush()
    assert embedder.texts[BIRDS[2]] == 2
    assert numbers(vectors, BIRDS[2], tenant="acme") == [("c", 0)]


def test_what_was_searched_for_is_not_embedded_again_as_a_turn(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """A question that becomes a turn costs nothing, unless it is another tenant's, or a session was forgotten since."""
    embedder = Recording()
    store, vectors = opened(embedder)
    store.append("s", says(BIRDS[0]))
    assert vectors.flush()
    for tenant in (None, "acme"):
        store.append("t", says("a violin"), tenant=tenant)
        assert vectors.flush()
        numbers(vectors, BIRDS[1], tenant=tenant)
    assert embedder.texts[BIRDS[1]] == 2
    store.append("s", says(BIRDS[1]))
    assert vectors.flush()
    assert numbers(vectors, BIRDS[1], k=1) == [("s", 1)]
    assert embedder.texts[BIRDS[1]] == 2
    store.forget("t", tenant="acme")
    store.append("s", says(BIRDS[1]), tenant="acme")
    assert vectors.flush()

    assert embedder.texts[BIRDS[1]] == 3


def test_a_search_for_a_turn_that_is_being_embedded_waits_for_it(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """What was said a moment ago and is searched for now is embedded once."""
    embedder = Recording()
    store, vectors = opened(embedder, embed_seconds=30.0)
    store.append("s", says(BIRDS[0]))
    assert vectors.flush()
    embedder.gate = threading.Event()
    store.append("s", says(BIRDS[1]))
    while not embedder.at_gate.is_set():
        threading.Event().wait(0.01)
    found: list[list[tuple[str, int]]] = []
    thread = threading.Thread(target=lambda: found.append(numbers(vectors, BIRDS[1])))
    thread.start()
    threading.Event().wait(0.3)  # should it be later than this, it finds the turn's vector
    embedder.gate.set()
    thread.join(30)
    assert vectors.flush()

    assert len(found) == 1
    assert embedder.texts == Counter(BIRDS[:2])
    assert numbers(vectors, BIRDS[1], k=1) == [("s", 1)]


def test_a_model_that_embeds_questions_otherwise_is_asked_for_both(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """The vector of a question is none of a turn's, nor the other way around."""
    asked = []

    class Asymmetric(Recording):
        def embed_query(self, text: str) -> Any:
            asked.append(text)
            return HashingEmbedder(self.dimension).embed([text])[0]

    embedder = Asymmetric()
    store, vectors = opened(embedder)
    store.append("s", says(*BIRDS[:2]))
    assert vectors.flush()
    for text in (BIRDS[0], BIRDS[2]):
        assert numbers(vectors, text)
    store.append("s", says(BIRDS[2]))
    assert vectors.flush()

    assert asked == [BIRDS[0], BIRDS[2]]
    assert embedder.texts == Counter(BIRDS)


def test_tenants_do_not_see_each_other(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """A search finds turns of its tenant alone; no tenant is a tenant of its own."""
    store, vectors = opened()
    for tenant in (None, "", "acme"):
        store.append("s", says(f"heron of {tenant}"), tenant=tenant)
    assert vectors.flush()

    for tenant in (None, "", "acme"):
        assert numbers(vectors, "heron", tenant=tenant) == [("s", 0)]
        assert vectors.stats(tenant).vectors == 1
    assert numbers(vectors, "heron", tenant="other") == []


def test_the_gap_of_an_embedder_that_was_down_is_filled(home: Path) -> None:
    """While the embedder is down words still answer and `flush` says no; afterwards the turns get their vectors."""
    embedder = Recording()
    embedder.down = True
    with Krunch(Settings(home=home), embedder=embedder) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", says(*BIRDS))
        assert not krunch.flush()
        hits = krunch.search("heron", session="s")
        assert {name for hit in hits for name in hit.found_by} == {"words"}
        assert hits[0].turn.number == 0
        embedder.down = False
        assert krunch.flush()
        hits = krunch.search("heron in reeds", session="s", k=1)

    assert dict(hits[0].found_by) == {"words": 1, "vectors": 1}
    assert set(BIRDS) <= set(embedder.texts)


def test_what_was_embedded_before_a_failure_is_kept(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """An embedder that goes down in the middle is not asked again for what it did before."""

    class Failing(Recording):
        batch_size = 10

        def embed(self, texts: Sequence[str]) -> Any:
            if len(self.texts) >= 30 and not healed.is_set():
                raise TimeoutError
            return super().embed(texts)

    healed = threading.Event()
    embedder = Failing()
    store, vectors = opened(embedder)
    store.append("s", many(80))
    assert not vectors.flush()
    assert vectors.stats().vectors == 30
    assert vectors.stats().waiting == 50
    store, vectors = opened(embedder)
    healed.set()
    assert vectors.flush()

    assert vectors.stats().vectors == 80
    assert set(embedder.texts.values()) == {1}


def test_a_text_that_poisons_the_model_does_not_stop_the_rest(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """A turn that the model cannot embed is counted and left to the words; all others have their vectors."""

    class Picky(Recording):
        def embed(self, texts: Sequence[str]) -> Any:
            if any("poison" in text for text in texts):
                raise ValueError("context length exceeded")
            return super().embed(texts)

    store, vectors = opened(Picky())
    store.append("s", says(*BIRDS[:2], "poison", BIRDS[2]))

    assert vectors.flush()
    assert vectors.stats()[1:4] == (3, 0, 1)
    assert numbers(vectors, BIRDS[2], k=1) == [("s", 3)]


def test_forgetting_leaves_no_vector(opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path) -> None:
    """What is forgotten is not found at once, is in no file, and is embedded anew if it ever comes back."""
    embedder = Recording()
    store, vectors = opened(embedder)
    store.append("secret", many(300, seed=1))
    store.append("other", says(*BIRDS))
    vectors.flush()
    assert index_files(home)
    removed = store.forget("secret")
    assert removed.elsewhere == 300
    assert index_files(home) == []
    assert all(session == "other" for session, _ in numbers(vectors, many(300, seed=1)[0]["content"], k=50))
    vectors.flush()
    assert vectors.stats().vectors == 3

    text = many(300, seed=1)[7]["content"]
    assert embedder.texts[text] == 1
    store.append("again", says(text))
    vectors.flush()
    assert embedder.texts[text] == 2
    assert store.sessions() == ["again", "other"]


def test_a_forgotten_session_does_not_come_back_by_its_embeddings(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """A session that is forgotten while it is embedded stays forgotten, in the store and in the search."""
    embedder = Recording()
    embedder.gate = threading.Event()
    store, vectors = opened(embedder)
    store.append("s", says(*BIRDS))
    assert embedder.at_gate.wait(60)
    store.forget("s")
    embedder.gate.set()
    vectors.flush()

    assert store.sessions() == []
    assert numbers(vectors, BIRDS[0]) == []
    assert vectors.stats().vectors == 0


def test_a_session_of_the_same_name_begins_anew(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """A session that is begun again under the id of a forgotten one has its own turns and nothing of the old ones."""
    store, vectors = opened()
    store.append("s", says(*BIRDS))
    vectors.flush()
    store.forget("s")
    store.append("s", says("a violin"))
    vectors.flush()

    assert numbers(vectors, "heron violin", k=9) == [("s", 0)]


def test_trimmed_turns_leave_the_index(home: Path) -> None:
    """Turns that retention removed are not found, and their embeddings leave the store."""
    with ConversationStore(home, upkeep_seconds=0, retention_turns=10) as store:
        vectors = Vectors(store, IndexFiles(store.directory))
        store.append("s", many(150))
        vectors.flush()
        store.expire()
        vectors.flush()
        found = {number for _, number in numbers(vectors, "heron invoice violin", k=200)}
        page = store.get_state("s", "embeddings/0")
        vectors.close()

    assert found <= set(range(140, 150))
    assert page == b""


def test_a_restart_finds_the_same(opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path) -> None:
    """With its index files, without them, and with damaged ones, a new start answers as the one before."""
    store, vectors = opened()
    for session in range(3):
        store.append(f"s{session}", many(200, seed=session))
    vectors.flush()
    queries = ["violin number", "glacier in case 17", "heron"]
    before = [vectors.search(SearchQuery(query, k=30)) for query in queries]
    vectors.close()
    (path,) = index_files(home)
    whole = path.read_bytes()
    for data in (whole, None, whole[:-40], whole[:300] + b"\0" + whole[301:], b"nothing"):
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        embedder = Recording("krunch-hashing-1-448", 448)
        store, vectors = opened(embedder)
        assert vectors.flush()
        assert [vectors.search(SearchQuery(query, k=30)) for query in queries] == before
        assert set(embedder.texts) == set(queries)  # every turn's embedding came from the store


@pytest.mark.skipif(not HNSW, reason="hnswlib is not installed")
def test_a_restart_takes_the_graph_if_it_is_whole(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path
) -> None:
    """A graph is read from its file; a damaged, missing or foreign one is built anew from the store."""
    store, vectors = opened(exact_up_to=100)
    store.append("s", many(600))
    vectors.flush()
    before = vectors.search(SearchQuery("glacier", k=20))
    vectors.close()
    written = {path: path.read_bytes() for path in index_files(home)}
    assert sorted(path.suffix for path in written) == [".half", ".hnsw", ".krunch"]
    graph, half = (next(path for path in written if path.suffix == suffix) for suffix in (".hnsw", ".half"))
    for damaged, data in [
        (one, data)
        for one, whole in ((graph, written[graph]), (half, written[half]))
        for data in (whole, whole[:5000] + b"x" + whole[5001:], whole[:-1], b"", None)
    ]:
        for path in index_files(home):
            path.unlink()
        for path, whole in written.items():
            path.write_bytes(whole)
        damaged.unlink()
        if data is not None:
            damaged.write_bytes(data)
        store, vectors = opened(exact_up_to=100)
        assert vectors.flush()
        assert vectors.stats()[1:5] == (600, 0, 0, "graph")
        assert vectors.search(SearchQuery("glacier", k=20)) == before
        vectors.close()
        assert sorted(path.suffix for path in index_files(home)) == [".half", ".hnsw", ".krunch"]  # none is left over


def test_damaged_pages_are_embedded_again(opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path) -> None:
    """Embeddings that cannot be read in the store count as missing."""
    embedder = Recording()
    store, vectors = opened(embedder)
    store.append("s", says(*BIRDS))
    vectors.flush()
    vectors.close()
    store.put_state("s", "embeddings/0", b"\x93 no page")
    store, vectors = opened(embedder)
    vectors.flush()

    assert numbers(vectors, BIRDS[2], k=1) == [("s", 2)]
    assert embedder.texts[BIRDS[0]] == 2


def test_another_model_takes_over_when_it_is_complete(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path
) -> None:
    """While another model's vectors are made, those of the one before answer; they stay for whoever uses them yet."""
    old, new = Recording("old"), Recording("new", 32)
    store, vectors = opened(old)
    store.append("s", many(300))
    vectors.flush()
    new.gate = threading.Event()
    vectors.change_embedder(new)
    assert numbers(vectors, THIRD, k=1) == [("s", 3)]
    new.gate.set()
    assert vectors.flush()
    assert numbers(vectors, THIRD, k=1) == [("s", 3)]

    assert set(old.texts.values()) == set(new.texts.values()) == {1}
    assert vectors.stats().model == "new"
    assert len(index_files(home)) == 2


def test_after_a_restart_the_built_in_model_answers_for_another(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """Where the built-in embedder was used before, its vectors answer until those of the new one are complete."""
    store, vectors = opened()
    store.append("s", many(300))
    vectors.flush()
    new = Recording("new", 32)
    new.gate = threading.Event()
    store, vectors = opened(new)
    assert numbers(vectors, THIRD, k=1) == [("s", 3)]
    assert not new.texts
    new.gate.set()
    assert vectors.flush()

    assert numbers(vectors, THIRD, k=1) == [("s", 3)]
    assert new.texts[THIRD] == 1


def test_several_processes_share_the_work(home: Path) -> None:
    """Two processes on one home find each other's turns, and no text is embedded by both."""
    program = """
import sys
from krunch_plugins import ConversationStore, SearchQuery
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.files import IndexFiles
from krunch_plugins.recall.vector_search import Vectors
class Noting(HashingEmbedder):
    def embed(self, texts):
        seen.extend(texts)
        return super().embed(texts)
seen = []
store = ConversationStore(sys.argv[1], upkeep_seconds=0)
vectors = Vectors(store, IndexFiles(store.directory), Noting())
for n in range(15):
    store.append(sys.argv[2], [{"role": "user", "content": f"{sys.argv[2]} heron {n} {m}"} for m in range(10)])
assert vectors.flush(60)
print("appended", flush=True)
sys.stdin.readline()
assert vectors.flush(60)
print(vectors.stats().vectors, *(text.replace(" ", "_") for text in seen))
vectors.close()
store.close()
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, home, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    for process in running:  # both have appended all before either looks for the last time
        assert process.stdout is not None
        assert process.stdout.readline() == "appended\n"
    outputs = [process.communicate("\n", timeout=120)[0].split() for process in running]

    assert [output[0] for output in outputs] == ["300", "300"]
    embedded = Counter(text for output in outputs for text in output[1:])
    assert len(embedded) == 300
    assert set(embedded.values()) == {1}


def test_without_room_for_embeddings_searches_go_on(home: Path) -> None:
    """Where a tenant's quota leaves no room for embeddings they are in memory only."""
    embedder = Recording(dimension=512)
    with ConversationStore(home, upkeep_seconds=0, tenant_quota_bytes=12_000) as store:
        vectors = Vectors(store, IndexFiles(store.directory), embedder)
        store.append("s", many(40), tenant="acme")
        assert vectors.flush()
        found = numbers(vectors, THIRD, k=1, tenant="acme")
        vectors.close()

    assert found == [("s", 3)]


def test_the_answer_of_a_version_stays(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """As long as `version` is the same, so is the answer; what is appended changes it."""
    store, vectors = opened()
    store.append("s", says(*BIRDS))
    vectors.flush()
    before = vectors.version(None)
    assert vectors.version(None) == before
    store.append("s", says("another heron"))
    vectors.flush()

    assert vectors.version(None) != before


def test_parts_and_tool_calls_are_embedded(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """The text of content parts and what tools are called with can be found; turns without text are left alone."""
    store, vectors = opened()
    call = {"id": "1", "type": "function", "function": {"name": "book_flight", "arguments": '{"city": "Lisbon"}'}}
    store.append(
        "s",
        [
            {"role": "user", "content": [{"type": "text", "text": "a heron"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "assistant", "content": None},
        ],
    )
    assert vectors.flush()

    assert numbers(vectors, "heron", k=1) == [("s", 0)]
    assert numbers(vectors, "flight to lisbon", k=1) == [("s", 1)]
    assert vectors.stats()[1:4] == (2, 0, 0)


def test_turns_of_one_text_come_in_their_order(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """However many turns have the same text, the answer is the same after the index was built anew in another order."""
    store, vectors = opened()
    for n in range(3):
        for session in ("b", "a"):
            store.append(session, says(*["thanks"] * 60, f"something else {n}"))
        vectors.flush()
    before = numbers(vectors, "thanks", k=5)
    assert before == [("a", n) for n in range(5)]
    store, vectors = opened()
    vectors.flush()

    assert numbers(vectors, "thanks", k=5) == before


def test_sessions_that_come_and_go_leave_nothing(opened: Callable[..., tuple[ConversationStore, Vectors]]) -> None:
    """After thousands of turns came and went, ids are given anew, and what is left is found as before."""
    store, vectors = opened()
    store.append("stays", says(*BIRDS))
    for n in range(16):
        store.append("goes", many(400, seed=n))
        vectors.flush()
        store.forget("goes")
    vectors.flush()
    store.append("stays", says("a violin"))
    vectors.flush()

    model = vectors.answering(None)
    assert model is not None
    space = model.index.space(None)
    assert len(space.catalogue.state()["session"]) < 4096
    assert [numbers(vectors, text, k=1) for text in (*BIRDS, "violin")] == [[("stays", n)] for n in range(4)]


def test_closing_does_not_wait_for_all_embeddings(home: Path) -> None:
    """`close` waits for the batch that is on its way and no longer; the next start goes on where it stopped."""

    class Slow(Recording):
        batch_size = 5

        def embed(self, texts: Sequence[str]) -> Any:
            started.set()
            threading.Event().wait(0.2)
            return super().embed(texts)

    started = threading.Event()
    slow = Slow()
    with ConversationStore(home, upkeep_seconds=0) as store:
        vectors = Vectors(store, IndexFiles(store.directory), slow)
        store.append("s", many(400))
        assert started.wait(10)
        vectors.close()
        assert sum(slow.texts.values()) < 100
        vectors = Vectors(store, IndexFiles(store.directory), slow)
        assert vectors.flush()
        assert vectors.stats().vectors == 400
        vectors.close()

    assert set(slow.texts.values()) == {1}


def test_damaged_turns_do_not_keep_the_rest_out(home: Path) -> None:
    """Turns that cannot be read any more are left out of the index; all others are found."""
    with ConversationStore(home, upkeep_seconds=0) as store:
        store.append("damaged", many(50))
    with closing(sqlite3.connect(home / "cache.db")) as connection, connection:
        ((key, value),) = connection.execute("SELECT key, value FROM Cache WHERE key LIKE 'g/%'").fetchall()
        damaged = value[:100] + bytes(100) + value[200:]
        connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (damaged, key))
    with ConversationStore(home, upkeep_seconds=0) as store:
        store.append("fine", says(*BIRDS))
        vectors = Vectors(store, IndexFiles(store.directory))
        assert vectors.flush()
        assert numbers(vectors, BIRDS[1], k=1) == [("fine", 1)]
        assert vectors.stats().vectors == 3
        vectors.close()


def test_tenants_that_are_not_used_leave_memory(
    opened: Callable[..., tuple[ConversationStore, Vectors]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit the tenant that was least recently used is let go; when it is asked again, all is there."""
    monkeypatch.setattr("krunch_plugins.recall.vector_search._FIRST_WAIT", 60.0)
    embedder = Recording(dimension=64)
    store, vectors = opened(embedder, held_bytes=64 * 4 * 100)
    for tenant in ("a", "b", "c"):
        store.append("s", many(60, seed=ord(tenant)), tenant=tenant)
        assert vectors.flush()
    model = vectors.answering("c")
    assert model is not None
    held = model.index.spaces()
    assert set(held) & {"a", "b"} == set()
    for tenant in ("a", "b", "c"):
        text = many(60, seed=ord(tenant))[7]["content"]
        assert numbers(vectors, text, k=1, tenant=tenant) == [("s", 7)]

    assert max(embedder.texts[message["content"]] for message in many(60, seed=ord("a"))[8:]) == 1


def test_searches_bring_no_more_tenants_back_than_there_is_room_for(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """After a restart, too, where nothing is appended; and a tenant with a single turn takes room as well."""
    limit = 64 * 4 * 1000
    store, vectors = opened(Recording(dimension=64), held_bytes=limit)
    for tenant in "abcdef":
        store.append("s", many(300, seed=ord(tenant)), tenant=tenant)
    for number in range(20):
        store.append("s", says("a heron"), tenant=f"small {number}")
    assert vectors.flush()
    store, vectors = opened(Recording(dimension=64), held_bytes=limit)
    for tenant in "abcdef":
        assert numbers(vectors, many(300, seed=ord(tenant))[7]["content"], k=1, tenant=tenant) == [("s", 7)]
    assert len(vectors._model.index.spaces()) <= 4
    for number in range(20):
        assert numbers(vectors, "heron", tenant=f"small {number}") == [("s", 0)]
    assert len(vectors._model.index.spaces()) <= 10
    assert vectors.flush()

    assert len(vectors._model.index.spaces()) <= 10


def test_a_tenant_that_left_memory_comes_back_with_all_that_was_flushed(
    opened: Callable[..., tuple[ConversationStore, Vectors]],
) -> None:
    """What was too little to write its files anew is read from the store before the first search is answered."""
    store, vectors = opened(HashingEmbedder(64), held_bytes=64 * 4 * 400)
    store.append("s", many(300), tenant="a")
    assert vectors.flush()
    assert numbers(vectors, "saffron ferries", tenant="a")
    store.append("s", says("saffron and ferries"), tenant="a")
    store.append("s", many(350, seed=1), tenant="b")
    assert vectors.flush()
    assert "a" not in vectors._model.index.spaces()

    assert numbers(vectors, "saffron ferries", k=1, tenant="a") == [("s", 300)]


def test_files_of_another_process_keep_nothing_that_was_forgotten(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path
) -> None:
    """Index files that hold a session which a process without a search forgot are replaced by the next that looks."""
    store, vectors = opened()
    store.append("s", many(400))
    vectors.flush()
    vectors.close()
    assert index_files(home)
    with ConversationStore(home) as elsewhere:
        elsewhere.forget("s")
    store, vectors = opened()
    vectors.flush()

    assert sum(path.stat().st_size for path in index_files(home)) < 50_000  # none, or one without vectors
    assert vectors.stats().vectors == 0


@pytest.mark.parametrize("goes", ["forget", "trim"])
def test_files_that_are_written_while_another_process_forgets_do_not_stay(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """Whoever forgets removes the files that are there; one that comes a moment later is removed by who wrote it."""

    def save_late(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        with ConversationStore(home, upkeep_seconds=0) as elsewhere:
            if goes == "forget":
                elsewhere.forget("s")
            else:
                elsewhere.trim("s", 50)
        for path in index_files(home):
            path.unlink()
        save(*arguments, **options)

    store, vectors = opened()
    monkeypatch.setattr("krunch_plugins.recall.vector_files.save", save_late)
    store.append("s", many(400))
    vectors.flush()

    assert index_files(home) == []


def test_trimming_reaches_embeddings_that_nobody_remembers(home: Path) -> None:
    """Embeddings of trimmed turns leave the store also where the index did not know the turns any more."""
    with ConversationStore(home, upkeep_seconds=0) as store:
        vectors = Vectors(store, IndexFiles(store.directory))
        store.append("s", many(300))
        vectors.flush()
        vectors.close()
    for path in index_files(home):
        path.unlink()
    with ConversationStore(home, upkeep_seconds=0, retention_turns=20) as store:
        vectors = Vectors(store, IndexFiles(store.directory))
        store.append("other", says("a"))
        vectors.flush()
        store.expire()
        vectors.flush()
        pages = [store.get_state("s", f"embeddings/{page}") for page in range(3)]
        vectors.close()

    assert pages[:2] == [b"", b""]
    assert pages[2]


def test_the_vectors_of_two_models_lie_side_by_side(home: Path) -> None:
    """A process with another embedder embeds for itself; nobody's vectors are lost, in pages or in files."""
    paid, other = Recording("paid", 16), Recording("other", 8)
    for embedder in (paid, other, None, paid, other):
        with Krunch(Settings(home=home), embedder=embedder) as krunch:
            assert krunch.store is not None
            if krunch.store.info("s") is None:
                krunch.store.append("s", many(400))
            assert krunch.flush()

    assert paid.texts.total() == other.texts.total() == 400
    assert len(list((home / "recall").glob("*/vectors-*.krunch"))) == 3


def test_the_built_in_model_makes_room_first(home: Path) -> None:
    """A page holds three models; beyond that, vectors that cost nothing leave before those of a service."""
    paid = Recording("paid", 16)
    for embedder in (paid, None, Recording("b", 8), Recording("c", 8), paid):
        with Krunch(Settings(home=home), embedder=embedder) as krunch:
            assert krunch.store is not None
            if krunch.store.info("s") is None:
                krunch.store.append("s", many(40))
            assert krunch.flush()

    assert paid.texts.total() == 40


@pytest.mark.parametrize("voices", [{"words"}, {"words", "vectors"}])
def test_what_one_model_forgets_no_other_keeps(home: Path, voices: set[str]) -> None:
    """Whoever forgets removes the files of all models, and those of no session that stays are embedded again."""
    paid = Recording("paid", 16)
    for embedder in (paid, None):
        with Krunch(Settings(home=home), embedder=embedder) as krunch:
            assert krunch.store is not None
            if embedder is paid:
                krunch.store.append("s", many(300))
                krunch.store.append("stays", many(300, seed=1))
            assert krunch.flush()
    with Krunch(Settings(home=home, recall={"voices": voices})) as krunch:
        krunch.forget("s")
        assert not list((home / "recall").glob("*/vectors-*"))
    with Krunch(Settings(home=home), embedder=paid) as krunch:
        assert krunch.flush()

    assert paid.texts.total() == 600


def test_turns_that_retention_removes_leave_the_pages_of_all_models(home: Path) -> None:
    """Whichever model follows the store trims what the others embedded."""
    with ConversationStore(home) as store:
        store.append("s", many(40))
        with Krunch(Settings(), store=store, embedder=Recording("paid", 16)) as krunch:
            assert krunch.flush()
        with Krunch(Settings(), store=store) as krunch:
            assert krunch.flush()
            whole = store.get_state("s", "embeddings/0")
            store.trim("s", 30)
            assert krunch.flush()
        left = store.get_state("s", "embeddings/0")

    assert whole is not None
    assert left is not None
    assert len(left) < len(whole) / 3
    assert b"paid" in left


def test_another_length_under_the_same_name_is_another_model(home: Path) -> None:
    """Vectors of the new length are made beside the old ones, which nothing is compared with; no search fails."""
    for dimension in (64, 32, 64):
        embedder = Recording("same", dimension)
        with Krunch(Settings(home=home, recall={"voices": {"vectors"}}), embedder=embedder) as krunch:
            assert krunch.store is not None
            if krunch.store.info("s") is None:
                krunch.store.append("s", many(300))
            assert krunch.flush()
            assert krunch.search(THIRD, k=1)[0].turn.number == 3
            assert len(embedder.texts) == 300


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedder_that_gives_no_numbers_or_nothing_spoils_no_search(home: Path, value: float) -> None:
    """What has no direction is found by its words, other turns by their vectors too; none is embedded again for it."""

    class Odd(Recording):
        def embed(self, texts: Sequence[str]) -> Any:
            vectors = super().embed(texts)
            vectors[[row for row, text in enumerate(texts) if "odd" in text]] = value
            return vectors

    embedder = Odd()
    for _ in range(2):
        with Krunch(Settings(home=home), embedder=embedder) as krunch:
            assert krunch.store is not None
            if krunch.store.info("s") is None:
                krunch.store.append("s", says("an odd heron", *BIRDS))
            assert krunch.flush()
            assert {hit.turn.number: set(hit.found_by) for hit in krunch.search("heron", k=9)}[0] == {"words"}
            assert {name for hit in krunch.search("odd heron", k=9) for name in hit.found_by} == {"words"}
            assert krunch.search(BIRDS[1], k=1)[0].found_by == {"words": 1, "vectors": 1}

    assert embedder.texts[BIRDS[0]] == 1
    assert value or embedder.texts["an odd heron"] == 1


def test_vectors_of_another_length_than_promised_are_refused_by_name(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Words answer, `flush` says no, and the log has both lengths."""

    class Longer(Recording):
        def embed(self, texts: Sequence[str]) -> Any:
            return HashingEmbedder(99).embed(texts)

    with Krunch(Settings(home=home), embedder=Longer("longer", 64)) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", says(*BIRDS))
        assert not krunch.flush(5)
        assert set(krunch.search("heron", k=1)[0].found_by) == {"words"}

    assert "99 dimensions" in caplog.text
    assert "64" in caplog.text
    assert "heron" not in caplog.text


def test_only_one_process_embeds_and_writes_at_a_time(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path
) -> None:
    """While another one has the right to, nothing is embedded and `flush` says no; afterwards it goes on."""
    embedder = Recording()
    store, vectors = opened(embedder)
    store.append("s", says(BIRDS[0]))
    assert vectors.flush()
    (folder,) = (home / "recall").iterdir()
    with FileLock(folder / "vectors.lock").holding() as mine:
        assert mine
        store.append("s", many(300))
        assert not vectors.flush(0.5)
        assert numbers(vectors, BIRDS[0]) == [("s", 0)]
        assert set(embedder.texts) == {BIRDS[0]}
        assert index_files(home) == []
    assert vectors.flush()

    assert vectors.stats().vectors == 301
    assert len(index_files(home)) == 1


@pytest.mark.skipif(not HNSW, reason="hnswlib is not installed")
def test_forgetting_leaves_no_vector_in_a_graph(
    opened: Callable[..., tuple[ConversationStore, Vectors]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten is not found at once and in no file; the graph is built anew without it and written again."""
    store, vectors = opened(exact_up_to=100)
    store.append("secret", many(300, seed=1))
    store.append("other", many(400, seed=2))
    assert vectors.flush()
    right = numbers(vectors, THIRD, session="other", k=400)
    assert {session for session, _ in numbers(vectors, THIRD, k=700)} == {"secret", "other"}
    store.forget("secret")
    assert index_files(home) == []
    assert sorted(numbers(vectors, THIRD, k=700)) == sorted(right)
    assert vectors.flush()
    assert index_files(home) == []  # the graph still has them, marked
    monkeypatch.setattr("krunch_plugins.recall.embedding_space._COMPACT_SECONDS", 0.0)
    store.append("other", many(300, seed=3))
    assert vectors.flush()
    assert sorted(path.suffix for path in index_files(home)) == [".half", ".hnsw", ".krunch"]
    model = vectors.answering(None)
    assert model is not None
    assert (model.index.space(None).vectors.marked, vectors.stats().kind) == (0, "graph")
    after = numbers(vectors, THIRD, k=50)
    store, vectors = opened(exact_up_to=100)

    assert numbers(vectors, THIRD, k=50) == after
    assert {session for session, _ in after} == {"other"}
