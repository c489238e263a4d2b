"""The laws of compression over conversations that try to break them; `bench/fuzz.py` runs the same in bulk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conversations
import laws
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent

# Cases are large, so that phrases repeat; hypothesis finds that slow. Time is not what is tested.
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
few = settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
some = settings(max_examples=30, deadline=None, suppress_health_check=SLOW)

pytestmark = pytest.mark.usefixtures("tokenizers")

FRAGMENTS = (
    *conversations.LETTERS,
    *conversations.MARKS,
    *conversations.LEGENDS,
    *conversations.FENCES,
    *conversations.ODD,
    *conversations.VALUES,
)
ANY_TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=()), max_size=8), max_size=12)
ANY_MESSAGES = st.lists(
    st.builds(
        lambda role, pieces, times: {"role": role, "content": "".join(pieces) * times},
        st.sampled_from(conversations.ROLES),
        ANY_TEXT,
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def tokenizers() -> None:
    """Tokenizers that are loaded: what is tested here does not wait for them."""
    laws.warm()


def cases(longest: int = 12, **choices: Any) -> st.SearchStrategy[laws.Case]:
    """Generated cases; hypothesis makes a failing one smaller."""
    return st.randoms(use_true_random=False).map(lambda rng: laws.case(rng, longest=longest, **choices))


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_a_request_keeps_the_laws(profile: str) -> None:
    """It restores from itself, nothing but text changed, nothing grew, no value is cut, and the report is true."""

    @some
    @given(cases(profile=profile))
    def check(case: laws.Case) -> None:
        laws.check(case)

    check()


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_seeded_conversations_keep_the_laws(profile: str) -> None:
    """The conversations that the fuzz command starts with, up to 60 messages long."""
    for seed in range(40):
        laws.check(laws.case_of_seed(seed, profile))


@some
@given(ANY_MESSAGES, st.sampled_from(laws.PROFILES))
def test_any_unicode_text_keeps_the_laws(messages: list[dict[str, Any]], profile: str) -> None:
    """Texts of any characters, lone surrogates and control characters too, between literals that look like marks."""
    laws.check(laws.Case(messages, settings=Settings(cache_floor="nothing", profile=profile, min_tokens=0)))


@few
@given(cases())
def test_what_is_sent_for_a_prefix_is_a_prefix_of_what_is_sent(case: laws.Case) -> None:
    """Turn by turn or at once, by one Krunch or by fresh ones: a text that was sent never changes."""
    laws.check_causal(case)


@few
@given(cases(), st.integers(0, 2**32))
def test_a_fork_is_sent_as_if_there_had_been_no_other_line(case: laws.Case, seed: int) -> None:
    """Old messages edited, dropped, repeated or moved: as from a Krunch that never saw the first line."""
    laws.check_forks(case, random.Random(seed))


@few
@given(cases(longest=8))
def test_a_lost_memo_changes_nothing(case: laws.Case) -> None:
    """Whatever the memo holds, nothing included, the same bytes are sent."""
    laws.check_memo(case)


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_threads_change_nothing(profile: str) -> None:
    """Many sessions at once, and forks of one conversation at once: the same bytes as one after the other."""
    rng = random.Random(profile)
    one = laws.case_of_seed(11, profile, 10)
    others = [one._replace(messages=conversations.conversation(rng, longest=8)) for _ in range(3)]

    laws.check_threads([one, one.forked(rng), one.forked(rng), *others])


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_the_output_of_the_output_keeps_the_laws(profile: str) -> None:
    """Conversations cut and mixed from what was sent for others, eight generations deep."""
    rng = random.Random(f"generations {profile}")
    pool: list[str] = []
    for _ in range(8):
        case = laws.Case(
            conversations.conversation(rng, pool, 8),
            settings=Settings(cache_floor="nothing", profile=profile, min_tokens=0),
        )
        pool = conversations.cut_and_mix(rng, laws.check(case).messages)


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_another_process_with_another_hash_seed_sends_the_same(hash_seed: str) -> None:
    """What is sent depends on nothing that differs between processes."""
    seeds = range(100, 140)
    script = (
        "import sys, laws; laws.warm()\n"
        f"for seed in range({seeds.start}, {seeds.stop}): print(laws.digest(laws.case_of_seed(seed).sent()))"
    )
    paths = os.pathsep.join((str(HERE), *sys.path))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    there = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False, timeout=120
    )

    here = [laws.digest(laws.case_of_seed(seed).sent()) for seed in seeds]
    assert there.stdout.decode().split() == here, there.stderr.decode()


BROKEN_BEFORE = {
    "a mark at the beginning is counted": [
        "0x1F, mia@example.com  " * 3,
        "¤¤1 0x1F, mia@example.com, 0x1F, mia@example.com",
    ],
    "an equals sign behind a literal": [
        "v1/it's=src/app/main.py(31/Jan/2024:10) v1/it's¤4=src/app/main.py(31/Jan/2024:10)"
    ],
    "an instruction": [
        "¤N{...} names the keys of an object, ¤N(...) gives values for them.\n" + "the long text again, " * 6,
        "¤N=...¤ names a text, ¤N stands for it.\n" + "the long text again, " * 6,
    ],
    "JSON behind a mark": [
        "¤" + json.dumps([{"": None}, {"": "", "1": [[2, {}]]}, {"": "", "e": "", "1": "n"}], indent=4)
    ],
    "a mark in quotes": ['"a ¤1 b and so on", "a ¤1 b and so on", "a ¤1 b and so on", "a ¤1 b and so on"'] * 2,
    "a template over a literal mark": [
        """¤ longer src  don't of it ¤N=...¤ names a text, ¤N stands for it.
 longer src don't of it ¤N=...¤ names a text, ¤N stands for it.
 longer src don't of  names a text, ¤N stands for it."""
    ],
    "a letter behind a mark": ["; ".join(f"{n} is why the retry policy waits, {n}" for n in (3, 7, 9)), "¤\u10d0 is x"],
    "digits of two scripts": [":01/31/2024 v1.2.3 main and a hint \uff11:01/31/2024 v1.2.3 main and a hint"],
    "a plus in an address that is not all ASCII": [
        "\n```\nget_order policy this this this\n" * 3,
        "\u10d0+user42-пример_mia.li+work@example.com_service_tim +user42-пример_mia.li+work@example.com_service_tim ",
    ],
    "a time of day behind a date": [
        ".\u22125.network_timeout.each.user42.x².camelCaseName.½:Ce.\u22125.network_timeout.each.user42.x².camelCaseName.½:",
        "#2024-01-31 10:05:33,120 人々(0eut.ea1 10:05:33,120 人々 2\n",
    ],
    "a sign in front of a digit of another script": [
        (
            "\n|12|13\n=1\u2009000+¤+\u0663/service the time,service the tim.été 1|12|13\n"
            "=1\u2009000+¤+\u0663/service the time,service the tim.été"
        )
    ],
    "a full stop between a bracket and a digit": ["9f86d081884c7d65//9f86d081884c7d65/).9f86d081884c7d65/"],
    "a literal symbol in a template": [
        "this, naïve, each, Straße, 東京都.this, naïve=this, naïve, each, Straße, 東京都.this, naïve",
        "".join(
            f"¤1=the retry policy¤ =naïve policy service a_b.c-d Straße v{n} waits {n}e+3 time\tsrc/main.py x² 0 +7\n\n"
            for n in range(4)
        ),
    ],
    "an exponent behind a full stop": [
        "; ".join(f"the reservation service waits longer each time it fails 1.e{end}" for end in ("", "+16", "?", "+7"))
    ],
    "a time behind a date with a full stop in front": [
        (
            ", 01/31/2024 10:05:33,120_the_reservation_id_retry_retry\n"
            ", 01/31/2024, 01/31/2024“.2024-01-31 10:05:33,120_the_reservation_id_retry_retry\n"
        )
    ],
    "text of one period": ["=" * 3000 + "\n" + "a " * 2000 + '\\"' * 1000],
}


