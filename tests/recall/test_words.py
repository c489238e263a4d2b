"""Finding turns by their words: what matches, what a filter leaves, and that a query is never a query language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import ConversationStore, Krunch, SearchQuery, Settings, Turn
from krunch_plugins.recall.word_search import ROWS
from krunch_plugins.recall.word_terms import terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXTS = {
    "english": "The ferry to the island leaves at nine",
    "stemmed": "She was painting the boats",
    "german": "Die Fähre über den Großen See fährt täglich",
    "russian": "Паром отходит утром",
    "hindi": "मुझे हिन्दी पढ़ना पसंद है",
    "chinese": "我喜欢机器学习和围棋",
    "japanese": "猫はソファーで寝ています",
    "korean": "고양이가 소파에서 잔다",
    "thai": "ฉันชอบกินข้าวผัด",
    "digits": "The order is 4711-B, on 2026-03-01",
}


@pytest.fixture(scope="module")
def krunch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Krunch]:
    """One session for each text, so that neighbours play no part."""
    home = tmp_path_factory.mktemp("home")
    with Krunch(Settings(home=home, recall={"voices": ["words"]})) as made:
        assert made.store is not None
        for name, text in TEXTS.items():
            made.store.append(name, [{"role": "user", "content": text}])
        yield made


@pytest.mark.parametrize(
    ("query", "session"),
    [
        ("ferries", "english"),
        ("island?", "english"),
        ("paint a boat", "stemmed"),
        ("fahre", "german"),
        ("FÄHRE", "german"),
        ("GROSSEN", "german"),
        ("паром", "russian"),
        ("हिन्दी", "hindi"),
        ("机器", "chinese"),
        ("学习", "chinese"),
        ("棋", "chinese"),
        ("猫", "japanese"),
        ("ソファー", "japanese"),
        ("소파", "korean"),
        ("ข้าวผัด", "thai"),
        ("4711", "digits"),
    ],
)
def test_a_word_is_found_in_any_language(krunch: Krunch, query: str, session: str) -> None:
    """Other endings, case and accents of a word match; scripts without spaces are found by one or two characters."""
    hits = krunch.search(query)

    assert [hit.session for hit in hits] == [session]
    assert hits[0].turn.message["content"] == TEXTS[session]
    assert hits[0].found_by == {"words": 1}


@pytest.mark.parametrize("query", ["the", "", " ", "?!", "to be or not to be", "dog", "狗", "\0", "\ud800"])
def test_what_has_no_word_in_common_is_not_found(krunch: Krunch, query: str) -> None:
    """Stop words alone, signs alone, and words that nobody used find nothing."""
    assert krunch.search(query) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(query=st.text(max_size=60) | st.text("\"'()*:^-+{}NEARANDORNOT ferryhead", max_size=60))
def test_any_text_can_be_asked(krunch: Krunch, query: str) -> None:
    """Whatever is asked is looked for as words: no sign of it is an operator, and nothing raises."""
    voice = krunch._recall._voices["words"]  # itself, because the search would catch and log what it raises
    hits = voice.search(SearchQuery(query))

    assert not hits or terms(query)
    assert [hit.session for hit in voice.search(SearchQuery(f"{query} ferry")) if hit.session == "english"] == [
        "english"
    ]


@pytest.mark.parametrize(
    "query",
    [
        "ferry AND dog",
        "ferry NOT island",
        "dog OR ferry",
        '"nine ferry"',
        "NEAR(ferry nine, 1)",
        "^nine ferry",
        "-ferry",
        "head: ferry",
        "turns : (ferry)",
        "{head} : ferry",
        "ferry + dog",
        '" ferry',
        "ferry'; DROP TABLE docs; --",
    ],
)
def test_what_is_an_operator_elsewhere_is_a_word_or_nothing(krunch: Krunch, query: str) -> None:
    """Each of these would be an error for FTS5, or find nothing; asked here, the words in it are looked for."""
    assert [hit.session for hit in krunch.search(query)] == ["english"]


def test_a_star_finds_no_beginnings(krunch: Krunch) -> None:
    """Only whole words are found, whatever stands behind them."""
    assert krunch.search("isl* isl") == []


def test_a_word_without_spaces_is_more_than_its_characters(open_krunch: Callable[..., Krunch]) -> None:
    """Characters that stand apart, or the other way around, are not the word, nor is a particle that ends it.

    Beside Latin letters it is found all the same; of a longer word, what has more of its pairs comes first.
    """
    krunch = open_krunch(window_weight=0.0)
    assert krunch.store is not None
    texts = {"word": "我用Python做机器学习", "apart": "机场的仪器", "around": "器机", "short": "学习围棋"}
    texts |= {"kana": "コーヒーを飲む", "particle": "고양이는 잔다"}
    for name, text in texts.items():
        krunch.store.append(name, [{"role": "user", "content": text}])

    assert [hit.session for hit in krunch.search("机器")] == ["word"]
    assert [hit.session for hit in krunch.search("机器学习")] == ["word", "short"]
    assert [hit.session for hit in krunch.search("python")] == ["word"]
    assert [hit.session for hit in krunch.search("コーヒー")] == ["kana"]
    assert [hit.session for hit in krunch.search("ｺｰﾋｰ")] == ["kana"]
    assert {hit.session for hit in krunch.search("机")} == {"word", "apart", "around"}
    assert krunch.search("소파는") == []
    assert [hit.session for hit in krunch.search("고양이가")] == ["particle"]


@given(st.text())
def test_terms_are_plain_words(text: str) -> None:
    """No term holds a space, a quote or a capital letter, and the same terms come of the terms themselves."""
    found = terms(text)

    assert not any(set(term) & set(' "\0\n') for term in found)
    assert all(0 < len(term) <= 64 for term in found)


def test_an_append_is_searchable_when_it_returned(open_krunch: Callable[..., Krunch]) -> None:
    """What was appended a moment ago is found, first turn or hundredth, and recorded exchanges are, too."""
    krunch = open_krunch()
    assert krunch.store is not None
    for number in range(30):
        krunch.store.append("s", [{"role": "user", "content": f"fact number{number}"}])
        assert krunch.search(f"number{number}")[0].turn.number == number

    exchange = krunch.prepare([{"role": "user", "content": "Is the kettle on?"}], model="gpt-4o", session="tea")
    exchange.finish({"role": "assistant", "content": "It whistles."})
    assert krunch.search("whistling")[0].session == "tea"


def test_the_text_of_a_turn_is_its_content_parts_and_tool_calls(open_krunch: Callable[..., Krunch]) -> None:
    """String content, text parts, and the names and arguments of calls are searched; images and ids are not."""
    krunch = open_krunch()
    assert krunch.store is not None
    call = {
        "id": "callidentity",
        "type": "function",
        "function": {"name": "book_table", "arguments": '{"place": "Roma"}'},
    }
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGFtc3Rlcg"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "look at this violin"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": 7, "tool_calls": [None, 3], "function_call": "x"},
    ]
    for number, message in enumerate(messages):
        krunch.store.append(f"s{number}", [message])

    assert krunch.search("violins")[0].session == "s0"
    assert krunch.search("roma")[0].session == "s1"
    assert krunch.search("table")[0].session == "s1"
    assert krunch.search("callidentity aGFtc3Rlcg") == []


def test_neighbours_help_a_turn(open_krunch: Callable[..., Krunch]) -> None:
    """An answer is found by the words of its question; without windows it is not."""
    talk = ["Where does your sister live?", "In Lisbon, near the river.", "I see.", "Good.", "Yes.", "So it is."]
    messages = [{"role": "user", "content": text} for text in talk]
    krunch = open_krunch()
    assert krunch.store is not None
    krunch.store.append("s", messages)

    assert {hit.turn.number for hit in krunch.search("sister live")} == {0, 1, 2}
    assert {hit.turn.number for hit in open_krunch(window_weight=0.0).search("sister live")} == {0}
    assert {hit.turn.number for hit in krunch.search("river")} == {0, 1, 2, 3}
    assert krunch.search("river")[0].turn.number == 1


def passes(turn: Turn, session: str, asked: dict[str, Any]) -> bool:
    """Whether a turn is among those that a search asks about."""
    return (
        asked.get("session") in (None, session)
        and (asked.get("after") is None or turn.timestamp >= asked["after"])
        and (asked.get("before") is None or turn.timestamp < asked["before"])
        and (asked.get("roles") is None or turn.message["role"] in asked["roles"])
        and all(item in turn.metadata.items() for item in (asked.get("metadata") or {}).items())
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Krunch]:
    """Many turns of all kinds, each with the word that is asked for."""
    options: dict[str, Any] = {"voices": ["words"], "cached_queries": 0}
    with Krunch(Settings(home=tmp_path_factory.mktemp("home"), recall=options)) as made:
        assert made.store is not None
        for number in range(600):
            role = ("user", "assistant", "tool", "strange\nrole")[number % 4]
            message = {"role": role, "content": f"harbour {'boat ' * (number % 7)}"}
            metadata = {"n": number % 5, "deep": {"a": [number % 2]}} if number % 3 else {}
            made.store.append(f"s{number % 6}", [Turn(0, message, float(number), None, metadata)])
        yield made


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    asked=st.fixed_dictionaries(
        {},
        optional={
            "session": st.sampled_from(["s0", "s3", "none"]),
            "after": st.integers(0, 600).map(float),
            "before": st.integers(0, 600).map(float),
            "roles": st.sets(st.sampled_from(["user", "assistant", "tool", "strange\nrole", "x"]), min_size=1),
            "metadata": st.sampled_from([{"n": 2}, {"n": 2.0, "deep": {"a": [1]}}, {"m": None}, {}]),
        },
    ),
    k=st.sampled_from([3, 1000]),
)
def test_a_filtered_search_is_exact_on_what_the_filter_leaves(mixed: Krunch, asked: dict[str, Any], k: int) -> None:
    """All that passes the filters is found and nothing else, however few that are, and however many turns there are."""
    assert mixed.store is not None
    everything = [(session, turn) for session in mixed.store.sessions() for turn in mixed.store.turns(session)]
    right = {(session, turn.number) for session, turn in everything if passes(turn, session, asked)}

    hits = mixed.search("harbour", k=k, **asked)
    assert len(hits) == min(k, len(right))
    assert {(hit.session, hit.turn.number) for hit in hits} <= right
    with pytest.MonkeyPatch.context() as patch:  # as where there are more turns than are looked at one by one
        patch.setattr("krunch_plugins.recall.word_search._FEW", 0)
        assert mixed.search("harbour", k=k, **asked) == hits


def test_tenants_do_not_see_each_other(open_krunch: Callable[..., Krunch]) -> None:
    """A search finds turns of its own tenant only; None is a tenant of its own, and so is the empty text."""
    krunch = open_krunch()
    assert krunch.store is not None
    for tenant in (None, "", "acme", "../acme"):
        krunch.store.append("s", [{"role": "user", "content": f"the code of {tenant} is amber"}], tenant=tenant)

    for tenant in (None, "", "acme", "../acme"):
        hits = krunch.search("amber", tenant=tenant)
        assert [hit.turn.message["content"] for hit in hits] == [f"the code of {tenant} is amber"]
    assert krunch.search("amber", tenant="nobody") == []


def test_names_of_any_kind_are_sessions(open_krunch: Callable[..., Krunch]) -> None:
    """A session's id may hold anything that a string may."""
    krunch = open_krunch()
    assert krunch.store is not None
    names = ["", "/etc/passwd", "a\0b", "'; DROP TABLE docs", "\ud800", "ß" * 500]
    for name in names:
        krunch.store.append(name, [{"role": "user", "content": "a comet"}])

    assert {hit.session for hit in krunch.search("comet")} == set(names)
    assert all([hit.session for hit in krunch.search("comet", session=name)] == [name] for name in names)


