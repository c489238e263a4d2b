"""Conversations that try to break compression: for the property tests, and in bulk for the fuzz command.

Everything is drawn from one `random.Random`, so that a seed names a conversation; hypothesis's `randoms()` is one too,
and then shrinks. What is drawn leans on what has broken compressors before: literals that look like marks, legends and
instructions; values that differ in one character, so that a phrase ends inside them; texts that nearly repeat; and the
compressor's own output, cut and mixed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

Message = dict[str, Any]

ROLES = ("user", "assistant", "tool", "system", "developer", "function", "narrator", "")

WORDS = (
    "the", "retry", "policy", "of", "this", "service", "waits", "longer", "each", "time", "it", "fails", "because",
    "network_timeout", "reservation_id", "src", "main", "user42", "get_order", "camelCaseName", "SCREAMING_CASE",
    "don't", "naïve", "Straße", "東京都", "人々", "\u043f\u0440\u0438\u043c\u0435\u0440",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "e\u0301te\u0301", "x\xb2", "3\xbd",
)  # fmt: skip

VALUES = (
    "12", "128", "0.5", ".5", "-3", "+7", "1e+16", "1.5E-9", "6.02e+23", "1,234,567.89", "3'000", "0x1F", "1_000",
    "50%", "2024-01-31", "2024-01-31T23:59:59.123+02:00", "31/Jan/2024:10:00:01", "01/31/2024", "10:05",
    "10:05:33,120", "192.168.0.17", "192.168.0.17:8080", "fe80::1ff:fe23:4567:890a", "aa:bb:cc:dd:ee:01", "v1.2.3",
    "1.2.3-rc.1+build.5", "1.0.0-alpha+001", "550e8400-e29b-41d4-a716-446655440000", "9f86d081884c7d65",
    "mia.li+work@example.com", "ORD-2024-00017", "a_b.c-d", "foo.bar_baz", "x-request-id", "\u22125", "\xbd", "10\xb2",
    "1\u2009000", "$1,200.00", "€5", "#ff00aa", "%20", "a%20b",
)  # fmt: skip

PATHS = (
    "src/app/main.py", "./src/app/", "/var/log/syslog.1", "C:\\Users\\mia\\x.txt", "https://a.example/b?c=1&d=2#e",
    "../..",
)  # fmt: skip

ODD = (
    "\x00", "\x07", "\x1b[31m", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029",
    "\ufeff", "\u200b",
    "\u200d", "\ud800", "\udc00", "\ud83d\ude00", "\ude00\ud83d", "\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7",
    "e\u0301", "\u0301",
    "\u202e", "\xa0", "\u3000", "\ufffd", "\uffff", "\U0010ffff", "\uff11\uff12", "\u0663", "\u0301", "々", "\u3007",
    "│", "→", "…", "“", "—", "\xd7", "\\", "\\\\", "\\n", '\\"', "\\u00a4",
)  # fmt: skip

MARKS = (
    "¤", "¤¤", "¤¤¤", "¤0", "¤1", "¤2", "¤3", "¤4", "¤10", "¤12", "¤01", "¤¤1", "¤¤2", "¤¤¤1", "¤1¤2", "¤1¤", "¤-1",
    "¤\uff11", "¤\u0663", "¤N", "¤ 1", "¤1=", "¤2:", "¤1=x", '¤1:"x\\ny"', "\\u00a41", "\\u00A42", "\\\\u00a43",
    "\\u00a4", "§1", "¶2", "¤1(", "¤{1}", "¤1\u0301",
)  # fmt: skip

# Letters that may be names in `dense` (Georgian, Armenian, Sinhala, Odia, Khmer): alone, in words, behind marks.
LETTERS = (
    "\u10d0", "\u10d1", "\u10d0\u10d1", "\u10d0 \u10d1", "\u0561", "\u0531", "\u10d0=",
    "\xa4\u10d0", "\xa4\u10d0=x\xa4",
    "\xa4\xa4\u10d0", "\u10d0\xa4", "\u10d0\u0301", "\u10d01", "1\u10d0", "\u10d0\u0561",
    "\u10da\u10d0\u10e0\u10d8",
    "\u0d9a", "\u0d9a\u0dd2", "\u0b15\u0b3e", "\u1780", "\u1780\u10d0", "\u179f\u17bd\u179f\u17d2\u178f\u17b8",
)  # fmt: skip

LEGENDS = (
    "¤N=...¤ names a text, ¤N stands for it.\n",
    "¤N=...¤ names a text, ¤N stands for it.",
    "¤N{...} names the keys of an object, ¤N(...) gives values for them.\n",
    "¤N|... is a form of lines; rows of ¤N give values for its {}, none where as above.\n",
    "¤N=...¤ names",
    "¤N=...¤ names a text, ¤N stands for it.\n¤1=the retry policy¤ ",
    "¤1=the retry policy of this¤",
    "¤1=the retry ¤2=policy¤ of¤",
    "¤1=never closed ",
    "¤1=¤",
    "¤1|{} took {} ms\n",
    "¤1*{} took {} ms\n¤1*a,b\n",
    "\n¤1|12|13\n",
    "¤[2 lines: the retry … policy]",
    "¤[1 line: the retry policy of this service waits]\n",
    "¤[3 lines, numbers +3: a … b]\n",
    "\n¤[99 lines: a … b]",
    "¤{json}",
    "¤{json2}{a:1}",
    "¤{jsonsa}¤1(1 2)",
    "¤1{id:7 name:Ann}",
    '¤1(8 "Bob Ray")',
    "¤1[{a:1}]",
    "¤9=¤1 ¤2¤",
    " … ",
    "\n\n",
    "\n",
)

FENCES = ("```", "```json\n", "```python\n", "\n```\n", "~~~", "    ", "> ", "- ", "* ", "| a | b |\n|---|---|\n")

SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n",
    "\t",
    "\n\n",
    "",
    "",
    ", ",
    ": ",
    ".",
    "-",
    "/",
    "_",
    "=",
    "'",
    '"',
    "(",
    "+",
    ":",
    ",",
    "@",
    "#",
)


def conversation(rng: random.Random, pool: Sequence[str] = (), longest: int = 60) -> list[Message]:
    """A conversation of 1 to `longest` messages, mostly short ones.

    Args:
        rng: where every choice comes from.
        pool: texts to borrow from, such as the compressor's own output.
        longest: messages at most.
    """
    count = 1 + rng.randrange(rng.choice((4, 4, 8, 8, 12, max(1, longest))))
    phrases = [_phrase(rng) for _ in range(rng.randrange(1, 4))]
    earlier: list[str] = [*pool]
    messages = []
    for _ in range(min(count, longest)):
        made = message(rng, phrases, earlier)
        earlier.extend(text for text in _texts(made) if text)
        messages.append(made)
    return messages


def message(rng: random.Random, phrases: Sequence[str], earlier: Sequence[str]) -> Message:
    """One message: mostly a role and a string, sometimes everything that a message can be."""
    made: Message = {"role": rng.choice(ROLES[: rng.choice((3, 3, len(ROLES)))])}
    kind = rng.randrange(12)
    if kind == 0:
        made["content"] = _odd_content(rng, phrases, earlier)
    elif kind == 1:
        made["content"] = [_part(rng, phrases, earlier) for _ in range(rng.randrange(4))]
    else:
        made["content"] = text(rng, phrases, earlier)
    if rng.randrange(8) == 0:
        arguments = json.dumps({"q": text(rng, phrases, earlier)}, ensure_ascii=rng.randrange(2) == 0)
        function = {"name": "search", "arguments": arguments}
        made["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    if rng.randrange(10) == 0:
        extra = {"name": "mia", "tool_call_id": "call_1", "x_unknown": {"deep": ["¤1", None, 1.5]}, "refusal": None}
        made[rng.choice(list(extra))] = rng.choice(list(extra.values()))
    return made


def text(rng: random.Random, phrases: Sequence[str], earlier: Sequence[str]) -> str:
    """One text: repeating, nearly repeating, borrowed, or made of odd pieces."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(("", " ", "\n", "ok", rng.choice(MARKS), rng.choice(LEGENDS), rng.choice(ODD)))
    if kind == 1:
        return _records(rng)
    if kind == 2:
        return _lines(rng) if rng.randrange(3) else _listing(rng, phrases, earlier)
    if kind <= 4 and earlier:
        return _mixed(rng, earlier)
    pieces: list[str] = []
    near = _phrase(rng)
    for _ in range(rng.randrange(1, 14)):
        pieces.append(_piece(rng, (*phrases, near)))
        pieces.append(rng.choice(SPACES))
    if rng.randrange(3) == 0:
        pieces = pieces * rng.randrange(2, 4)
    if rng.randrange(6) == 0:
        pieces.insert(0, rng.choice((*MARKS, *LEGENDS)))
    return "".join(pieces)


