"""Makes krunch_plugins/data/idf.zst: how common words and n-grams are, for the built-in embedder.

    python bench/idf_table.py DIR

DIR holds conversations as *.jsonl, one a line, {"messages": [...]}. The table that ships was counted over messages of
tau-bench, ToolBench, SWE-agent, pi-mono, getspecstory, aider, elastic/examples, Open-Assistant, FastChat and MemoryBank
(MIT and Apache-2.0), and not over the conversations that recall is measured on. It holds one byte for each of 65,536
hashes, and no text. A new table changes all vectors: give `HashingEmbedder` another name with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import zstandard

from krunch_plugins.recall.embedders import BUCKETS, IDF_SCALE, buckets, words

FILES = ("agent_tools", "chat", "coding_agent", "coding_chat", "logs_chat")
MOST = 2_500
"""Messages that are drawn: enough for common words, and no one kind of conversation has all the say."""
LONGEST = 4_000
"""Characters of each that are read."""
TARGET = Path(__file__).parent.parent / "krunch_plugins" / "data" / "idf.zst"


def main() -> None:
    """Count, and write the table."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - one argument
        raise SystemExit(__doc__)
    texts = []
    for name in FILES:
        with (Path(sys.argv[1]) / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                contents = [message.get("content") for message in json.loads(line)["messages"]]
                texts += [content[:LONGEST] for content in contents if isinstance(content, str) and content]
    drawn = np.random.default_rng(0).permutation(len(texts))[:MOST]
    frequencies = np.zeros(BUCKETS)
    for index in drawn:
        found = {bucket for word in set(words(texts[index])) for bucket in buckets(word)}
        frequencies[list(found)] += 1
    idf = np.log((len(drawn) + 1) / (frequencies + 0.5))
    levels = np.clip(np.rint(idf * IDF_SCALE), 0, 255).astype(np.uint8)
    packed = zstandard.compress(levels.tobytes(), 19)
    TARGET.write_bytes(packed)
    print(f"{TARGET}: {len(packed):,} bytes, from {len(drawn):,} messages, {np.count_nonzero(frequencies):,} buckets")


if __name__ == "__main__":
    main()
