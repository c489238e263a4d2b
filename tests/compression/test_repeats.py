"""Lines that stood before become references; that they come back is in `test_laws.py`."""

from __future__ import annotations

import base64
import random
from typing import TYPE_CHECKING

import pytest
from texts import prose, tokens

from krunch_plugins import Krunch, Settings, restore

if TYPE_CHECKING:
    from krunch_plugins.settings import Profile

PROFILES: tuple[Profile, ...] = ("safe", "balanced", "dense")

CODE = "\n".join(
    f"def {name}(one, other):\n    total = {name}_of(one) + other\n    return total * {number}"
    for number, name in enumerate(prose(1, 12).split())
)


def sent(*texts: str, profile: Profile = "balanced") -> str:
    """What is sent for the last of some messages; all of them can be restored."""
    messages = [{"role": "tool", "content": text} for text in texts]
    with Krunch(Settings(profile=profile)) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
    assert restore(exchange.messages) == messages
    content = exchange.messages[-1]["content"]
    assert isinstance(content, str)
    return content


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("by", [4, -4])
def test_lines_with_another_indentation_are_one_reference(profile: Profile, by: int) -> None:
    """A block that was moved in or out is found, and the reference says by how much."""
    inner = "\n".join("    " + line for line in CODE.split("\n"))
    before, after = (CODE, inner) if by > 0 else (inner, CODE)
    content = sent(before, f"It reads:\n{after}\nand no more.", profile=profile)

    assert content.count("¤[") == 1
    assert f"36 lines, indent {by:+}:" in content or f"36, indent {by:+}:" in content
    assert tokens(content) < 30


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "form", ["{}\t{}", "{:>6}\t{}", "{}:{}", "{}: {}", "{:>5}→{}", "{}|{}", "{:>3}│ {}", "{:>4} | {}"]
)
def test_lines_with_other_numbers_are_one_reference(profile: Profile, form: str) -> None:
    """The same lines further down in a file, printed with their numbers, are found, and the reference says how far."""
    before, after = (
        "\n".join(form.format(number, line) for number, line in enumerate(CODE.split("\n"), start=start))
        for start in (20, 23)
    )
    content = sent(before, f"It reads:\n{after}\nand no more.", profile=profile)

    assert content.count("¤[") == 1
    assert "numbers +3:" in content
    assert tokens(content) < 40


@pytest.mark.parametrize("profile", PROFILES)
def test_edited_text_is_what_changed_between_references(profile: Profile) -> None:
    """What stands before and behind an edit is referred to, and the edit is sent."""
    lines = CODE.split("\n")
    edited = [*lines[:16], "    raise TypeError(one, other)", *lines[18:]]
    content = sent(CODE, "\n".join(edited), profile=profile)

    first, edit, last = content.split("\n")
    assert (first[:2], last[:2]) == ("¤[", "¤[")
    assert edit == "    raise TypeError(one, other)"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "line",
    [
        base64.b64encode(random.Random(1).randbytes(3_000)).decode(),
        "".join(f"function f{n}(a,b){{return a*{n}+b}}" for n in range(200)),
    ],
    ids=["base64", "minified"],
)
def test_a_long_line_that_stood_before_is_a_reference(profile: Profile, line: str) -> None:
    """One line of thousands of tokens is quoted by its beginning."""
    content = sent(f"The file:\n{line}", f"The file again:\n{line}\nThat was it.", profile=profile)

    assert content.startswith("The file again:\n¤[")
    assert content.endswith("]\nThat was it.")
    assert tokens(content) < 30


def test_a_reference_means_the_latest_run() -> None:
    """Where two runs begin and end alike, the older one is sent in a way that cannot be taken for the newer one."""
    lines = CODE.split("\n")
    other = "\n".join([*lines[:10], "    pass", *lines[11:]])
    content = sent(CODE, other, CODE)

    assert content.count("¤[") >= 1
    assert tokens(content) < tokens(CODE) / 3