def tools(rng: random.Random) -> list[dict[str, Any]] | None:
    """Tool definitions, which sometimes hold literals that look like marks."""
    if rng.randrange(3):
        return None
    description = " ".join((_phrase(rng), rng.choice(MARKS), rng.choice(LEGENDS)))
    return [{"type": "function", "function": {"name": "search", "description": description, "parameters": {}}}]


def fork(rng: random.Random, messages: Sequence[Message]) -> list[Message]:
    """What a client may send after `messages`: some dropped, edited, repeated or moved."""
    forked = list(messages)
    for _ in range(rng.randrange(1, 4)):
        if not forked:
            break
        place, kind = rng.randrange(len(forked)), rng.randrange(5)
        if kind == 0:
            del forked[place]
        elif kind == 1:
            forked[place] = {**forked[place], "content": text(rng, [_phrase(rng)], list(_texts(forked[place])))}
        elif kind == 2:
            forked.insert(rng.randrange(len(forked)), forked[place])
        elif kind == 3:
            forked.insert(0, forked.pop(place))
        else:
            del forked[:place]
    return forked


def cut_and_mix(rng: random.Random, messages: Sequence[Message]) -> list[str]:
    """Texts made from the texts of messages that were sent: whole, cut anywhere, glued."""
    texts = [text for message in messages for text in _texts(message) if text]
    return [*texts, *(_mixed(rng, texts) for _ in range(3))] if texts else []


