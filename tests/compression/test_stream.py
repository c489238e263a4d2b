"""Expansion of replies. The references here are written the slow, obvious way, on purpose unlike the product."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins.compression.meanings import Meanings
from krunch_plugins.compression.segments import LETTERS as ALL_LETTERS
from krunch_plugins.compression.segments import MARK
from krunch_plugins.compression.stream import ChunkExpander, expand_message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins.turns import Message

SYMBOLS = {
    f"{MARK}1": "ONE",
    f"{MARK}12": 'a "quoted"\n\\path',
    f"{MARK}305": f"literal {MARK}1 inside",
    f"{MARK}7": "<MA",
    f"{MARK}8": "x ONE\nx",
}
MEANINGS = Meanings.of_symbols(SYMBOLS)
TOKENS = {
    "<MAIL_1>": "ann@example.org",
    "<MAIL_1>>": 'Ann "A" \\ <x>',
    "MAIL": "post",
    'k"\\': "quoted\ttoken",
    "😀<": "smile",
    "é": "e",
}

ARABIC_ONE = "\u0661"
PIECES = [
    *(MARK, MARK + MARK, "1", "12", "2", "305", "30", "7", "8", "0", ARABIC_ONE),
    *(
        "=",
        "ONE",
        "=ONE",
        f"{MARK}é=accent{MARK}",
        f"{MARK}<MAIL_1>={MARK}8=x ",
        f"{MARK}😀=ONE={MARK}",
        "accent",
        f"{MARK}1=ONE{MARK}",
        f"{MARK}8=x ",
        f"{MARK}8=x {MARK}1",
        f"\nx{MARK}",
    ),
    *("\\", '"', "\n", " ", "x", "u00a4", "\\u00a4", "\\u00", "k", 'k"\\', "\u2028"),
    *("<", "<MAIL_", "<MAIL_1>", ">", "IL_1>", "😀", "😀<", "é", "\ud83d", "\ude00", "\ud83d\ude00<"),
]
patient = settings(deadline=None)
"""Nothing here is about time, and the machine may have other work."""

hostile_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
"""Text built of what could confuse the expander: runs of marks, digits, half tokens, half escapes, surrogates."""


def spellings(text: str, symbols: Mapping[str, str]) -> list[str]:
    """All ways in which the text of a definition can be written: symbols, or definitions again, for parts of it."""
    if not text:
        return [""]
    found = [text[0] + rest for rest in spellings(text[1:], symbols)] if text[0] != MARK else []
    for name, part in symbols.items():
        if text.startswith(part) and not (name[0] == MARK and text[len(part) : len(part) + 1].isdigit()):
            fewer = {other: value for other, value in symbols.items() if len(value) < len(part)}
            quotes = [f"{defined(name)}={inner}{MARK}" for inner in spellings(part, fewer)]
            rests = spellings(text[len(part) :], symbols)
            found += [here + rest for here in [name, *quotes] for rest in rests if here == name or ends(rest, symbols)]
    return found


def ends(rest: str, symbols: Mapping[str, str]) -> bool:
    """Whether a definition can end in front of this: with its mark, no symbol may begin there."""
    number = re.match("[0-9]+", rest)
    return MARK + number[0] not in symbols if number else not re.match(f"[{ALL_LETTERS}]", rest)


@cache
def marks(symbols: tuple[tuple[str, str], ...]) -> tuple[str, dict[str, str]]:
    """A pattern for quoted definitions and for symbols, escaped or not; and what each quoted definition stands for."""
    quotes = {}
    for name, value in symbols:
        fewer = {other: text for other, text in symbols if len(text) < len(value)}
        quotes.update({f"{defined(name)}={inner}{MARK}": value for inner in spellings(value, fewer)})
    numbers = "|".join(name[1:] for name, _ in symbols if name[0] == MARK)
    ends = rf"(?!(?:{numbers})(?![0-9])|[{ALL_LETTERS}])"  # as the function of that name
    return "|".join([*(re.escape(quote) + ends for quote in quotes), f"{MARK}+[0-9]+"]), quotes


def defined(name: str) -> str:
    """How the definition of a symbol begins."""
    return name if name.startswith(MARK) else MARK + name


def expanded(text: str, symbols: Mapping[str, str] = SYMBOLS, tokens: Mapping[str, str] = TOKENS) -> str:
    """What a reader with a pencil would make of a text: symbols first, then tokens, longest first."""
    either, quotes = marks(tuple(symbols.items()))

    def symbol(match: re.Match[str]) -> str:
        name = match[0]
        escaped = name.startswith(MARK + MARK) and MARK + name.lstrip(MARK) in symbols
        return quotes.get(name) or symbols.get(name) or name[escaped:]

    text = re.sub(either, symbol, text)
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.sub(pattern, lambda match: tokens[match[0]], text) if pattern else text


def cut(text: str, places: Sequence[int]) -> list[str]:
    """`text` in pieces, cut at the given places (taken modulo its length)."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(edges)] or [""]


