"""Ids by turn number: what a dict would say, in fewer bytes."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunch_plugins.recall.rows import Rows

numbers = st.integers(0, 60) | st.integers(10**6, 10**6 + 5) | st.integers(0, 2**40)


@given(
    changes=st.lists(
        st.tuples(st.just("add"), numbers) | st.tuples(st.just("drop"), st.none() | st.integers(0, 80)), max_size=40
    )
)
def test_any_changes_leave_what_a_dict_would_have(changes: list[tuple[str, int | None]]) -> None:
    """Turns may come in any order, with any gaps, and leave at the front; numbers come out in order."""
    rows, known = Rows(), dict[int, int]()
    for at, (what, number) in enumerate(changes):
        if what == "drop":
            gone = [row for key, row in sorted(known.items()) if number is None or key < number]
            assert rows.drop(number) == gone
            known = {key: row for key, row in known.items() if row not in gone}
        elif number is not None and number not in known:
            rows[number] = known[number] = at

    assert list(rows.items()) == sorted(known.items())
    assert (len(rows), sorted(rows.ids())) == (len(known), sorted(known.values()))
    assert 2**41 not in rows


def test_an_id_is_for_good() -> None:
    """A turn that has an id does not get another one."""
    rows = Rows()
    rows[3] = 7

    with pytest.raises(KeyError):
        rows[3] = 8
    assert dict(rows) == {3: 7}


def test_ids_take_a_few_bytes_each() -> None:
    """Ten thousand turns take a tenth of what a dict takes, and a number far away no room for those in between."""
    rows = Rows()
    for number in range(10_000):
        rows[number] = 10**6 + number
    rows[2**40] = 1

    assert sys.getsizeof(rows._ids) < 100_000
    assert rows[2**40] == 1