def test_old_turns_that_retention_removed_are_not_found(tmp_path: Any) -> None:
    """A session whose oldest turns were removed is searched as it is now, as after a rebuild."""
    with ConversationStore(tmp_path, retention_turns=3, upkeep_seconds=0) as store:
        options = Settings(recall={"voices": ["words"]})
        with Krunch(options, store=store) as krunch:
            store.append("s", [{"role": "user", "content": f"lantern item{number}"} for number in range(10)])
            store.expire()

            assert {hit.turn.number for hit in krunch.search("lantern")} == {7, 8, 9}
            assert krunch.search("item2") == []


def test_a_query_of_a_thousand_words_is_answered(krunch: Krunch) -> None:
    """A whole text can be asked for; what is rare in it counts."""
    text = " ".join(f"word{number}" for number in range(1000))

    hits = krunch.search(f"{text} {'z' * 100} 围棋机器学习 {text}")
    assert [hit.session for hit in hits] == ["chinese"]


@pytest.mark.parametrize("asked", [{"after": 1500.0}, {"roles": ["tool"]}, {"metadata": {"new": True}}])
def test_a_word_is_as_common_as_it_is_in_what_the_filter_leaves(tmp_path: Any, asked: dict[str, Any]) -> None:
    """Where all turns hold a common word, those that a filter leaves are found by it beside a rarer one elsewhere."""
    with Krunch(Settings(home=tmp_path, recall={"voices": ["words"]})) as krunch:
        assert krunch.store is not None
        old = [{"role": "user", "content": f"server {number}"} for number in range(ROWS + 200)]
        krunch.store.append("old", [Turn(0, {"role": "user", "content": "zebra"}, 1000.0)])
        krunch.store.append("old", [Turn(0, message, 1000.0) for message in old])
        new = {"role": "tool", "content": "the server of the kitchen is down"}
        krunch.store.append("new", [Turn(0, new, 2000.0, None, {"new": True})])
        hits = krunch.search("zebra server", k=1, **asked)

    assert [hit.turn.message for hit in hits] == [new]


@pytest.mark.parametrize("session", [None, "s3"])
def test_of_words_that_are_all_too_common_the_rarest_decides(
    open_krunch: Callable[..., Krunch], monkeypatch: pytest.MonkeyPatch, session: str | None
) -> None:
    """Where each word of a question stands in more turns than are looked at, the one in the fewest is searched."""
    monkeypatch.setattr("krunch_plugins.recall.word_search.ROWS", 10)
    krunch = open_krunch(voices=["words"], window_weight=0.0)
    assert krunch.store is not None
    for name in range(6):
        texts = ["the teal ferry" if number % 3 else "the teal ferry to the amber coast" for number in range(60)]
        krunch.store.append(f"s{name}", [{"role": "user", "content": text} for text in texts])
    hits = krunch.search("ferry amber teal", k=40, session=session)

    assert hits
    assert {hit.turn.number % 3 for hit in hits} == {0}
