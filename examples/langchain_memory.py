"""A LangChain chain that remembers: the last messages, and what of the older ones matters for the question.

    python examples/langchain_memory.py

Runs without a key: a small function stands in for the model; put a chat model in its place.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from krunch_langchain import KrunchMemory, KrunchRetriever
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from langchain_core.prompt_values import PromptValue

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "You are a good listener."), MessagesPlaceholder("past"), ("human", "{question}")]
)


def model(prompt: PromptValue) -> AIMessage:
    """What stands in for a model: it says how much it was given to read."""
    messages = prompt.to_messages()
    return AIMessage(f"I read {len(messages)} messages, {sum(len(message.text) for message in messages)} characters.")


def main() -> None:
    """Tell it something, talk about other things for long, and ask for it."""
    with tempfile.TemporaryDirectory() as directory, ConversationStore(directory) as store:
        memory = KrunchMemory("ann", mode="smart", budget=300, store=store)
        chain = RunnablePassthrough.assign(past=memory) | PROMPT | RunnableLambda(model)
        small_talk = [f"The weather of day {day} was fine, and we sat in the garden all evening." for day in range(40)]
        for said in ["The spare key lies under the blue flower pot.", *small_talk, "Where does the spare key lie?"]:
            reply = chain.invoke({"question": said})
            memory.save({"question": said}, reply)
        print(f"turns on disk: {len(store.turns('ann'))}")
        print(f"answer: {reply.text}")

        for message in memory.load("Where does the spare key lie?"):
            if "flower pot" in message.text:
                print(f"recalled: {message.text}")
        found = KrunchRetriever(store=store, session="ann", k=1).invoke("spare key flower pot")[0]
        print(f"turn {found.metadata['turn']}: {found.page_content}")


if __name__ == "__main__":
    main()