def _texts(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else ()
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _phrase(rng: random.Random) -> str:
    """Some words and values that will be repeated."""
    words = [rng.choice(WORDS if rng.randrange(3) else VALUES) for _ in range(rng.randrange(3, 10))]
    return rng.choice((" ", " ", " ", "_", ".", "/", ", ")).join(words)


def _piece(rng: random.Random, phrases: Sequence[str]) -> str:
    kind = rng.randrange(12)
    if kind <= 5:
        phrase = rng.choice(phrases)
        if rng.randrange(4) == 0:  # cut it, so that the rest of a word or a value stands on the other side
            return (
                phrase[: rng.randrange(len(phrase) + 1)] if rng.randrange(2) else phrase[rng.randrange(len(phrase)) :]
            )
        return phrase
    return rng.choice((WORDS, VALUES, PATHS, ODD, MARKS, rng.choice((FENCES, LEGENDS, LETTERS)))[kind - 6])


def _mixed(rng: random.Random, texts: Sequence[str]) -> str:
    """One or more of `texts`, whole or cut at any place, in one; sometimes one of them edited in the middle."""
    out: list[str] = []
    for _ in range(rng.randrange(1, 4)):
        chosen = rng.choice(texts)[:4000]
        start, stop = sorted((rng.randrange(len(chosen) + 1), rng.randrange(len(chosen) + 1)))
        kind = rng.randrange(5)
        if kind == 0:
            out.append(chosen)
        elif kind == 1:
            out.append(chosen[start:])
        elif kind == 2:
            out.append(chosen[:stop])
        elif kind == 3:
            out.append(chosen[start:stop])
        else:
            out.append(chosen[:start] + rng.choice((*MARKS, *VALUES, "\n")) + chosen[start:])
        out.append(rng.choice(("", "", "\n", "\n\n", " ", "1", "¤", "=", "\u10d0")))
    return "".join(out)


def _records(rng: random.Random) -> str:
    """JSON as serializers write it, of like objects, whole or inside prose, and sometimes broken."""
    keys = rng.sample(("id", "user_id", "name", "at", "price", "¤1", "tags", "note"), rng.randrange(1, 5))
    rows = [{key: _json_value(rng) for key in keys if rng.randrange(8)} for _ in range(rng.randrange(1, 7))]
    value: Any = rng.choice((rows, {"items": rows, "total": len(rows)}, rows[0]))
    style = rng.randrange(6)
    ascii_only = rng.randrange(2) == 0
    if style == 0:
        written = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"))
    elif style <= 3:
        written = json.dumps(value, ensure_ascii=ascii_only, indent=(None, 2, "\t")[style - 1])
    elif style == 4:
        written = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    else:
        written = json.dumps(value, ensure_ascii=ascii_only, indent=4, sort_keys=True)
    if rng.randrange(5) == 0:
        place = rng.randrange(len(written) + 1)
        written = written[:place] + rng.choice(("", ",", "NaN", '"', "¤1", "\n", " ")) + written[place:]
    frames = ("{}", "{}", "{}\n", "```json\n{}\n```", "Result: {}", "¤1={}\n\n", "{}{}")
    return rng.choice(frames).replace("{}", written)


def _json_value(rng: random.Random) -> Any:
    simple: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        1.0,
        1e16,
        10**30,
        "",
        [],
        {},
        [1, [2, {}]],
        {"a": {"b": 1}},
        -0.0,
        0.1,
    )
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(simple)
    if kind == 1:
        return rng.choice(VALUES)
    if kind == 2:
        return rng.choice((*ODD, *MARKS, *LEGENDS))
    return rng.choice(("confirmed", "pending review by the owner", "the same long text in each of the rows"))