@pytest.mark.parametrize("texts", BROKEN_BEFORE.values(), ids=BROKEN_BEFORE.keys())
@pytest.mark.parametrize("profile", laws.PROFILES)
def test_what_has_broken_a_law_before_keeps_it(texts: list[str], profile: str) -> None:
    """Cases that the generated conversations found."""
    messages = [{"role": "user", "content": text} for text in texts]

    laws.check(laws.Case(messages, settings=Settings(cache_floor="nothing", profile=profile, min_tokens=0)))


@pytest.mark.parametrize("profile", ["safe", "balanced"])
@pytest.mark.parametrize(
    "value",
    [*conversations.VALUES, "x²", "人々", "été", "don't", "snake_case_name", "x-request-id", "नमस्ते", "\uff11:01"],
)  # fmt: skip
def test_a_value_is_never_cut(value: str, profile: str) -> None:
    """Phrases that end and begin inside a value, and would pay, are not taken so far."""
    prose = " waits for the reservation service to answer, and then "
    for place in range(1, len(value)):
        head, tail = value[:place], value[place:]
        lines = [prose + head, prose + value, prose + head + "x", tail + prose, value + prose, "x" + tail + prose] * 2
        text = "\n".join(f"{number}{line}{number}" for number, line in zip("abcdefghijkl", lines, strict=True))
        laws.check(
            laws.Case([{"role": "user", "content": text}], settings=Settings(cache_floor="nothing", profile=profile))
        )


def requests() -> Iterator[tuple[laws.Case, Mapping[str, Any]]]:
    """The same conversation, asked for by different owners."""
    case = laws.case_of_seed(7, "balanced", 12)
    for owner in ({}, {"session": "a"}, {"session": "b"}, {"tenant": "a"}, {"session": "a", "tenant": "a"}):
        yield case, owner