def chunk(delta: dict[str, Any], *, choice: int = 0, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """One OpenAI chat completion chunk."""
    part = {"index": choice, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [part], **extra}


def arguments(text: str, *, index: int = 0, **extra: Any) -> dict[str, Any]:
    """A delta with a piece of a tool call's arguments."""
    return {"tool_calls": [{"index": index, **extra, "function": {"arguments": text}}]}


def collect(chunks: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], str]:
    """What a client puts together from chunks: the text of each field and tool call of each choice."""
    texts: dict[tuple[int, str], str] = {}
    for part in (part for each in chunks for part in each["choices"]):
        delta = part["delta"]
        found = {key: delta[key] for key in ("content", "refusal", "reasoning_content", "reasoning") if delta.get(key)}
        for call in delta.get("tool_calls", ()):
            for holder, key in (("function", "arguments"), ("custom", "input")):
                text = call.get(holder, {}).get(key, "")
                found[f"{key} {call['index']}"] = found.get(f"{key} {call['index']}", "") + text
        for name, text in found.items():
            texts[part["index"], name] = texts.get((part["index"], name), "") + text
    return {place: text for place, text in texts.items() if text}


def run(chunks: Sequence[dict[str, Any]], expander: ChunkExpander) -> list[dict[str, Any]]:
    """All that comes out of an expander for these chunks, flushed at the end."""
    return [out for each in chunks for out in expander.feed(each)] + expander.flush()


def whole(content: str) -> str:
    """A content, expanded as a whole message."""
    message: Message = {"role": "assistant", "content": content}
    result: str = expand_message(message, MEANINGS, TOKENS)[0]["content"]
    return result


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (f"{MARK}1 {MARK}12.", 'ONE a "quoted"\n\\path.'),
        (f"{MARK}123 {MARK}3 {MARK}30 {MARK}01", f"{MARK}123 {MARK}3 {MARK}30 {MARK}01"),
        (f"{MARK}{MARK}1", f"{MARK}1"),
        (f"{MARK}{MARK}{MARK}12x", f"{MARK}{MARK}12x"),
        (f"{MARK}{MARK}99 {MARK}{MARK} {MARK}", f"{MARK}{MARK}99 {MARK}{MARK} {MARK}"),
        (f"{MARK}1{MARK}1", "ONEONE"),
        (f"{MARK}1{ARABIC_ONE}", f"ONE{ARABIC_ONE}"),
        (f"{MARK}305", f"literal {MARK}1 inside"),
        ("<MAIL_1> <MAIL_1>> <MAIL_1", 'ann@example.org Ann "A" \\ <x> <post_1'),
        (f"{MARK}7IL_1>", "ann@example.org"),
        (f"{MARK}1=ONE{MARK}, {MARK}1=ONE{MARK}{MARK}1=ONE{MARK}9", "ONE, ONEONE9"),
        (f"{MARK}1=ONE{MARK}1 {MARK}1=ONE{MARK}12 {MARK}1=ONE{MARK}13", 'ONE=ONEONE ONE=ONEa "quoted"\n\\path ONE13'),
        (
            f"{MARK}8=x ONE\nx{MARK} {MARK}8=x {MARK}1\nx{MARK} {MARK}8=x {MARK}1=ONE{MARK}\nx{MARK}",
            "x ONE\nx x ONE\nx x ONE\nx",
        ),
        (f"{MARK}1=ON{MARK} {MARK}1=ONE {MARK}1={MARK}1={MARK}1=", f"ONE=ON{MARK} ONE=ONE ONE=ONE=ONE="),
        (f"{MARK}{MARK}1=ONE{MARK} {MARK}9=ONE{MARK}", f"{MARK}1=ONE{MARK} {MARK}9=ONE{MARK}"),
    ],
)
def test_symbols_and_tokens_in_text(written: str, meant: str) -> None:
    """Symbols and quoted definitions expand, escaped ones lose a mark, undefined ones stay; tokens come back."""
    assert whole(written) == meant


