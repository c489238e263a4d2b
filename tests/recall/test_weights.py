"""How much of a query a text has: by what its words say."""

from __future__ import annotations

import pytest

from krunch_plugins.recall.weights import Weights


@pytest.mark.parametrize(
    ("query", "has", "lacks"),
    [
        ("the harbours", "a harbour", "a heron"),
        ("机器", "我喜欢机器学习", "机场的仪器"),
        ("고양이는", "고양이는 잔다", "강아지는 잔다"),
    ],
)
def test_a_text_with_the_word_has_all_of_it(query: str, has: str, lacks: str) -> None:
    """Whatever stands beside the word, in any script; one that has only a character or an ending of it has nothing."""
    weights = Weights(query, ["nothing of it", "什么也没有", "없다"])

    assert weights.share(has) == 1.0
    assert weights.share(lacks) == 0.0
