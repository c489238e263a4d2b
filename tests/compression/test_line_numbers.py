"""Numbers in front of lines, as tools print them: left out where they count up, but for the first and each tenth."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings, restore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins import Exchange

CODE = [
    "class Shape:",
    "    def area(self):",
    '        if self.kind == "circle":',
    "            return PI * self.radius ** 2",
    "        width, height = self.sides",
    "        return width * height",
    "",
    "    def scaled(self, factor):",
    "        if factor <= 0:",
    '            raise ValueError("a factor is above 0")',
    "        other = copy(self)",
    "        other.unit = self.unit * factor",
    "        return other",
    "",
    "    def __eq__(self, one):",
    "        return hash(one) == hash(self)",
]


def listing(first: int = 1, separator: str = "\t", width: int = 0, lines: Sequence[str] = CODE) -> str:
    """Lines as tools print them."""
    return "\n".join(f"{str(number).rjust(width)}{separator}{line}" for number, line in enumerate(lines, first))


def prepared(*texts: str, **options: Any) -> Exchange:
    """The request with these texts, restored exactly."""
    messages = [{"role": "tool", "tool_call_id": "c", "content": text} for text in texts]
    with Krunch(Settings(cache_floor="nothing", min_tokens=0, **options)) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
    assert restore(exchange.messages) == messages
    assert not exchange.report.problems
    return exchange


def sent(*texts: str, **options: Any) -> str:
    """What is sent for the last of them."""
    content: str = prepared(*texts, **options).messages[-1]["content"]
    return content


def reply(exchange: Exchange, written: str, size: int | None = None) -> str:
    """What a reply means; streamed in pieces of a size."""
    if size is None:
        whole: str = exchange.finish({"role": "assistant", "content": written})["content"]
        return whole
    stream, pieces = exchange.stream(), list[Any]()
    for start in range(0, len(written), size):
        pieces += stream.feed({"choices": [{"index": 0, "delta": {"content": written[start : start + size]}}]})
    pieces += stream.flush()
    return "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)


@pytest.mark.parametrize("profile", ["safe", "balanced", "dense"])
@pytest.mark.parametrize("separator", ["\t", ":", "→", "|", " | ", "│", ": "])
@pytest.mark.parametrize(("first", "width"), [(1, 0), (1, 6), (0, 0), (95, 3), (96, 0), (1234, 6)])
def test_numbers_are_left_out_but_for_the_first_and_each_tenth(
    profile: str, separator: str, first: int, width: int
) -> None:
    """In each of the ways in which tools print them; what comes back is the same to the character."""
    exchange = prepared(f"Read:\n{listing(first, separator, width)}\n\nDone.", profile=profile)
    content = exchange.messages[0]["content"]

    assert f"¤{{lines to {first + len(CODE) - 1}}}" in content
    numbers = [int(found) for found in re.findall(r"(?m)^ *([0-9]+)(?= ?[|│:\t→])", content.split("}", 1)[1])]
    kept = {first, *(number for number in range(first, first + len(CODE)) if number % 10 == 0)}
    assert set(numbers) <= kept  # a line's end may be within a symbol
    assert first in {int(found) for found in re.findall(r"\} *([0-9]+)", content)}


def test_a_listing_is_readable() -> None:
    """As a person and a model see it."""
    assert sent(listing(7), profile="safe").startswith(
        "¤{lines to 22}7\tclass Shape:\n"
        "    def area(self):\n"
        '        if self.kind == "circle":\n'
        "10\t            return PI * self.radius ** 2\n"
        "        width, height = self.sides\n"
        "        return width * height\n"
        "\n"
        "    def scaled(self, factor):\n"
        "        if factor <= 0:\n"
    )


def test_every_number_that_is_left_out_is_a_token_less() -> None:
    """Some eight tokens for the mark, and each tenth number, are all that a long listing costs."""
    rng = random.Random(1)
    (report,) = prepared(listing(lines=[f"    {rng.getrandbits(64):x}" for _ in range(200)])).report.messages

    assert report.tokens_before - report.tokens_after >= 170


@pytest.mark.parametrize(
    "text",
    [
        listing(lines=CODE[:4]),  # too short
        listing(999_999_990),  # nothing has so many lines, but for those up to nine digits
        "\n".join(f"{number:03}\t{line}" for number, line in enumerate(CODE)),  # zeros in front
        "\n".join(f"{2 * number}\t{line}" for number, line in enumerate(CODE)),  # does not count up
        "\n".join(f"{number}. {line}" for number, line in enumerate(CODE)),  # a list is prose
    ],
)
def test_what_is_no_listing_keeps_its_numbers(text: str) -> None:
    """All of them, or those from where it is none."""
    content = sent(text, profile="safe")

    assert "lines to 1" not in content
    assert content.count("\n") >= text.count("\n")


@pytest.mark.parametrize("profile", ["safe", "balanced", "dense"])
def test_what_looks_like_the_mark_is_not_taken_for_it(profile: str) -> None:
    """In front of lines that could be a run, and within one."""
    literal = f"¤{{lines to {len(CODE)}}}" + listing()
    inside = listing(lines=[*CODE[:5], "¤{lines to 9}1\ta", "¤¤{lines to 9}", *CODE[5:]])

    for text in (literal, inside, f"x{literal}", f"{literal}\n{inside}", "¤{lines to 3}1\ta\nb\nc"):
        prepared(text, text, profile=profile)


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0, 1, 8, 95, 999_999_993)),
            st.sampled_from(("\t", ":", "→", " |", ". ")),
            st.sampled_from((0, 0, 3)),
            st.lists(st.sampled_from((*CODE, "12\t}", "3:", "¤1", "¤{lines to 9}", "\r", "4\t4\tx")), max_size=25),
        ),
        max_size=4,
    ),
    st.sampled_from(("safe", "balanced", "dense")),
    st.sampled_from(("", "\n", "\nand\n")),
)
@example([(1, "\t", 0, CODE), (1, "\t", 0, CODE)], "balanced", "\n")
@example([(1, "\t", 0, CODE), (17, "\t", 0, ["17\tx", *CODE])], "balanced", "\n")
def test_any_listings_come_back(runs: list[tuple[int, str, int, list[str]]], profile: str, between: str) -> None:
    """Several, one after the other, of lines that hold numbers and marks; also from replies that copy them."""
    text = between.join(listing(*run) for run in runs)
    exchange = prepared(text, f"Again:\n{text}", profile=profile)

    for message, whole in zip(exchange.messages, (text, f"Again:\n{text}"), strict=True):
        meant = reply(exchange, message["content"])
        assert meant == reply(exchange, message["content"], size=7)
        assert all(line in whole.split("\n") or "¤" in line or "¤" in whole for line in meant.split("\n"))


@pytest.mark.parametrize("size", [None, 1, 5, 1000])
def test_a_reply_that_copies_lines_gets_their_numbers_back(size: int | None) -> None:
    """All lines or the first ones, with prose around; lines that the model numbers itself are not numbered twice."""
    text = listing(7)
    exchange = prepared(text, profile="safe")
    lines, whole = exchange.messages[0]["content"].split("\n"), text.split("\n")

    assert reply(exchange, "\n".join(lines), size) == text
    assert reply(exchange, "Look:\n" + "\n".join(lines[:6]) + "\n```\nIt fails.", size) == (
        "Look:\n" + "\n".join(whole[:6]) + "\n```\nIt fails."
    )
    assert reply(exchange, "\n".join([lines[0], *whole[1:4], *lines[4:6], "no such line", lines[7]]), size) == (
        "\n".join([*whole[:6], "no such line", lines[7]])
    )
    assert reply(exchange, "¤{lines to 22}7\tclass Other:\n    pass", size) == "¤{lines to 22}7\tclass Other:\n    pass"
    assert reply(exchange, "¤{lines to 22", size) == "¤{lines to 22"


def test_symbols_may_stand_for_the_end_of_a_line() -> None:
    """Their text is that without numbers, and still each line gets its own."""
    rng = random.Random(1)
    text = listing(lines=[line for _ in range(9) for line in (f"def {rng.getrandbits(32):x}", "    yield", "")])
    exchange = prepared(text, profile="balanced")
    content = exchange.messages[0]["content"]

    assert re.search(r"¤[0-9]+=[^¤]*\n[^¤]*¤", content)
    assert reply(exchange, content) == reply(exchange, content, size=3) == text


def test_lines_that_stood_before_stay_references() -> None:
    """A run ends at a reference and goes on behind it."""
    first, second = listing(1), listing(1, lines=[*CODE[:8], "        # checked", *CODE[8:]])
    content = sent(first, second)

    assert content.count("¤[") == 2
    assert prepared(first, second).report.messages[1].tokens_after < 60