@patient
@given(hostile_text)
def test_whole_text_equals_the_reference(text: str) -> None:
    """A whole text expands to what a slow, separate reading of the rules gives."""
    assert whole(text) == expanded(text)


@patient
@given(hostile_text, st.lists(st.integers(0, 200)), st.booleans())
def test_any_split_of_a_text_gives_the_whole(text: str, places: list[int], finish: bool) -> None:  # noqa: FBT001
    """However a text is cut into chunks, the client puts together what the whole would have given."""
    chunks = [chunk({"content": piece}) for piece in cut(text, places)]
    chunks += [chunk({}, finish="stop")] * finish

    out = run(chunks, ChunkExpander(MEANINGS, TOKENS))

    assert collect(out).get((0, "content"), "") == expanded(text)


json_values = st.recursive(
    st.none() | st.integers() | hostile_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile_text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def json_spellings(draw: st.DrawFn) -> str:
    """A JSON value in one of the ways in which a model could write it: any character may come escaped."""
    value = draw(json_values)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    escape = draw(st.sets(st.sampled_from([*MARK, *"12<MAIL_1>k/é"])))
    upper = draw(st.booleans())

    def spell(match: re.Match[str]) -> str:
        if match[1] or match[0] not in escape:
            return match[0]
        code = f"{ord(match[0]):04x}"
        return "\\u" + (code.upper() if upper else code)

    strings = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
    return strings.sub(lambda string: re.sub(r"(\\u....|\\.)|.", spell, string[0], flags=re.DOTALL), text)


def expanded_json(value: Any) -> Any:
    """A JSON value with every string in it, keys too, expanded by the reference."""
    if isinstance(value, str):
        return expanded(value)
    if isinstance(value, list):
        return [expanded_json(item) for item in value]
    if isinstance(value, dict):
        return {expanded(key): expanded_json(item) for key, item in value.items()}
    return value


def canonical(value: Any) -> Any:
    """A JSON value as a reader of it has it: two escaped halves of a surrogate pair have become one character."""
    return json.loads(json.dumps(value))


@patient
@given(json_spellings(), st.lists(st.integers(0, 400)))
def test_tool_arguments_mean_what_the_whole_would(text: str, places: list[int]) -> None:
    """Arguments in any JSON spelling, in any chunks, stay JSON, and each string in them is expanded."""
    message: Message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "t", "function": {"arguments": text}}],
    }

    at_once = expand_message(message, MEANINGS, TOKENS)[0]["tool_calls"][0]["function"]["arguments"]
    out = run([chunk(arguments(piece)) for piece in cut(text, places)], ChunkExpander(MEANINGS, TOKENS))

    assert collect(out).get((0, "arguments 0"), "") == at_once
    assert canonical(json.loads(at_once)) == canonical(expanded_json(json.loads(text)))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"a": "¤12"}', '{"a": "a \\"quoted\\"\\n\\\\path"}'),
        (r'{"a": "\u00a41 \u00A41 \u00a4\u0031"}', '{"a": "ONE ONE ONE"}'),
        (r'{"a": "\\u00a41 \\\u00a41"}', r'{"a": "\\u00a41 \\ONE"}'),
        (r'{"a": "\u00a4\u00A412"}', r'{"a": "\u00a412"}'),
        (r'{"a": "\u00a499 \u00a"}', r'{"a": "\u00a499 \u00a"}'),
        (r'{"a": "\u003cMAIL_1\u003E"}', '{"a": "ann@example.org"}'),
        (r'{"a": "k\"\\", "b": "\ud83d\ude00<"}', '{"a": "quoted\\ttoken", "b": "smile"}'),
        ('{"a": "¤", "1": 2}', '{"a": "¤", "1": 2}'),
    ],
)
def test_spellings_of_a_mark_in_tool_arguments(written: str, meant: str) -> None:
    """In JSON text, escaped spellings count, an escaped backslash does not open one, and what is put in is escaped."""
    message: Message = {"role": "assistant", "function_call": {"name": "f", "arguments": written}}

    result, _ = expand_message(message, MEANINGS, TOKENS)
    out = run([chunk(arguments(char)) for char in written], ChunkExpander(MEANINGS, TOKENS))

    assert result["function_call"] == {"name": "f", "arguments": meant}
    assert collect(out)[0, "arguments 0"] == meant


