"""LiteLLM's Router, async: a callback, nothing of LiteLLM replaced. It serves `acompletion` without streams.

OPENAI_API_KEY=... python examples/litellm/router.py
"""

from __future__ import annotations

import asyncio

import krunch_litellm
import litellm
from litellm.router import Router

from krunch_plugins import Krunch, Settings

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lou")
REPORT = "; ".join(f"{name} says the billing service was refused by /srv/billing/app.py" for name in NAMES)


async def main() -> None:
    """Ask two deployments of one model, whichever the Router chooses; both see the same text."""
    with Krunch(Settings()) as krunch:
        litellm.callbacks = [krunch_litellm.KrunchCallback(krunch)]
        router = Router([{"model_name": "ours", "litellm_params": {"model": "openai/gpt-4o"}} for _ in range(2)])
        reply = await router.acompletion(
            model="ours",
            messages=[{"role": "user", "content": f"What is wrong here? {REPORT}"}],
            metadata={"session_id": "incident 17"},
        )
        print(reply.choices[0].message.content)
        print(f"{krunch.stats().tokens_saved} tokens saved")


asyncio.run(main())
