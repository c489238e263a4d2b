"""Replies that copy marks from their request: references, folded values, rows of templates."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import conversations
import laws
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, KrunchError, Settings, restore
from krunch_plugins.compression.meanings import Meanings
from krunch_plugins.compression.stream import ChunkExpander

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins import Exchange

Message = dict[str, Any]

CODE = """\
def area(shape):
    if shape.kind == "circle":
        return PI * shape.radius ** 2
    width, height = shape.sides
    return width * height"""

BOOKINGS = [
    {"booking_id": "B271", "customer": "Ann Ray", "status": "confirmed", "nights": 2},
    {"booking_id": "B371", "customer": "Ben Cole", "status": "cancelled", "nights": 3},
]
SETTINGS = {"retries": 3, "labels": ["nightly build", "payment service"], "owner": {"name": "Ann Ray", "team": "core"}}

LOG = """\
10.0.0.7 - - [17/May/2026:10:05:03] "GET /static/app.js HTTP/1.1" 200 in 12 ms
10.0.0.7 - - [17/May/2026:10:05:04] "GET /static/style.css HTTP/1.1" 200 in 31 ms
10.0.0.9 - - [17/May/2026:10:05:09] "GET /static/app.js HTTP/1.1" 404 in 12 ms
10.0.0.12 - - [17/May/2026:10:05:11] "GET /static/logo.png HTTP/1.1" 200 in 20 ms
10.0.0.12 - - [17/May/2026:10:05:15] "GET /static/fonts.woff HTTP/1.1" 200 in 44 ms"""
LINES = LOG.split("\n")
LATER = [LINES[2].replace("10:05", "10:17"), LINES[4].replace("10:05", "10:18")]

PROSE = "the nightly export of all invoices to the finance department in Bonn"
NOTE = f"Check that {PROSE} has finished. If {PROSE} has failed, restart it. Tell me when {PROSE} is late."

TEXTS = (
    CODE,
    f"Here is the file once more:\n{CODE}\nWhy does it fail for a triangle?",
    json.dumps(BOOKINGS),
    "Both bookings again, one changed: " + json.dumps([{**BOOKINGS[0], "nights": 4}, BOOKINGS[1]]) + "\nThanks.",
    json.dumps(SETTINGS, indent=2),
    LOG,
    f"These two failed:\n{LATER[0]}\nand later\n{LATER[1]}",
    NOTE,
    f"Once more: {PROSE} took two hours.",
)


@cache
def request(profile: str = "balanced") -> Exchange:
    """A request that holds marks of every kind."""
    messages = [{"role": "user", "content": text} for text in TEXTS]
    with Krunch(Settings.model_validate({"profile": profile, "cache_floor": "nothing"})) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
    assert restore(exchange.messages) == messages
    return exchange


def sent(place: int, profile: str = "balanced") -> str:
    """The text that was sent for one of `TEXTS`."""
    text: str = request(profile).messages[place]["content"]
    return text


def reply(exchange: Exchange, text: str) -> str:
    """A whole reply of this text, expanded."""
    content: str = exchange.finish({"role": "assistant", "content": text})["content"]
    assert not exchange.report.problems
    return content


def streamed(exchange: Exchange, text: str, places: Sequence[int]) -> str:
    """The same, streamed in pieces that are cut at these places."""
    stream, out = exchange.stream(), []
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    for start, stop in pairwise(edges):
        out += stream.feed({"choices": [{"index": 0, "delta": {"content": text[start:stop]}}]})
    out += stream.flush()
    assert not exchange.report.problems
    return "".join(part["choices"][0]["delta"].get("content") or "" for part in out)


def argument(exchange: Exchange, arguments: str, places: Sequence[int] = ()) -> str:
    """Tool-call arguments, expanded; whole and streamed, which must be the same."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = exchange.finish({"role": "assistant", "content": None, "tool_calls": [call]})
    whole: str = message["tool_calls"][0]["function"]["arguments"]
    stream, out = exchange.stream(), []
    edges = sorted({0, len(arguments), *(place % (len(arguments) + 1) for place in places)})
    for start, stop in pairwise(edges):
        part = {"tool_calls": [{"index": 0, "function": {"arguments": arguments[start:stop]}}]}
        out += stream.feed({"choices": [{"index": 0, "delta": part}]})
    out += stream.flush()
    deltas = [part["choices"][0]["delta"] for part in out]
    pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if delta.get("tool_calls")]
    assert "".join(pieces) == whole
    return whole


