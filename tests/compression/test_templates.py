"""Templates: lines of one form are written as rows, and read back exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import count as numbers
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins.compression.segments import Mark, Segment, merge
from krunch_plugins.compression.templates import SEPARATORS, Template, TemplateBook, extract, fill
from krunch_plugins.tokens import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ACCESS = """What do you see?

83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /images/search.png HTTP/1.1" 200 203023
83.149.9.216 - - [17/May/2015:10:05:43 +0000] "GET /images/board.png HTTP/1.1" 200 171717
83.149.9.216 - - [17/May/2015:10:05:47 +0000] "GET /plugin/highlight.js HTTP/1.1" 200 26185
24.236.252.67 - - [17/May/2015:10:05:40 +0000] "GET /favicon.ico HTTP/1.1" 200 3638
93.114.45.13 - - [17/May/2015:10:05:14 +0000] "GET /articles/dns/ HTTP/1.1" 200 18848
93.114.45.13 - - [17/May/2015:10:05:04 +0000] "GET /reset.css HTTP/1.1" 200 1015
"""

tokens = load("o200k_base").count


def encode(
    segments: list[Segment], book: TemplateBook | None = None, first: int = 1
) -> tuple[list[Segment], list[Template]]:
    """`extract` with numbers from `first` on."""
    fresh = numbers(first)
    return extract(segments, book or TemplateBook(), fresh, tokens)


def decode(segments: list[Segment], added: list[Template], book: TemplateBook | None = None) -> list[Segment]:
    """`fill` with the templates of a book and new ones."""
    new = {template.number: template for template in added}
    return fill(segments, lambda number: new.get(number) or (book and book.get(number)) or None)


def wire(segments: list[Segment], added: list[Template]) -> str:
    """What is sent: a line for each definition, and the text."""
    return "".join(f"¤{one.number}{one.separator}{one.text}\n" for one in added) + "".join(segments)


def test_lines_of_one_form_become_a_template_and_rows() -> None:
    """A log is sent as one readable definition and the values of each line, in order and whole."""
    segments, added = encode([ACCESS])

    assert (
        wire(segments, added)
        == """¤1|{} - - [17/May/2015:{} +0000] "GET /{} HTTP/1.1" 200 {}
What do you see?

¤1*6
83.149.9.216|10:05:03|images/search.png|203023
|10:05:43|images/board.png|171717
|10:05:47|plugin/highlight.js|26185
24.236.252.67|10:05:40|favicon.ico|3638
93.114.45.13|10:05:14|articles/dns/|18848
|10:05:04|reset.css|1015
"""
    )
    assert decode(segments, added) == [ACCESS]


def test_a_known_template_serves_later_texts_for_nothing() -> None:
    """A single line of a known form becomes a row, and nothing is defined for it."""
    book = TemplateBook()
    for template in encode([ACCESS])[1]:
        book.add(template)
    later = 'And this?\n10.0.0.7 - - [17/May/2015:11:05:03 +0000] "GET /a/b HTTP/1.1" 200 77\nThanks.'
    segments, added = encode([later], book, first=2)

    assert added == []
    assert wire(segments, added) == "And this?\n¤1|10.0.0.7|11:05:03|a/b|77\nThanks."
    assert decode(segments, added, book) == [later]


def test_values_are_never_parts_of_words_or_numbers() -> None:
    """Constants end where a word, number, date or name ends, however much the values have in common."""
    lines = "\n".join(
        f"task abc{n}def took 10:05:{n} on host-{n}.example.org for user_{n} in total" for n in range(10, 40)
    )
    _, added = encode([lines])

    assert [template.text for template in added] == ["task {} took {} on {} for {} in total"]


def report(start: int, size: int) -> str:
    """Records of four lines each."""
    chance = random.Random(start)
    return "".join(
        f"2016-12-19T16:31:{46 + n % 10}: [GC pause (young), 0.00{chance.randrange(100, 999)} secs]\n"
        f"   [Parallel Time: {chance.randrange(9)}.2 ms, GC Workers: 1]\n"
        f"      [GC Worker Start (ms):  {chance.randrange(9000)}]\n"
        f"      [Code Root Fixup: {chance.randrange(3)} ms]\n"
        for n in range(start, start + size)
    )


def test_lines_that_always_follow_each_other_become_one_row() -> None:
    """A record of several lines is one template and one row, in later texts too."""
    book = TemplateBook()
    first = report(0, 12)
    segments, added = encode([first])

    assert [template.text.count("\\n") for template in added] == [3]
    assert "".join(segments).count("\n") == 13
    assert decode(segments, added) == [first]

    book.add(added[0])
    later = "And now?\n" + report(12, 1) + "Thanks."
    segments, more = encode([later], book, first=2)

    assert more == []
    assert "".join(segments).count("\n") == 2
    assert decode(segments, more, book) == [later]


def test_literal_backslashes_are_no_newlines() -> None:
    """Text that looks like the mark for a newline in a template is not taken for one."""
    lines = "\n".join(f'the worker number {n} prints "one\\ntwo\\n" to the controller' for n in range(20))
    segments, added = encode([lines])

    assert decode(segments, added) == [lines]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_the_separator_stands_in_no_value(separator: str) -> None:
    """What separates values is chosen so that it stands in none of them."""
    lines = "\n".join(
        f"the worker number {n} says {'a' + separator * (1 + n % 3)}{n} to the controller" for n in range(20)
    )
    segments, added = encode([lines])

    assert added
    assert all(template.separator != separator for template in added)
    assert decode(segments, added) == [lines]


def test_lines_with_every_separator_stay_as_they_are() -> None:
    """Values that hold all separators cannot be told apart, so their lines are sent as they came."""
    lines = "\n".join(f"the worker {n % 3 * 'a'}{n * SEPARATORS}b says hello to the controller" for n in range(1, 20))

    assert encode([lines]) == ([lines], [])


def test_lines_with_literal_slots_are_read_back_exactly() -> None:
    """Text that looks like a slot is not taken for one."""
    lines = "\n".join(f"the worker {{}} number {n} says {{}} to the main {{}} controller" for n in range(20))
    segments, added = encode([lines])

    assert decode(segments, added) == [lines]


def test_prose_is_left_alone() -> None:
    """Text without forms goes through unchanged."""
    text = "\n".join((__doc__ or "").split() * 3)
    segments, added = encode([text])

    assert (segments, added) == ([text], [])


def test_marks_of_other_stages_stay_where_they_are() -> None:
    """A line that a foreign mark is part of is no line of a form; the mark stands where it stood."""
    around: list[Segment] = [ACCESS, Mark("¤{pretty}"), ACCESS, Mark("¤[first … last 9]"), ACCESS]
    segments, added = encode(around)

    assert [one for one in segments if one in ("¤{pretty}", "¤[first … last 9]")] == [around[1], around[3]]
    assert decode(segments, added) == around


@pytest.mark.parametrize(
    "literal",
    [
        "",
        "|only|two",
        "|a|b|c|d|e",
        "*3\na|b|c|d",
        "*9999999999\n",
        "*0\n",
        "|||",
        "*1\n|||",
        "no row",
        "*2\na|b|c|d\n|",
    ],
)
def test_what_is_no_row_is_left_as_it_is(literal: str) -> None:
    """A mark with a template's number and no row behind it does not raise, and comes back as it was."""
    known = Template(7, "|", "{} - {} - {} - {}")
    segments: list[Segment] = [Mark("¤7"), literal]

    assert fill(segments, lambda number: known if number == 7 else None) == merge(segments)