@patient
@given(hostile_text, st.lists(st.integers(0, 200)))
def test_broken_json_gives_the_same_in_any_chunks(text: str, places: list[int]) -> None:
    """Arguments that are no JSON at all give the same whole and in chunks."""
    message: Message = {"role": "assistant", "tool_calls": [{"function": {"arguments": text}}]}

    out = run([chunk(arguments(piece)) for piece in cut(text, places)], ChunkExpander(MEANINGS, TOKENS))

    at_once = expand_message(message, MEANINGS, TOKENS)[0]["tool_calls"][0]["function"]["arguments"]
    assert collect(out).get((0, "arguments 0"), "") == at_once


@patient
@given(hostile_text)
def test_nothing_is_invented(text: str) -> None:
    """Where a request defines other symbols and tokens than those in a reply, every field of it stays as it is."""
    elsewhere, token = {f"{MARK}987654321": "X", f"{MARK}98765432": "Y"}, {"<OTHER>": "Z"}
    message: Message = {
        "role": "assistant",
        "content": text,
        "reasoning": text,
        "tool_calls": [{"function": {"arguments": text}}, {"custom": {"input": text}}],
    }

    assert expand_message(message, Meanings.of_symbols(elsewhere), token) == (message, 0)


@patient
@given(st.lists(st.tuples(st.integers(0, 5), hostile_text), max_size=12))
def test_interleaved_choices_and_tool_calls_do_not_mix(pieces: list[tuple[int, str]]) -> None:
    """Texts of several choices, fields and tool calls, interleaved, each expand as if they had come alone."""
    places = [(0, "content"), (0, "refusal"), (0, "arguments 0"), (0, "arguments 1"), (1, "content"), (1, "input 0")]
    texts = dict.fromkeys(places, "")
    chunks = []
    for which, piece in pieces:
        choice, name = places[which]
        kind, _, index = name.partition(" ")
        texts[choice, name] += piece
        delta: dict[str, Any] = {kind: piece}
        if kind == "arguments":
            delta = arguments(piece, index=int(index))
        if kind == "input":
            delta = {"tool_calls": [{"index": 0, "type": "custom", "custom": {"input": piece}}]}
        chunks.append(chunk(delta, choice=choice))
    alone = {}
    for place, text in texts.items():
        call = {"function": {"arguments": text}}
        result = expand_message({"content": text, "tool_calls": [call]}, MEANINGS, TOKENS)[0]
        in_json = place[1].startswith("arguments")
        alone[place] = result["tool_calls"][0]["function"]["arguments"] if in_json else result["content"]

    expander = ChunkExpander(MEANINGS, TOKENS)
    out = run(chunks, expander)

    assert collect(out) == {place: text for place, text in alone.items() if text}
    for choice, message in expander.assembled():
        here = {name: text for (where, name), text in alone.items() if where == choice and text}
        calls = [call.get("custom") or call["function"] for call in message.get("tool_calls", ())]
        assert (message["content"] or "") == here.get("content", "")
        assert message.get("refusal", "") == here.get("refusal", "")
        in_calls = [call.get("input") or call.get("arguments") for call in calls]
        in_alone = [here[name] for name in ("arguments 0", "arguments 1", "input 0") if name in here]
        assert [text for text in in_calls if text] == in_alone


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=f"{MARK}12<x", max_size=8), st.booleans())
def test_all_that_is_decided_has_gone_out(start: str, tokens: bool) -> None:  # noqa: FBT001
    """After each chunk, exactly what no continuation can change any more has gone out."""
    symbols = {} if tokens else {f"{MARK}1": "A", f"{MARK}121": "B"}
    originals = {"<x>": "A", "<x<1": "B", "2<": "C"} if tokens else {}
    endings = ["".join(ending) for size in range(4) for ending in product(f"{MARK}12<x>", repeat=size)]
    possible = [expanded(start + ending, symbols, originals) for ending in endings]
    certain = next(
        (place for place, chars in enumerate(zip(*possible, strict=False)) if len(set(chars)) > 1),
        min(map(len, possible)),
    )

    meanings = Meanings.of_symbols(symbols) if symbols else None
    out = ChunkExpander(meanings, originals).feed(chunk({"content": start}))

    assert out[0]["choices"][0]["delta"]["content"] == possible[0][:certain]


