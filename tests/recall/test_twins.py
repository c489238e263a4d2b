"""Equal vectors: which of them is in the graph, who takes its place, and who is found with it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from krunch_plugins.recall.twins import Twins


@given(changes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=80))
def test_each_kind_has_one_in_the_graph_as_long_as_there_is_one(changes: list[tuple[int, int]]) -> None:
    """Ids of three kinds come and go in any order: what is in the graph finds exactly those that are there."""
    twins, kinds, firsts = Twins(), dict[int, int](), dict[int, int]()
    for key, kind in changes:
        if key in kinds:
            linked, heir = twins.take(key)
            gone = kinds.pop(key)
            assert linked == (firsts[gone] == key)
            if linked:
                del firsts[gone]
                if heir is not None:
                    firsts[gone] = heir
        elif kind in firsts:
            kinds[key] = kind
            twins.put(key, firsts[kind])
        else:
            kinds[key], firsts[kind] = kind, key

    assert firsts.keys() == set(kinds.values())
    order = np.array(sorted(firsts.values()), dtype=np.int64)
    keys, positions = twins.spread(order)
    assert sorted(keys.tolist()) == sorted(kinds)
    assert all(firsts[kinds[key]] == order[at] for key, at in zip(keys.tolist(), positions.tolist(), strict=True))
    assert len(twins) == len(list(twins.pairs())) == len(kinds) - len(firsts)


def test_the_newest_takes_the_place() -> None:
    """Where the oldest are removed first, as by retention, a place in the graph changes hands once."""
    twins = Twins()
    for key in range(1, 1000):
        twins.put(key, 0)

    assert twins.take(0) == (True, 999)
    assert [twins.take(key) for key in range(1, 999)] == [(False, None)] * 998
    assert twins.take(999) == (True, None)