def test_the_request_holds_every_kind_of_mark() -> None:
    """What the other tests copy is really there."""
    assert [sent(place).count("¤") > 0 for place in range(len(TEXTS))] == [False] + [True] * (len(TEXTS) - 1)
    assert "¤[5 lines def area(shape … return width *]" in sent(1)
    assert '¤1[(B271 "Ann Ray" confirmed 4)(B371 "Ben Cole" cancelled 3)]' in sent(3)
    assert sent(4).startswith("¤{json2}¤2{")
    assert "\n¤3*5\n" in sent(5)
    assert "\n¤3|10.0.0.9|" in sent(6)
    assert "¤4=" in sent(7)
    assert "¤4" in sent(8)


@pytest.mark.parametrize("profile", laws.PROFILES)
@pytest.mark.parametrize("place", range(len(TEXTS)))
def test_a_text_that_is_copied_whole_comes_back(place: int, profile: str) -> None:
    """A reply that repeats what was sent for a message is that message, whole and character by character."""
    text = sent(place, profile)

    assert reply(request(profile), text) == TEXTS[place]
    assert streamed(request(profile), text, range(len(text))) == TEXTS[place]


BOTH = json.dumps([{**BOOKINGS[0], "nights": 4}, BOOKINGS[1]])
ONE = json.dumps({**BOOKINGS[1], "nights": 9})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("As in ¤[5 lines def area(shape … return width *], it fails.", f"As in {CODE}, it fails."),
        ("```python\n¤[5 lines def area(shape … return width *]\n```", f"```python\n{CODE}\n```"),
        ("¤[5  lines def area(shape ... return width *]", CODE),
        ("¤[5 lines def area(shape … return width *]]", f"{CODE}]"),
        ('So: ¤1[(B271 "Ann Ray" confirmed 4)(B371 "Ben Cole" cancelled 3)].', f"So: {BOTH}."),
        ('`¤1[(B271 "Ann Ray" confirmed 4), (B371, "Ben Cole", cancelled, 3)]`', f"`{BOTH}`"),
        ('¤1[\n  (B271 "Ann Ray" confirmed 4)\n  (B371  "Ben Cole" cancelled 3 )\n]', BOTH),
        ('It is ¤1(B371 "Ben Cole" cancelled 9) now.', f"It is {ONE} now."),
        ('¤1[{booking_id:B371 customer:"Ben Cole" status:cancelled nights:9}]', f"[{ONE}]"),
        ('¤{json2}¤2(3 ["nightly build"]("Ann Ray" core))',
         json.dumps({**SETTINGS, "labels": ["nightly build"]}, indent=2)),
        ("¤3|10.0.0.9|10:05:09|app.js|404|12\n", f"{LINES[2]}\n"),
        ("¤3| 10.0.0.9 | 10:05:09 | app.js | 404 | 12", LINES[2]),
        ("Look: ¤3|10.0.0.9|10:05:09|app.js|404|12 is the only one.", f"Look: {LINES[2]} is the only one."),
        ("- `¤3|10.0.0.9|10:05:09|app.js|404|12` (odd)", f"- `{LINES[2]}` (odd)"),
        ("¤3|10.0.0.9|10:05:09|new.js|500|1", LINES[2].replace("app.js", "new.js").replace("404 in 12", "500 in 1")),
        ("¤3||10:05:04|style.css||31", LINES[1]),
        ("¤3*5\n10.0.0.7|10:05:03|app.js|200|12\n10.0.0.9|10:05:09|app.js|404|12\nThat is it.",
         f"{LINES[0]}\n{LINES[2]}\nThat is it."),
        ("    ¤3*2\n    10.0.0.7|10:05:03|app.js|200|12\n    10.0.0.9|10:05:09|app.js|404|12",
         f"        {LINES[0]}\n    {LINES[2]}"),
        (f"¤4 and¤4= {PROSE}¤, ¤4=x", f" {PROSE} and {PROSE},  {PROSE}=x"),
    ],
)  # fmt: skip
def test_marks_in_the_words_of_a_model(written: str, meant: str) -> None:
    """In a sentence, a fence or a list, with other spaces or commas, a part, or new: what is clear is expanded."""
    assert reply(request(), written) == meant
    assert streamed(request(), written, range(len(written))) == meant