@patient
@given(hostile_text)
def test_hold_back_is_no_longer_than_a_symbol(text: str) -> None:
    """Fed character by character, never more is held back than the longest symbol has, in JSON its longest spelling."""
    meanings = Meanings.of_symbols({f"{MARK}1": "A", f"{MARK}12": "B", f"{MARK}305": "C"})
    for end in range(len(text) + 1):
        plain, in_json = ChunkExpander(meanings, {}), ChunkExpander(meanings, {})
        for char in text[:end]:
            plain.feed(chunk({"content": char}))
            in_json.feed(chunk(arguments(char)))

        assert len(collect(plain.flush()).get((0, "content"), "")) <= len(f"{MARK}305")
        assert len(collect(in_json.flush()).get((0, "arguments 0"), "")) <= len(r"\u00a4\u0033\u0030\u0035")


@pytest.mark.parametrize("text", [f"{MARK}1=" * 5000, MARK * 50_000 + "1", "\\u" * 5000, '"' * 5000, "<MAIL_" * 5000])
def test_long_hostile_texts_pass(text: str) -> None:
    """No repetition, however long, breaks the expander or is held back: all but the end has gone out."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    (out,) = expander.feed(chunk({"content": text, **arguments(text)}))

    gone = collect([out])
    assert len(gone[0, "content"]) > len(text) - 10
    assert len(gone[0, "arguments 0"]) > len(text) - 10


def test_one_mark_of_a_run_is_held_back() -> None:
    """In a run of marks all but the last go out at once: they stay whatever follows."""
    out = ChunkExpander(MEANINGS, {}).feed(chunk({"content": MARK * 5}))

    assert out[0]["choices"][0]["delta"]["content"] == MARK * 4


@pytest.mark.parametrize("text", [f"{MARK}2", f"{MARK}121", f"{MARK}x", f"{MARK} ", "plain"])
def test_what_cannot_become_a_symbol_goes_out_at_once(text: str) -> None:
    """Digits that begin no defined symbol are not waited for."""
    out = ChunkExpander(MEANINGS, TOKENS).feed(chunk({"content": text}))

    assert out[0]["choices"][0]["delta"]["content"] == text


LETTERS = {"\u10d0": "ONE", "\u10d1": "x ONE\nx", "\u0561": "accent"}
"""Symbols of the dense profile."""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\u10d0 (\u10d1), 1\u0561.", "ONE (x ONE\nx), 1accent."),
        ("\u10d0\u10d1 \u10d0\u10db \u10db \u10db\u10d0", "\u10d0\u10d1 \u10d0\u10db \u10db \u10db\u10d0"),
        (f"{MARK}\u10d0 {MARK}\u10db {MARK}\u10d0\u10d1", f"\u10d0 {MARK}\u10db {MARK}\u10d0\u10d1"),
        (f"{MARK}{MARK}\u10d0 {MARK}{MARK}\u10d0=ONE{MARK}", f"{MARK}\u10d0 {MARK}\u10d0=ONE{MARK}"),
        (f"{MARK}\u10d0=ONE{MARK}{MARK}\u10d1=x {MARK}\u10d0=ONE{MARK}\nx{MARK}", "ONEx ONE\nx"),
        (f"{MARK}\u10d1=x \u10d0\nx{MARK} {MARK}\u10d0=TWO{MARK}", f"x ONE\nx \u10d0=TWO{MARK}"),
    ],
)
def test_letters_are_symbols_where_they_stand_alone(written: str, meant: str) -> None:
    """Words of the scripts that the letters are from stay; a mark in front makes a letter itself, or defines it."""
    meanings = Meanings.of_symbols({**SYMBOLS, **LETTERS})
    message: Message = {"role": "assistant", "content": written}

    out = run([chunk({"content": char}) for char in written], ChunkExpander(meanings, {}))

    assert expand_message(message, meanings, {})[0]["content"] == meant
    assert collect(out)[0, "content"] == meant


def test_metadata_passes_at_once_and_input_stays() -> None:
    """Chunks without text come out equal, one for one; text that is held back holds no chunk back; no input changes."""
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": f"a {MARK}"}, usage={"total_tokens": 3}),
        {"id": "c1", "choices": [], "usage": {"total_tokens": 9}},
        chunk({"thinking_blocks": [{"thinking": f"{MARK}1", "signature": f"{MARK}1"}], "content": None}),
        {"id": "c1", "choices": [{"index": 0, "delta": None}, "odd"], "odd": True},
        {"error": {"message": f"{MARK}1"}},
    ]
    before = copy.deepcopy(chunks)
    expander = ChunkExpander(MEANINGS, TOKENS)

    out = [expander.feed(each) for each in chunks]

    assert chunks == before
    assert [len(each) for each in out] == [1] * len(chunks)
    assert [out[place][0] for place in (0, 2, 3, 4, 5)] == [chunks[place] for place in (0, 2, 3, 4, 5)]
    assert out[1][0]["usage"] == {"total_tokens": 3}
    assert out[1][0]["choices"][0]["delta"] == {"content": "a "}


def test_held_text_comes_with_the_finish_reason() -> None:
    """Nothing of a choice comes after its finish_reason: what was held back is in that chunk's delta."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    expander.feed(chunk({"content": f"see {MARK}1"}))
    expander.feed(chunk({"content": f"see {MARK}12"}, choice=1))
    expander.feed(chunk(arguments(f"{MARK}1", index=2, id="t2")))
    expander.feed(chunk({"function_call": {"name": "f", "arguments": f"{MARK}1"}}))

    (last,) = expander.feed(chunk({}, finish="tool_calls"))

    assert last["choices"][0] == {
        "index": 0,
        "delta": {
            "content": "ONE",
            "tool_calls": [{"index": 2, "function": {"arguments": "ONE"}}],
            "function_call": {"arguments": "ONE"},
        },
        "finish_reason": "tool_calls",
        "logprobs": None,
    }
    assert [part["choices"][0]["index"] for part in expander.flush()] == [1]