def test_a_book_finds_templates_by_number() -> None:
    """A template that was added is found by its number, and no other."""
    book = TemplateBook()
    template = Template(3, "|", "GET {} from {}")
    book.add(template)

    assert book.get(3) == template
    assert book.get(4) is None
    assert len(book) == 1


def test_the_same_bytes_with_another_hash_seed() -> None:
    """Another process with another hash seed finds the same templates."""
    program = (
        "import json, sys\n"
        "from itertools import count\n"
        "from krunch_plugins.compression.templates import TemplateBook, extract\n"
        "from krunch_plugins.tokens import load\n"
        "fresh = count(1)\n"
        "done = extract([json.load(sys.stdin)], TemplateBook(), fresh, load('o200k_base').count)\n"
        "print(json.dumps(done))\n"
    )
    text = interleaved(300, seed=5)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(text),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert outputs == {json.dumps(encode([text])) + "\n"}


def interleaved(size: int, seed: int) -> str:
    """Lines of four forms, in any order."""
    chance = random.Random(seed)
    forms = [
        "2016-12-19 20:44:{:02d},{:03d} INFO rolled a new log segment for 'test-{}' in {} ms (kafka.log.Log)",
        "2016-12-19 20:44:{:02d},{:03d} DEBUG deleting the index /tmp/kafka-logs/test-{}/{}.index (kafka.log.Index)",
        "Mar 27 13:{:02d}:00 ip-10-77-20-248 sshd[{}]: Accepted publickey for ubuntu from 85.245.107.{} port {} ssh2",
        "at com.example.module{}.Service{}.call(Service{}.java:{})",
    ]
    return "\n".join(chance.choice(forms).format(*(chance.randrange(60) for _ in range(4))) for _ in range(size))


def test_interleaved_lines_of_several_forms_become_rows_of_their_templates() -> None:
    """Each form has one template, whatever the order of the lines; a form that would save nothing has none."""
    text = interleaved(80, seed=4)
    segments, added = encode([text])
    sent = wire(segments, added)

    assert {template.text.split()[-1] for template in added} == {"(kafka.log.Log)", "(kafka.log.Index)", "ssh2"}
    assert len(added) == 3
    assert all(line.startswith("at com.example") for line in text.split("\n") if line in sent)
    assert tokens(sent) < 0.75 * tokens(text)
    assert decode(segments, added) == [text]