@pytest.mark.parametrize(
    "written",
    [
        "¤[4 lines def area(shape … return width *] ¤[nothing of the kind] ¤[",
        "¤9(B271) ¤99[(1 2)] ¤9|a|b ¤9*2\na|b\n",
        '¤1[(B271 "Ann Ray" confirmed)] ¤1(a b) ¤1[see below] ¤1{}x ¤1',
        '¤1[(B271 "Ann Ray" confirmed 4)(B371 "Ben',
        "¤1[(B271\nis one of them\nbut this is prose)]",
        "¤1[¤1[¤1[",
        "¤2 (see above) ¤{json2} ¤{json2}x ¤{json9}{a:1} ¤{json4}{a:1}",
        "¤3|only|two ¤3*2\nno row\nat all",
        "¤3*2\n\n¤3* 2 ¤3*0\n",
        "See ¤3|10.0.0.9|10:05:09|other.js|404|some place",
        "¤N=text¤ is how it defines ¤N, and ¤N rows are rows.",
    ],
)
def test_what_means_nothing_stays(written: str) -> None:
    """Marks of other requests, cut or broken ones, and prose that begins like one, come back as they were written."""
    assert reply(request(), written) == written
    assert streamed(request(), written, range(len(written))) == written
    assert argument(request(), json.dumps({"a": written}, ensure_ascii=False), range(2000)) == json.dumps(
        {"a": written}, ensure_ascii=False
    )


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("place", range(len(TEXTS)))
def test_marks_in_tool_arguments_stay_json(place: int, ascii_only: bool) -> None:  # noqa: FBT001
    """Copied into a string of tool-call arguments, a text is escaped as one."""
    given = json.dumps({"text": sent(place), "again": [sent(place)]}, ensure_ascii=ascii_only)

    arguments = argument(request(), given, range(len(given)))

    assert json.loads(arguments) == {"text": TEXTS[place], "again": [TEXTS[place]]}


def test_a_folded_value_outside_the_strings_of_json_is_json() -> None:
    """Where a model puts a value of the notation in the place of a JSON value, the arguments are JSON again."""
    given = (
        '{"rows": ¤1[(B271 "Ann Ray" confirmed 4)(B371 "Ben Cole" cancelled 3)], '
        '"one": ¤1(B371 "Ben Cole" cancelled 9), "set": ¤{json2}¤2(3 ["a ¤4"]("Ann Ray" core)), "¤1": "¤1(", "n": 1}'
    )

    arguments = json.loads(argument(request(), given, range(len(given))))

    assert arguments == {
        "rows": json.loads(BOTH),
        "one": json.loads(ONE),
        "set": {**SETTINGS, "labels": [f"a  {PROSE}"]},
        "¤1": "¤1(",
        "n": 1,
    }


def test_a_reply_in_json_is_served_alike() -> None:
    """With `json_reply` the content is JSON, where values may stand inside strings and outside."""
    messages = [{"role": "user", "content": text} for text in TEXTS]
    with Krunch(Settings(cache_floor="nothing")) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o", json_reply=True)

    text = reply(exchange, json.dumps({"file": sent(1)}, ensure_ascii=False)[:-1] + ', "b": ¤1(B371 "Ben Cole" x 1)}')

    found = json.loads(text)
    assert found["file"] == TEXTS[1]
    assert found["b"] == {**BOOKINGS[1], "status": "x", "nights": 1}


def test_a_reference_that_has_meant_two_things_is_expanded_only_where_the_line_above_tells() -> None:
    """Newer lines that begin alike change what a reference means; a guess would be worse than the mark."""
    first = "Open file: /srv/app/settings.py\nand the shell waits for commands in it\n(nothing else to see here)"
    second = first.replace("settings", "handlers")
    texts = [first, f"one\n{first}", second, f"two\n{second}"]
    with Krunch(Settings(cache_floor="nothing", min_tokens=0)) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": text} for text in texts], model="gpt-4o")
    mark = exchange.messages[1]["content"].split("\n")[1]

    assert mark.startswith("¤[3 lines Open file:")
    assert mark == exchange.messages[3]["content"].split("\n")[1]
    assert reply(exchange, f"two\n{mark}") == texts[3]
    assert reply(exchange, f"one\n\n{mark}") == f"one\n\n{first}"
    assert reply(exchange, f"Look at {mark} or\n{mark}") == f"Look at {mark} or\n{mark}"


