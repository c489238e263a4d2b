"""Folding JSON. Texts are written by `json.dumps`, so that the product's own idea of a style is never the judge."""

from __future__ import annotations

import json
import re
from itertools import count as numbers
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.compression.folds import fold, unfold
from krunch_plugins.compression.segments import MARK, Mark, Segment, merge
from krunch_plugins.compression.shapes import ShapeBook
from krunch_plugins.tokens import load

if TYPE_CHECKING:
    from collections.abc import Sequence

tokens = load("o200k_base").count

STYLES: list[dict[str, Any]] = [
    {"ensure_ascii": ascii_only, option: value}
    for ascii_only in (True, False)
    for option, value in (
        *(("separators", pair) for pair in ((", ", ": "), (",", ":"), (",", ": "), (", ", ":"))),
        *(("indent", width) for width in (1, 2, 3, 4, 8, "\t")),
    )
]

USER = {
    "id": "mia_li_3668",
    "name": {"first_name": "Mia", "last_name": "Li"},
    "cards": {
        "card_442": {"source": "credit card", "last_four": "7447", "id": "card_442"},
        "card_195": {"source": "credit card", "last_four": "1907", "id": "card_195"},
    },
    "trips": [{"from": "JFK", "to": "SEA", "date": "2024-05-20"}, {"from": "SEA", "to": "JFK", "date": "2024-05-27"}],
}


class Conversation:
    """Both ends of a wire: what one folds, the other unfolds from the segments sent and nothing else."""

    def __init__(self, *, ditto: bool = False, count: Any = tokens) -> None:
        self.sender, self.receiver = ShapeBook(), ShapeBook()
        self._numbers, self._ditto, self._count = numbers(1), ditto, count

    def send(self, *segments: Segment) -> str:
        """Send a text; it must arrive as it was. Returns what was sent."""
        given = list(segments)
        sent, defined = fold(given, self.sender, self._numbers, self._count, ditto=self._ditto)
        received, recovered = unfold(sent, self.receiver)

        assert given == list(segments)
        assert [(type(s), s) for s in received] == [(type(s), s) for s in merge(segments)]
        assert recovered == defined
        for number, keys in defined:
            self.sender.add(number, keys)
        for number, keys in recovered:
            self.receiver.add(number, keys)
        return "".join(sent)