def test_held_text_joins_what_the_finishing_chunk_brings() -> None:
    """A finishing chunk that has text and tool arguments itself gets the held-back rest behind them."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    expander.feed(chunk({"content": MARK}))
    expander.feed(chunk(arguments(MARK)))

    (last,) = expander.feed(chunk({"content": f"1 {MARK}1", **arguments(f"1 {MARK}1")}, finish="stop"))

    assert last["choices"][0]["delta"] == {"content": "ONE ONE", **arguments("ONE ONE")}


def test_flushed_chunk_is_modelled_on_the_last_one() -> None:
    """What flush gives back belongs to the stream: same id, model and time; no usage a second time."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    expander.feed(chunk({"content": f"{MARK}1"}, choice=1, usage={"total_tokens": 9}))

    assert expander.flush() == [
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "m",
            "choices": [{"index": 1, "delta": {"content": "ONE"}, "finish_reason": None}],
        }
    ]
    assert expander.flush() == []


def test_logprobs_stay_with_their_chunk() -> None:
    """The log probabilities of a chunk come out with that chunk, unchanged, though its text may come later."""
    logprobs = {"content": [{"token": MARK, "logprob": -0.5, "top_logprobs": []}]}
    each = {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": MARK}, "logprobs": logprobs, "finish_reason": None}],
    }

    (out,) = ChunkExpander(MEANINGS, TOKENS).feed(each)

    assert out["choices"][0] == {"index": 0, "delta": {"content": ""}, "logprobs": logprobs, "finish_reason": None}