def test_a_template_whose_own_words_look_like_a_mark_is_read_to_the_end_of_its_line() -> None:
    """The line that defines it goes away; the mark in it opens nothing."""
    lines = [f"(¤{{json2}}{{a:1}}retry{when} src: naïve" for when in ("", "", " 0080")]
    text = "\n".join([*lines, "", *(f"(¤{{json2}}{{a:1}}retry  src: naïve{end}" for end in ("@", ""))])
    with Krunch(Settings(profile="safe", cache_floor="nothing")) as krunch:
        exchange = krunch.prepare([{"role": "tool", "content": text}], model="gpt-4o")
    written = exchange.messages[0]["content"]
    definition = next(line for line in written.split("\n") if "{json2}" in line)

    assert definition.startswith("¤1|")
    assert reply(exchange, written) == text
    assert streamed(exchange, written, range(0, len(written), 3)) == text
    assert reply(exchange, f"{definition} and more").startswith("¤1|")


def test_rows_of_records_that_end_with_a_blank_line_are_all_expanded() -> None:
    """What a row stands for may end with a line's end; the next row begins behind the end of its own line."""
    record = (
        "々 人々 ¤{{jsonsa}}¤1(1 2): src/app/main.py,\n¤1|2|3\n: ა¤ ./src/app/\n"
        "(src/app/main.py, ½ {}+3 пример\nsrc {}+, of time\n"
    )
    values = (("2e", "6e"), ("6e", "6e"), ("2e", "2e"))
    text = "\n".join(record.format(*pair) for pair in values)
    with Krunch(Settings(min_tokens=1, cache_floor="nothing")) as krunch:
        exchange = krunch.prepare([{"role": "tool", "content": text}], model="gpt-4")
        sent = exchange.messages[0]["content"]
        assert "*3\n" in sent
        assert exchange.finish({"role": "assistant", "content": sent})["content"] == text


def test_a_literal_behind_a_symbol_and_an_equals_sign_is_no_definition() -> None:
    """`¤1=text¤2` where ¤1 stands for the text: the last mark begins ¤2, for no definition ends in front of a digit."""
    time, service = "2024-01-31T23:59:59.123+02:00", "service policy"
    messages = [
        {"role": "tool", "content": f"{time} {service}-{time} {service}"},
        {"role": "user", "content": f"{time} {service}={time} {service}2024-01-31T23"},
    ]
    with Krunch(Settings(profile="dense", min_tokens=1, cache_floor="nothing")) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4")
        sent = exchange.messages[1]["content"]
        assert re.fullmatch("¤1=¤2=.*¤2", sent)
        assert reply(exchange, sent) == messages[1]["content"]
        assert streamed(exchange, sent, range(len(sent))) == messages[1]["content"]


def test_what_is_expanded_is_counted_and_the_request_is_not_changed() -> None:
    """`symbols_expanded` counts every mark; expanding a reply defines nothing for the next one."""
    messages = [{"role": "user", "content": text} for text in TEXTS]
    with Krunch(Settings(cache_floor="nothing")) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
        before = json.dumps(exchange.messages)
        reply(exchange, "¤77=new text¤ ¤78{a:1}\n¤79|{} is {}\n")

        assert exchange.report.symbols_expanded == 0
        assert reply(exchange, "¤77 ¤78(2)\n¤79|a|b\n") == "¤77 ¤78(2)\n¤79|a|b\n"

        reply(exchange, f"{sent(1)}\n{sent(3)}\n{sent(6)}\n{sent(8)}")
    assert exchange.report.symbols_expanded == 5
    assert json.dumps(exchange.messages) == before