names = st.one_of(
    st.sampled_from(["id", "name", "a b", "", "x:y", "-", "é", MARK, "price", "on-time", "\u2028"]), st.text()
)
words = st.sampled_from(
    [
        *("", "-", "^", "=", "id", "true", "null", "007", "12", "1.", "-0", "1e5", "NaN", "2024-05-20", "10:30", "a,b"),
        *("[x]", "(", ")", "}", '"', "\\", "\\u00e9", "é", "😀", MARK, f"{MARK}1", f"{MARK}{{json}}", "\x7f", "\x85"),
        *("\n", "\ud800", "\u200b", "¼", "٣", "https://example.org/?a=b&c", "name", "longer text with words"),
    ]
)
atoms = st.one_of(
    words,
    st.text(max_size=8),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects, arrays, and arrays and objects of objects that are nearly alike."""
    record = st.lists(names, max_size=4, unique=True).flatmap(
        lambda keys: st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(keys, inner)), max_size=4)
    )
    return st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(names, inner, max_size=4),
        record,
        record.map(lambda rows: {f"row{i}": row for i, row in enumerate(rows)}),
    )


values = st.recursive(atoms, containers, max_leaves=20)
written = st.builds(lambda value, style: json.dumps(value, **style), values, st.sampled_from(STYLES))
prose = st.one_of(
    st.sampled_from(
        ["", "\n", "OBSERVATION: ", "```json\n", "\n```\n", " and ", "{", "[", '{"', '["', "}", ")", "¤", "7"]
    ),
    st.text(max_size=5),
)
texts = st.lists(st.one_of(written, prose), max_size=5).map("".join)


@settings(max_examples=300, deadline=None)
@example(  # empty values under keys that other objects fill, in places that borrow keys from each other
    [
        json.dumps(
            [
                {"id": {"a": {}, "b": {}}, "name": {"a": {}, "b": {"id": None}, "c": {}}},
                {"id": {"a": {}, "b": {}, "c": {}}},
            ],
            indent=1,
        )
    ],
    False,
    len,
)
@given(st.lists(texts, max_size=5), st.booleans(), st.sampled_from([tokens, len]))
def test_any_text_arrives_as_it_was(conversation: list[str], ditto: bool, count: Any) -> None:  # noqa: FBT001
    """Whatever JSON a conversation holds, in whatever style and wherever in its texts, comes back byte for byte."""
    wire = Conversation(ditto=ditto, count=count)
    for text in conversation:
        sent = wire.send(text)

        # Tokens of a piece and of its surroundings do not add up exactly: that sum is for whole texts to check.
        assert count is tokens or count(sent) <= count(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(values.filter(lambda value: isinstance(value, (dict, list)) and value), min_size=1, max_size=3), st.data()
)
def test_texts_made_of_what_was_sent_arrive(found: list[Any], data: st.DataObject) -> None:
    """Literals that are pieces of folded text, of marks and of JSON cut short are no marks and come back."""
    wire = Conversation(ditto=True, count=len)
    pieces = [
        f"{MARK}1",
        f"{MARK}1(",
        f"{MARK}2{{",
        f"{MARK}{{json}}",
        f"{MARK}{{json2a}}{MARK}1",
        "(",
        ")",
        "[",
        '{"a": 1}',
    ]
    for value in found:
        text = json.dumps(value, **data.draw(st.sampled_from(STYLES)))
        pieces += [text, text[: data.draw(st.integers(0, len(text)))], wire.send(text)]
    for _ in range(3):
        literals = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
        reference = st.just(Mark(f"{MARK}[3 lines: a … b]"))
        wire.send(*data.draw(st.lists(st.one_of(literals, reference), max_size=5)))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            texts,
            texts.map(lambda text: Mark(MARK + text)),
            st.sampled_from(
                [
                    Mark(f"{MARK}1"),
                    Mark(f"{MARK}2"),
                    Mark(f"{MARK}{{json}}"),
                    Mark(f"{MARK}{{nothing}}"),
                    "{a:1}",
                    "(1 2)",
                    "[(1)]",
                    "{a:^}",
                    "{a:{b:=",
                ]
            ),
        )
    )
)
def test_what_is_no_folded_value_is_left_alone(segments: list[Segment]) -> None:
    """Unfolding never fails: what cannot be read, in a text that nobody folded, stays as it is."""
    shapes = ShapeBook()
    shapes.add(1, fold([json.dumps(USER)], ShapeBook(), iter([1]), tokens)[1][0][1])
    before = [segment for segment in segments if not isinstance(segment, Mark)]
    out, _ = unfold(segments, shapes)

    assert unfold(before, shapes)[0] == merge(before)
    assert all(isinstance(segment, str) for segment in out)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_style_of_a_serializer_is_folded(style: dict[str, Any]) -> None:
    """JSON in each common style becomes smaller, and again smaller the second time, when its shape is known."""
    wire = Conversation()
    text = json.dumps([USER, USER | {"note": "Zoë"}], **style) + "\n"
    once, twice = wire.send(text), wire.send(text)

    assert tokens(text) > tokens(once) > tokens(twice)
    assert once.startswith(MARK)


@pytest.mark.parametrize(
    "text",
    [
        "OBSERVATION: {} done.", "Here it is:\n```json\n{}\n```\nAs you see.", "{}", "{}\n{}\n{}\n", "x = {}; y = 7{}8",
    ],
)  # fmt: skip
def test_json_is_found_wherever_it_stands(text: str) -> None:
    """A part of a line, a fenced block, lines of JSON: each value is folded, and the text around it stays."""
    around = text.split("{}")
    wire = Conversation()
    sent = wire.send(json.dumps(USER).join(around))

    position = 0
    for piece in around:
        position = sent.index(piece, position) + len(piece)
    assert "first_name" not in sent.replace("{first_name:Mia", "", 1)
    assert '"Mia"' not in sent


@pytest.mark.parametrize("frame", ["{}", "Here they are:\n```json\n{}\n```\nWhich are late?"])
@pytest.mark.parametrize("profile", ["safe", "balanced", "dense"])
def test_lines_in_common_do_not_keep_json_from_being_folded(profile: Any, frame: str) -> None:
    """Like objects, written over several lines, are as small as on one: references to lines do not cut them."""
    rows = [
        {"id": number, "name": f"item {number}", "city": "Rome", "tags": ["new"], "note": None} for number in range(40)
    ]
    with Krunch(Settings(profile=profile)) as krunch:

        def sent(*texts: str) -> int:
            messages = [{"role": "tool", "content": frame.replace("{}", text)} for text in texts]
            exchange = krunch.prepare(messages, model="gpt-4o")
            assert restore(exchange.messages) == messages
            return exchange.report.messages[-1].tokens_after

        compact = sent(json.dumps(rows))
        for indent in (1, 2, 4, "\t"):
            written = json.dumps(rows, indent=indent)
            assert sent(written) <= compact + 8
            assert sent(written, written) < 40  # what stood before as a whole is a reference still


def test_a_shape_of_an_earlier_message_serves_the_later_ones() -> None:
    """The second value of a shape is sent without any key, in another style too."""
    wire = Conversation()
    first = wire.send(json.dumps(USER))
    second = wire.send(json.dumps(USER | {"id": "bob"}))
    third = wire.send(json.dumps(USER, indent=2))

    assert first.startswith(f"{MARK}1{{id:mia_li_3668 name:{{first_name:Mia last_name:Li}}")
    assert second.startswith(f"{MARK}1(bob (Mia Li)")
    assert third.startswith(f"{MARK}{{json2}}{MARK}1(mia_li_3668 (Mia Li)")
    assert "date" not in second + third


def test_objects_under_ids_are_rows() -> None:
    """Objects that stand under ids of their own share their keys, though the objects around them never do."""
    wire = Conversation()
    sent = wire.send(json.dumps(USER))

    assert 'card_195:("credit card" "1907" card_195)' in sent


def test_a_row_says_which_keys_are_missing() -> None:
    """An object that lacks a key which the others of its place have is still a row."""
    rows = [{"id": i, "name": "Ann", "city": "Rome", "note": "good"} for i in range(3)]
    del rows[1]["city"]

    assert "(1 Ann - good)" in Conversation().send(json.dumps(rows))


def test_values_repeated_from_above_are_signs_on_request_only() -> None:
    """With `ditto`, a value of the object before, and the key above the object, are one sign; else they stay whole."""
    whole, short = Conversation().send(json.dumps(USER)), Conversation(ditto=True).send(json.dumps(USER))

    assert "card_195:(^ " in short
    assert "id:=" in short
    assert 'card_195:("credit card"' in whole
    assert tokens(short) < tokens(whole)


@pytest.mark.parametrize(
    "number", ["1.0", "1e5", "1E+05", "-0", "0.10", "1" + "0" * 400, "-1.5e-7", "123456789012345678901234567890"]
)  # fmt: skip
def test_odd_numbers_keep_their_form(number: str) -> None:
    """Numbers that no float or integer would give back in the same form are folded as they are written."""
    text = f'{{"first_value": {number}, "second_value": [{{"inner_value": {number}}}, {{"inner_value": "{number}"}}]}}'
    sent = Conversation(ditto=True).send(text)

    assert sent.startswith(MARK)
    assert f"first_value:{number}" in sent


RECORDS = json.dumps([{"name": "Ann", "city": "Rome"}] * 5)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "city": "Rome", "name": "Bob", "town": "Oslo"}',
        '{"name": NaN, "city": "Rome", "size": -Infinity, "other": "text"}',
        '{"name":  "Ann", "city": "Rome", "size": 12, "other": "text"}',
        '{ "name": "Ann", "city": "Rome", "size": 12, "other": "text" }',
        '{"name": "Ann", "city": "Rome", "size": 12, "other": "text",}',
        '{"name": "Ann", "city": "Rome", "size": 012, "other": "text"}',
        '{"name": "Ann", "city": "R\\/ome", "size": 12, "other": "text"}',
        '{"name": "\\ud800", "city": "Rome", "size": 12, "other": "text"}',
        '{"name": "Ann\n", "city": "Rome", "size": 12, "other": "text"}',
        "{'name': 'Ann', 'city': 'Rome', 'size': 12, 'other': 'text'}",
        '["many", "words", "in", "a", "list", "of", "code"]',
        '{"name": "Ann", "city": "Rome", "size": 12, "other": "text"',
    ],
)  # fmt: skip
def test_what_would_not_come_back_is_left_as_it_is(text: str) -> None:
    """Keys twice, NaN, broken and hand-written JSON stay; what follows is folded all the same."""
    assert Conversation().send(text) == text
    assert Conversation().send(text + "\n" + RECORDS).startswith(text + f"\n{MARK}1[")


@pytest.mark.parametrize("opened", ["[", '{"a": ', '[{"a": '])
@pytest.mark.parametrize("depth", [2, 30, 31, 32, 33, 63, 64, 65, 66, 100, 900, 20_000])
def test_deep_nesting_is_safe(opened: str, depth: int) -> None:
    """Values of any depth arrive, closed or not; those that are too deep are left as they are."""
    closed = {"[": "]", "{": "}"}
    core = '{"name": "Ann", "city": "Rome", "size": 12}'
    ends = "".join(closed[bracket] for bracket in reversed(opened) if bracket in closed)
    Conversation().send(opened * depth + core + ends * depth)
    Conversation().send(opened * depth + core)


@settings(max_examples=30, deadline=None)
@given(st.integers(2000, 2100), atoms, st.sampled_from(STYLES))
def test_long_values_are_found_whole(length: int, atom: Any, style: dict[str, Any]) -> None:
    """Values longer than what is looked at first are folded as a whole, wherever the first look happens to end."""
    text = json.dumps({"pad": "x" * length, "rows": [{"name": "Ann", "city": "Rome"}] * 9, "last": [atom]}, **style)
    sent = Conversation().send(text)

    assert sent.count(MARK) - json.dumps([atom], ensure_ascii=False).count(MARK) <= 2
    assert sent == text if _is_half(atom) else "(Ann Rome)" in sent


def _is_half(atom: Any) -> bool:
    return isinstance(atom, str) and bool(re.search("[\ud800-\udfff]", atom))


def test_half_a_surrogate_pair_is_not_sent_bare() -> None:
    """What JSON escapes because no encoding can carry it stays escaped, so that the request can be sent."""
    text = json.dumps([{"name": "\ud83d", "city": "Rome"}] * 9)

    assert Conversation().send(text).encode()


def test_shapes_too_large_are_not_defined() -> None:
    """A value with hundreds of keys is folded, but is no shape that later messages would have to look up."""
    wire = Conversation()
    sent = wire.send(json.dumps({f"a key {i}": {"name": "Ann"} for i in range(300)}))

    assert sent.startswith(f"{MARK}{{jsonsa}}{{")
    assert wire.sender.keys(1) is None


def test_a_book_made_again_from_its_shapes_folds_alike() -> None:
    """Shapes are all the state there is: a new book with the same shapes added gives the same text."""
    book, again = ShapeBook(), ShapeBook()
    _, defined = fold([json.dumps(USER) + RECORDS], book, numbers(1), tokens)
    for number, keys in defined:
        book.add(number, keys)
        again.add(number, keys)
    later = [json.dumps(USER | {"id": "x"}), Mark(f"{MARK}[1 line: a]"), RECORDS]

    assert [number for number, _ in defined] == [1, 2]
    assert fold(later, book, numbers(3), tokens) == fold(later, again, numbers(3), tokens)
    assert fold(later, book, numbers(3), tokens)[1] == []


def test_a_folded_value_is_read_without_its_shape_as_text() -> None:
    """A row whose shape is unknown (its message was dropped) is left as it stands: nothing is guessed."""
    shapes = ShapeBook()
    segments: Sequence[Segment] = [Mark(f"{MARK}1"), "(bob (Mia Li)) and more"]

    assert unfold(list(segments), shapes) == (list(segments), [])


@example(1)
@given(st.integers(1, 10**6))
def test_no_digit_follows_a_number(number: int) -> None:
    """A symbol is always followed by a bracket, so its number cannot run into what comes after it."""
    sent, _ = fold([json.dumps(USER) + "7"], ShapeBook(), iter([number, number + 1]), tokens)

    assert re.match(rf"{MARK}{number}[\[{{(]", "".join(sent))
