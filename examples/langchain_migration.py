"""From LangChain's old memory to Krunch's: what it holds moves over, and the chain goes on with it.

    python examples/langchain_migration.py

The old side needs langchain-classic; without it, the example begins with the messages that it would have had.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import TYPE_CHECKING

from krunch_langchain import KrunchChatMessageHistory, KrunchMemory
from langchain_core.messages import AIMessage, HumanMessage

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

EXCHANGES = [
    ("My name is Ann.", "Hello, Ann."),
    ("I live in Ulm.", "Nice."),
    ("I play the bassoon.", "Nice, too."),
]


def old_messages() -> list[BaseMessage]:
    """What a program of yesterday has in its ConversationBufferWindowMemory."""
    try:
        from langchain_classic.memory import ConversationBufferWindowMemory
    except ModuleNotFoundError:
        print("langchain-classic is not installed; these are the messages that it would hold")
        return [message for asked, said in EXCHANGES for message in (HumanMessage(asked), AIMessage(said))]
    warnings.simplefilter("ignore")  # it is deprecated, which is why we are here
    old = ConversationBufferWindowMemory(k=2, return_messages=True)
    for asked, said in EXCHANGES:
        old.save_context({"input": asked}, {"output": said})
    print("the old window:", [message.text for message in old.load_memory_variables({})["history"]])
    messages: list[BaseMessage] = old.chat_memory.messages
    return messages


def main() -> None:
    """Move, and go on."""
    with tempfile.TemporaryDirectory() as directory, ConversationStore(directory) as store:
        KrunchChatMessageHistory("ann", store=store).add_messages(old_messages())
        memory = KrunchMemory("ann", mode="recent", budget=500, store=store)
        memory.save({"input": "And you?"}, {"output": "I read."})
        print("recent:", [message.text for message in memory.load()])
        for message in KrunchMemory("ann", mode="smart", budget=500, store=store).load("what is my name?"):
            print(f"smart: {message.type}: {message.text}")


if __name__ == "__main__":
    main()