@pytest.mark.parametrize(
    "text", ["¤1(" * 20_000, "¤1[(a" + " b" * 40_000, "¤3|" * 20_000, "¤3*9\n" * 20_000, "¤[" * 20_000]
)
def test_long_hostile_replies_pass(text: str) -> None:
    """No repetition of what opens a mark breaks a reply; what could be no mark any more has gone out."""
    stream = request().stream()
    out = "".join(
        part["choices"][0]["delta"].get("content", "")
        for piece in (text[:30_000], text[30_000:], "")
        for part in stream.feed({"choices": [{"index": 0, "delta": {"content": piece}}]})
    )
    rest = "".join(part["choices"][0]["delta"]["content"] for part in stream.flush())

    assert len(rest) <= 1 << 16
    assert out + rest == text == reply(request(), text)


PIECES = (
    *(*conversations.MARKS, *conversations.LETTERS),
    *("¤1[(", "¤1(", '"Ann Ray"', " confirmed 4)", ")]", "¤{json2}", "¤2(", "¤4", "¤4=", PROSE),
    *("¤3|", "¤3*2\n", "|", "10.0.0.9|10:05:09|app.js|404|12"),
    *("¤[5 lines def area(shape … return width *]", "¤[", "]"),
    *("¤", "\n", "\\n", "`", "x", " ", '"', "\\", "{", "}", "="),
)
hostile = st.lists(
    st.sampled_from(PIECES)
    | st.sampled_from([line for place in range(len(TEXTS)) for line in sent(place).split("\n")]),
    max_size=12,
).map("".join)
places = st.lists(st.integers(0, 5_000), max_size=30)
quick = settings(deadline=None, suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large))


@quick
@given(hostile, places, st.sampled_from(laws.PROFILES))
def test_any_split_of_a_reply_gives_the_whole(text: str, cuts: list[int], profile: str) -> None:
    """Marks whole, cut, nested and mixed: streamed in any pieces they give what the whole gives, and nothing raises."""
    assert streamed(request(profile), text, cuts) == reply(request(profile), text)


@quick
@given(text=hostile, cuts=places, as_json=st.booleans(), ascii_only=st.booleans())
@example(text='"¤1(', cuts=[4], as_json=False, ascii_only=False)
def test_any_split_of_tool_arguments_gives_the_whole(
    text: str, cuts: list[int], *, as_json: bool, ascii_only: bool
) -> None:
    """The same in tool-call arguments, JSON or not; JSON stays JSON, with the same keys and as many values."""
    given_text = json.dumps({"a": text, "b": [text, 1]}, ensure_ascii=ascii_only) if as_json else text

    result = argument(request(), given_text, cuts)

    if as_json:
        expanded = reply(request(), text)
        assert json.loads(result) == {"a": expanded, "b": [expanded, 1]}


