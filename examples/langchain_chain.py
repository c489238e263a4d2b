"""A LangChain chain with Krunch: one line around the model, and the history of a session.

    python examples/langchain_chain.py

Runs without a key: a small server on this machine stands in for the model; leave out `base_url` for the real one.
"""

from __future__ import annotations

import os
import tempfile

from krunch_langchain import from_turn, krunchify
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from krunch_plugins import ConversationStore, Krunch, restore
from krunch_plugins.upstream import Answer, Upstream

os.environ.setdefault("OPENAI_API_KEY", "none")

LOG = "\n".join(
    f"12:{minute:02}:07 ERROR worker-{minute % 4} connection to /srv/warehouse/inventory/reservations refused"
    for minute in range(40)
)
PROMPT = ChatPromptTemplate.from_messages([("system", "You read logs."), ("user", "{question}\n\n{log}")])


def main() -> None:
    """Ask about a log, and show what was sent."""
    with (
        Upstream(lambda _: Answer("All four workers were refused, every minute.")) as server,
        tempfile.TemporaryDirectory() as directory,
        ConversationStore(directory) as store,
        Krunch(store=store) as krunch,
    ):
        model = krunchify(ChatOpenAI(model="gpt-4o", base_url=server.url), krunch)
        chain = PROMPT | model | StrOutputParser()
        for part in chain.stream({"question": "Who was refused?", "log": LOG}, {"configurable": {"session_id": "ann"}}):
            print(part, end="", flush=True)
        print()

        sent = server.requests[0]["messages"]
        print("characters:", len(restore(sent)[1]["content"]), "→ sent:", len(sent[1]["content"]))
        print("tokens saved:", krunch.stats().tokens_saved)
        for turn in store.turns("ann"):
            message = from_turn(turn)  # the LangChain message, as it was
            print(f"{message.type:>7}: {message.text[:60]!r}")


if __name__ == "__main__":
    main()
