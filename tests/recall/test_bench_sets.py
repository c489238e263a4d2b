"""Question sets that `bench/recall.py` measures: files in the layout of their authors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

READER = Path(__file__).parents[2] / "bench" / "recall_sets.py"
SAMPLE = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bo",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "Look at this!", "blip_caption": "a photo of a red kite"},
            {"speaker": "Bo", "dia_id": "D1:2", "text": "Nice."},
        ],
        "session_2_date_time": "12:05 am on 1 June, 2023",
        "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "I flew it yesterday."}],
        "session_3_date_time": "9:00 am on 2 June, 2023",
    },
    "qa": [
        {"question": "What did Ann show?", "answer": "a kite", "evidence": ["D1:1"], "category": 4},
        {"question": "When did Bo fly it?", "answer": "31 May", "evidence": ["D1:1; D2:1"], "category": 2},
        {"question": "What did Bo buy?", "adversarial_answer": "a kite", "evidence": [], "category": 5},
        {"question": "And then?", "answer": "", "evidence": ["D9:9"], "category": 1},
    ],
}


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that reads them."""
    if not READER.exists():
        pytest.skip("the benches are not here")
    spec = importlib.util.spec_from_file_location("recall_sets", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recall_sets", module)
    spec.loader.exec_module(module)
    return module


def test_locomo_is_read_as_it_is_published(sets: Any, tmp_path: Path) -> None:
    """Each conversation is one session in order, with captions and times; evidence is told by turn numbers."""
    samples = [SAMPLE, {**SAMPLE, "sample_id": "conv-2"}]
    (tmp_path / "locomo10.json").write_text(json.dumps(samples), encoding="utf-8")
    (found,) = sets.read(tmp_path)

    assert [message["content"] for message in found.conversations["conv-1"]] == [
        "Ann: Look at this! [picture: a photo of a red kite]",
        "Bo: Nice.",
        "Bo: I flew it yesterday.",
    ]
    assert [message["role"] for message in found.conversations["conv-1"]] == ["user", "assistant", "assistant"]
    assert found.times["conv-1"] == [1683554160.0, 1683554180.0, 1685577900.0]
    asked = [(one.text, sorted(one.evidence), one.category) for one in found.questions if one.session == "conv-1"]
    assert asked == [("What did Ann show?", [0], "one turn"), ("When did Bo fly it?", [0, 2], "time")]
    assert [list(found.half(which).conversations) for which in (0, 1)] == [["conv-1"], ["conv-2"]]