def test_a_thousand_known_templates_cost_a_text_little() -> None:
    """Templates of other forms are not tried on a line."""
    book = TemplateBook()
    for number in range(1000):
        book.add(Template(number + 10, "|", f"the {{}} of kind{number} came from {{}} and went"))
    text = interleaved(200, seed=3)

    assert operations(text, book) < 1.2 * operations(text)


def operations(text: str, book: TemplateBook | None = None) -> int:
    """Function calls, C functions included, that `extract` takes for a text."""
    calls = 0

    def note(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        encode([text], book, first=2000)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize(
    "make",
    [
        lambda size: interleaved(size, seed=1),
        lambda size: report(0, size // 4),
        lambda size: "the very same line of text, again and again\n" * size,
        lambda size: "\n".join(f"{'a b c d ' * 20}{n}" for n in range(size)),
        lambda size: "\n".join(f"unlike{n} {n * n} {n * n * n} nothing{n}" for n in range(size)),
        lambda size: "\n".join("x " * (n % 50) + "end of this line" for n in range(size)),
    ],
    ids=["interleaved", "records", "equal", "long", "unlike", "steps"],
)
def test_the_work_grows_with_the_text_and_no_faster(make: object) -> None:
    """Four times the lines take about four times the operations."""
    assert callable(make)
    once, fourfold = operations(make(1000)), operations(make(4000))

    assert fourfold < 5 * once


def test_a_row_is_never_dearer_than_its_line() -> None:
    """With its definitions, a text that was rewritten has fewer tokens than before."""
    for seed in range(20):
        text = interleaved(5 + 3 * seed, seed)
        segments, added = encode([text])

        assert segments == [text] or tokens(wire(segments, added)) < tokens(text)


CELLS = st.one_of(
    st.integers(-5, 2000).map(str),
    st.sampled_from(
        ["GET", "POST", "-", "", " ", "  x", "ok", "/a/b", "10:05:03", "2015-05-17T10:05:03", "ä ö", "x=1"]
    ),
    st.sampled_from(
        ["{}", "{", "}", "|", ";", "~", "^", "!", "¤", "¤1", "¤1|", "¤1*3", "*2", "\r", "\t", "\u2028", "\ud800"]
    ),
    st.text(max_size=6),
)
CONSTANTS = st.sampled_from(
    [
        " [",
        "] ",
        " - ",
        ' "',
        '" ',
        " took ",
        ": ",
        "|",
        "{}",
        "{",
        "}",
        " sent by the controller to ",
        "¤1|",
        ",",
        "  ",
        "\\n",
        "\n  at ",
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Lines of a few forms, interleaved with others."""
    forms = draw(st.lists(st.lists(CONSTANTS, min_size=1, max_size=5), min_size=1, max_size=3))
    lines: list[str] = []
    for _ in range(draw(st.integers(0, 30))):
        constants = draw(st.sampled_from(forms))
        cells = draw(st.lists(CELLS, min_size=len(constants) + 1, max_size=len(constants) + 1))
        lines.append("".join(map(str.__add__, cells, [*constants, ""])))
        if draw(st.integers(0, 5)) == 0:
            lines.append(draw(CELLS))
    return draw(st.sampled_from(["", "intro\n"])) + "\n".join(lines) + draw(st.sampled_from(["", "\n", "\r\n"]))


FOREIGN = st.sampled_from(["¤{compact}", "¤[a … b 3]", "¤9000", "¤9001"]).map(Mark)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(texts(), FOREIGN), max_size=4), st.lists(texts(), max_size=2))
def test_any_text_comes_back_exactly(segments: list[Segment], later: list[str]) -> None:
    """Whatever the segments, undoing gives them back; also with templates known from the texts before."""
    book = TemplateBook()
    for given_segments in (segments, *([text] for text in later), segments):
        sent, added = encode(list(given_segments), book, first=len(book) + 1)

        assert decode(merge(sent), added, book) == merge(given_segments)
        assert all("\n" not in one.text and one.separator in SEPARATORS for one in added)
        for template in added:
            book.add(template)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 3))
def test_text_made_of_its_own_output_comes_back_exactly(size: int, seed: int, rounds: int) -> None:
    """A text that is what the stage wrote for another, once or more often, is a text like any other."""
    text = interleaved(size, seed)
    for _ in range(rounds):
        segments, added = encode([text])

        assert decode(segments, added) == merge([text])
        text = wire(segments, added)


def cut_at_random(text: str, chance: random.Random) -> Iterator[Segment]:
    """The text with foreign marks put in anywhere."""
    while text:
        size = chance.randrange(1, 400)
        yield text[:size]
        if chance.random() < 0.5:
            yield Mark("¤{compact}")
        text = text[size:]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(0, 2**32))
def test_marks_anywhere_in_a_log_are_survived(size: int, seed: int) -> None:
    """Literals that begin and end in the middle of a line come back exactly."""
    segments = list(cut_at_random(interleaved(size, seed), random.Random(seed)))
    sent, added = encode(segments)

    assert decode(sent, added) == merge(segments)