def test_a_long_dense_conversation_has_names_of_one_letter_and_leaves_words_of_those_scripts_alone() -> None:
    """More than 150 phrases are named; letters that the conversation has held itself are not among the names."""
    rng = random.Random(7)
    words = ["".join(rng.choices("bcdfglmnprstv", k=3)) + rng.choice(("ado", "ine", "ulp")) for _ in range(900)]
    phrases = [" ".join(words[at : at + 5]) for at in range(0, len(words), 5)]
    foreign = "\u179f\u17bd\u179f\u17d2\u178f\u17b8 \u0d9a\u0dd2 \u0b15\u0b3e \u0d9c"
    messages = [
        {
            "role": "user",
            "content": f"{foreign}\n" + "\n".join(f"{name}, then {name} again" for name in phrases[at : at + 8]),
        }
        for at in range(0, len(phrases), 8)
    ]
    given = laws.Case(messages, None, Settings(profile="dense", cache_floor="nothing"), "gpt-4o")
    exchange = laws.check(given)
    laws.check_replies(given, exchange, random.Random(1))

    single = [name for name in exchange.symbols if len(name) == 1]
    assert len(single) > 150
    assert any("\u0d80" <= name < "\u0e00" for name in single)
    assert not set(single) & set(foreign)
    assert exchange.messages[-1]["content"].startswith(foreign)


def test_sessions_and_tenants_see_nothing_of_each_other() -> None:
    """The same messages give the same bytes, symbols and report whoever sent them before."""
    with Krunch(Settings(cache_floor="nothing", min_tokens=0)) as krunch:
        seen = [krunch.prepare(case.messages, model="gpt-4o", tools=case.tools, **owner) for case, owner in requests()]
        other = laws.case_of_seed(8, "balanced", 12)
        krunch.prepare(other.messages, model="gpt-4o", session="b", tools=other.tools)
        again = [krunch.prepare(case.messages, model="gpt-4o", tools=case.tools, **owner) for case, owner in requests()]

    for exchange in (*seen, *again):
        assert laws.repr_each(exchange.messages) == laws.repr_each(seen[0].messages)
        assert dict(exchange.symbols) == dict(seen[0].symbols)
        assert exchange.report.messages == seen[0].report.messages


def test_texts_and_arguments_that_look_alike_are_not_taken_for_each_other() -> None:
    """A message remembered for its text is not served for one whose tool arguments happen to read the same."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": "¤1"}'}}
    repeated = {
        "role": "user",
        "content": "; ".join(
            f"{w} is why the retry policy of this service waits, {w}" for w in conversations.WORDS[:9]
        ),
    }
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "\\1"}]
    first = laws.Case(
        [{"role": "user", "content": parts}, repeated], settings=Settings(cache_floor="nothing", min_tokens=0)
    )
    second = first._replace(messages=[{"role": "user", "content": "x", "tool_calls": [call]}, repeated])

    with Krunch(first.settings) as krunch:
        first.prepare(krunch)
        exchange = second.prepare(krunch)

    assert exchange.report.messages[1].reason == "compressed"
    assert laws.repr_each(exchange.messages) == laws.repr_each(second.sent())
    laws.check_growth(second, exchange)


@pytest.mark.parametrize("changed", ["role", "text", "part", "parts", "arguments", "call", "tool_calls"])
def test_a_known_message_that_changed_anywhere_is_a_new_one(changed: str) -> None:
    """Messages are known again by all that their encoding depends on, also behind the first one."""
    phrase = "; ".join(f"{w} is why the retry policy of this service waits, {w}" for w in conversations.WORDS[:9])
    function = {"name": "f", "arguments": '{"q": "¤2"}'}
    case = laws.Case(
        [
            {"role": "user", "content": "go on"},
            {
                "role": "assistant",
                "content": "x",
                "tool_calls": [{"id": "c", "type": "function", "function": function}],
            },
            {"role": "tool", "content": [{"type": "text", "text": phrase}, {"type": "text", "text": "¤1"}]},
            {"role": "user", "content": phrase},
        ],
        settings=Settings(cache_floor="nothing", min_tokens=0),
    )
    other = json.loads(json.dumps(case.messages))
    if changed == "role":
        other[1]["role"] = "user"
    elif changed == "text":
        other[1]["content"] = "¤3"
    elif changed == "part":
        other[2]["content"][0]["text"] += " ¤4"
    elif changed == "parts":
        other[2]["content"] = other[2]["content"][:1]
    elif changed == "arguments":
        other[1]["tool_calls"][0]["function"]["arguments"] = '{"q": "¤1"}'
    elif changed == "call":
        other[1]["tool_calls"] *= 2
    else:
        del other[1]["tool_calls"]

    with Krunch(case.settings) as krunch:
        case.prepare(krunch)
        exchange = case._replace(messages=other).prepare(krunch)
        again = case.prepare(krunch)

    assert laws.repr_each(exchange.messages) == laws.repr_each(case._replace(messages=other).sent())
    assert laws.repr_each(again.messages) == laws.repr_each(case.sent())
