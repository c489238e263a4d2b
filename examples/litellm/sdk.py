"""LiteLLM's SDK: one line, and every completion of the program is smaller and comes back exact.

OPENAI_API_KEY=... python examples/litellm/sdk.py
"""

from __future__ import annotations

import krunch_litellm
import litellm

from krunch_plugins import default_krunch

krunch_litellm.install()

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lou")
REPORT = "; ".join(f"{name} says the billing service was refused by /srv/billing/app.py" for name in NAMES)
messages = [{"role": "user", "content": f"What is wrong here? {REPORT}"}]
for question in ("Which workers are concerned?", "And since when?"):
    reply = litellm.completion(model="openai/gpt-4o", messages=messages, metadata={"session_id": "incident 17"})
    messages.append({"role": "assistant", "content": reply.choices[0].message.content})
    messages.append({"role": "user", "content": question})

stream = litellm.completion(
    model="openai/gpt-4o", messages=messages, metadata={"session_id": "incident 17"}, stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")
print()

stats = default_krunch().stats(session="incident 17")
if stats is not None:
    print(f"{stats.tokens_saved} tokens of {stats.tokens_before} saved")