@quick
@given(hostile, st.lists(st.integers(0, 5_000), max_size=8), st.booleans())
def test_a_look_at_a_reply_on_its_way_changes_nothing(text: str, cuts: list[int], ascii_only: bool) -> None:  # noqa: FBT001
    """What is assembled halfway is what the reply would be if it ended there, and the rest comes out all the same."""
    arguments = json.dumps({"a": text}, ensure_ascii=ascii_only)
    meanings = request().meanings
    assert isinstance(meanings, Meanings)
    expander, out = ChunkExpander(meanings, {}), []
    for start, stop in pairwise(sorted({0, len(arguments), *(cut % len(arguments) for cut in cuts)})):
        part = {"tool_calls": [{"index": 0, "function": {"arguments": arguments[start:stop]}}], "content": text}
        out += expander.feed({"choices": [{"index": 0, "delta": part}]})
        halfway = expander.assembled()[0][1]["tool_calls"][0]["function"]["arguments"]

        assert halfway == argument(request(), arguments[:stop])
    out += expander.flush()
    calls = [call for part in out for call in part["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in calls) == argument(request(), arguments)


@quick
@given(hostile, places)
def test_nothing_that_is_said_around_marks_is_lost(text: str, cuts: list[int]) -> None:
    """What a reply says before and after anything that looks like a mark is still there."""
    for result in (reply(request(), f"Begin.\n{text}\n\nEnd."), streamed(request(), f"Begin.\n{text}\n\nEnd.", cuts)):
        assert result.startswith("Begin.\n")
        assert result.endswith("\nEnd.")


@quick
@given(hostile)
def test_replies_to_requests_without_marks_are_untouched(text: str) -> None:
    """Where nothing was compressed, a reply comes back as it is, marks or not."""
    with laws.fresh(Settings()) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": "Good morning."}], model="gpt-4o")

    assert reply(exchange, text) == text


@quick
@given(st.text(st.characters(exclude_characters="¤", exclude_categories=()), max_size=80), places)
def test_replies_without_marks_are_untouched(text: str, cuts: list[int]) -> None:
    """Text without a mark of ours comes back byte for byte, tool-call arguments too."""
    assert reply(request(), text) == text
    assert streamed(request(), text, cuts) == text
    assert argument(request(), text, cuts) == text


@cache
def corpus(seed: int, profile: str) -> tuple[Exchange, list[str]]:
    """A conversation of tool results, code, listings and prose that repeat one another; and its texts."""
    rng = random.Random(seed)
    texts: list[str] = []
    for number in range(12):
        kind = rng.randrange(4)
        if kind == 0:
            rows = [
                {"id": f"R{rng.randrange(900)}", "name": rng.choice(("Ann Ray", "Ben Cole", "Cy")), "n": n}
                for n in range(4)
            ]
            texts.append(f"Result {number}: " + json.dumps(rng.choice((rows, rows[0], {"rows": rows, "next": None}))))
        elif kind == 1:
            lines = [
                f"{rng.randrange(24)}:0{n} worker-{rng.randrange(3)} finished job {rng.randrange(99)} of mail in {n} s"
                for n in range(8)
            ]
            texts.append(f"Log {number}\n" + "\n".join(lines) + "\nend of the log")
        elif kind == 2 and texts:
            old = rng.choice(texts).split("\n")
            texts.append("\n".join([f"Again, as in message {number}:", *old[rng.randrange(len(old)) :], "and so on"]))
        else:
            phrase = rng.choice((PROSE, "a retry that waits longer each time"))
            texts.append(f"In note {number} we wrote that {phrase} is late.\nWhy is {phrase} late?\n{phrase}!\n")
    messages = [{"role": "user", "content": text} for text in texts]
    with laws.fresh(Settings.model_validate({"profile": profile, "cache_floor": "nothing", "min_tokens": 0})) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
    assert exchange.report.tokens_saved > 0
    return exchange, texts


@quick
@given(st.integers(0, 60), st.sampled_from(laws.PROFILES), st.integers(0, 11), st.data())
def test_an_excerpt_of_what_was_sent_means_that_excerpt_of_the_original(
    seed: int, profile: str, place: int, data: st.DataObject
) -> None:
    """Lines of a text as sent that cut no mark stand for the lines that were there; ambiguous references stay."""
    exchange, texts = corpus(seed, profile)
    lines = exchange.messages[place]["content"].split("\n")
    first = data.draw(st.integers(0, len(lines) - 1))
    stop = data.draw(st.integers(first + 1, len(lines)))
    ends = []
    for cut in (first, stop):
        text = "".join(f"{line}\n" for line in lines[:cut]) if cut < len(lines) else "\n".join(lines)
        ends.append(restored(exchange.messages[:place], text))
    if ends[0] is None or ends[1] is None or not texts[place].startswith(ends[1]) or not ends[1].startswith(ends[0]):
        return  # the cut goes through a mark
    excerpt = "\n".join(lines[first:stop]) + ("\n" if stop < len(lines) else "")

    result = reply(exchange, excerpt)

    assert streamed(exchange, excerpt, data.draw(places)) == result
    unknown = [line for line in result.split("\n") if line.startswith("¤") and line in lines]
    assert unknown or result == ends[1][len(ends[0]) :]


def restored(before: list[Message], text: str) -> str | None:
    """What a text stands for behind some messages; None if it cannot be read."""
    try:
        content: str = restore([*before, {"role": "user", "content": text}])[-1]["content"]
    except KrunchError:
        return None
    return content


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_generated_conversations_come_back_from_replies(profile: str) -> None:
    """Conversations full of literals that look like marks: what was sent for a message is read as that message."""
    for seed in range(30):
        case = laws.case_of_seed(seed, profile, 12)
        with laws.fresh(case.settings) as krunch:
            laws.check_replies(case, case.prepare(krunch), random.Random(seed))