def _lines(rng: random.Random) -> str:
    """Lines of one or two forms, such as logs and listings, with or without their last newline."""
    forms = (
        "{v} INFO worker-{n} request {n} took {n} ms from {v}",
        '{v} - - [{v}] "GET /a/{n} HTTP/1.1" {n} {n}',
        '  File "/srv/app/{w}.py", line {n}, in {w}',
        "-rw-r--r-- 1 mia staff {n} {v} {w}.txt",
        "{n}\t{w} {w} = {v}",
        "PASSED tests/test_{w}.py::test_{w}[{n}]",
        "¤{n} {w}",
        "========================================",
    )
    chosen = [rng.choice(forms) for _ in range(rng.randrange(1, 3))]
    start = rng.choice((0, 1, 9, 98, 997))
    lines = []
    for number in range(start, start + rng.randrange(2, 13)):
        line = chosen[number % len(chosen)]
        line = line.replace("{n}", str(rng.choice((number, number, 200, rng.randrange(2000)))))
        line = line.replace("{v}", rng.choice(VALUES)).replace("{w}", rng.choice(WORDS))
        lines.append(line)
    end = rng.choice(("\n", "\n", "\n", "\r\n", "\u2028", "\n\n"))
    return end.join(lines) + rng.choice(("", end, " "))


def _listing(rng: random.Random, phrases: Sequence[str], earlier: Sequence[str]) -> str:
    """Lines with numbers in front that count up, as tools print files; sometimes with a gap, or numbered twice."""
    source = "\n".join(
        rng.choice((*phrases, *earlier, *WORDS, "", "\t}", "12\t}")) for _ in range(rng.randrange(5, 30))
    )
    separator = rng.choice(("\t", "\t", ":", "→", "|", " | ", "│", ": ", "."))
    width = rng.choice((0, 0, 3, 6))
    number = rng.choice((0, 1, 1, 7, 95, 996, 999_999_990))
    lines = []
    for line in source[:3000].split("\n"):
        lines.append(f"{number:>{width}}{separator}{line}" if width else f"{number}{separator}{line}")
        number += 1 if rng.randrange(30) else rng.choice((0, 2, -number))
    return rng.choice(("", "\n", "Result:\n", "x")) + "\n".join(lines) + rng.choice(("", "\n", "\n\nDone."))


def _part(rng: random.Random, phrases: Sequence[str], earlier: Sequence[str]) -> Any:
    if rng.randrange(3):
        part: Message = {"type": "text", "text": text(rng, phrases, earlier)}
        return {**part, "cache_control": {"type": "ephemeral"}} if rng.randrange(4) == 0 else part
    odd: tuple[Any, ...] = (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,¤1"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "thinking", "thinking": "¤1 ¤2", "signature": "c2ln"},
        {"type": "text"},
        {"type": "text", "text": None},
        {"type": "text", "text": ["¤1"]},
        {"type": "unknown", "text": "¤1=a\n\n"},
        {"text": "the retry policy"},
        "a bare string ¤1",
        None,
        17,
        {},
    )
    return rng.choice(odd)


def _odd_content(rng: random.Random, phrases: Sequence[str], earlier: Sequence[str]) -> Any:
    return rng.choice((None, "", [], [[]], {"type": "text", "text": "¤1"}, 17, True, [_part(rng, phrases, earlier)]))