def test_assembled_reply_of_a_whole_stream() -> None:
    """After a stream each choice is one whole message: role, texts, and tool calls merged by index."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    first = {"id": "t0", "type": "function", "function": {"name": "look", "arguments": ""}}
    custom = {"index": 1, "id": "t1", "type": "custom", "custom": {"name": "shell", "input": f"ls {MARK}1"}}
    for delta in (
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **first}]},
        {"reasoning_content": f"because {MARK}"},
        {"reasoning_content": "12"},
        arguments('{"to": "<MAIL'),
        {"tool_calls": [custom]},
        arguments('_1>"}'),
    ):
        expander.feed(chunk(delta, choice=1))
    expander.feed(chunk({"content": f"<MAIL_1> {MARK}1"}))
    expander.feed(chunk({}, finish="stop"))
    expander.feed(chunk({}, choice=1, finish="tool_calls"))

    assert expander.assembled() == [
        (0, {"role": "assistant", "content": "ann@example.org ONE"}),
        (
            1,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": 'because a "quoted"\n\\path',
                "tool_calls": [
                    {**first, "function": {"name": "look", "arguments": '{"to": "ann@example.org"}'}},
                    {"id": "t1", "type": "custom", "custom": {"name": "shell", "input": "ls ONE"}},
                ],
            },
        ),
    ]
    assert expander.expanded == 3


def test_assembled_reply_of_a_broken_stream_has_what_was_held_back() -> None:
    """In the middle of a stream the assembled reply is whole, and asking for it changes nothing."""
    expander = ChunkExpander(MEANINGS, TOKENS)
    expander.feed(chunk({"content": f"see {MARK}1"}))

    halfway = expander.assembled()
    (rest,) = expander.feed(chunk({"content": "2"}, finish="stop"))

    assert halfway == [(0, {"role": "assistant", "content": "see ONE"})]
    assert rest["choices"][0]["delta"]["content"] == SYMBOLS[f"{MARK}12"]
    assert expander.expanded == 1


def test_content_that_is_json_is_escaped() -> None:
    """With `json_content` the content is JSON text, in whole replies and in streams; other fields are not."""
    text = r'{"a": "\u00a412"}'
    message: Message = {"role": "assistant", "content": text, "reasoning": f"{MARK}12"}
    expander = ChunkExpander(MEANINGS, {}, json_content=True)

    result, count = expand_message(message, MEANINGS, {}, json_content=True)
    out = run([chunk({"content": char}) for char in text], expander)

    assert json.loads(result["content"]) == {"a": SYMBOLS[f"{MARK}12"]}
    assert (result["reasoning"], count) == (SYMBOLS[f"{MARK}12"], 2)
    assert collect(out)[0, "content"] == result["content"]


def test_only_the_models_text_is_touched() -> None:
    """Text parts expand; other parts, names, ids, signed blocks and unknown keys pass; the input is not changed."""
    message: Message = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": f"{MARK}1", "x": f"{MARK}1"},
            {"type": "image", "text": f"{MARK}1"},
            "odd",
        ],
        "refusal": f"{MARK}1",
        "name": f"{MARK}1",
        "thinking_blocks": [{"type": "thinking", "thinking": f"{MARK}1", "signature": f"{MARK}1"}],
        "tool_calls": [{"id": f"{MARK}1", "function": {"name": f"{MARK}1", "arguments": {"a": f"{MARK}1"}}}, None],
        "function_call": None,
        "provider": {"text": f"{MARK}1"},
    }
    before = copy.deepcopy(message)

    result, count = expand_message(message, MEANINGS, TOKENS)

    assert message == before
    parts = [{"type": "text", "text": "ONE", "x": f"{MARK}1"}, *before["content"][1:]]
    assert result == {**before, "content": parts, "refusal": "ONE"}
    assert count == 2


def test_deltas_with_parts_expand_across_chunks() -> None:
    """Content that streams as lists of parts is one text, whatever parts it is cut into."""
    chunks = [chunk({"content": [{"type": "text", "text": part}]}) for part in ("see ", MARK, "1")]
    expander = ChunkExpander(MEANINGS, TOKENS)

    out = run([*chunks, chunk({"content": [{"type": "text", "text": "2"}]}, finish="stop")], expander)

    texts = [item["text"] for each in out for item in each["choices"][0]["delta"]["content"]]
    assert "".join(texts) == f"see {SYMBOLS[f'{MARK}12']}"
    assert expander.assembled()[0][1]["content"] == "".join(texts)
