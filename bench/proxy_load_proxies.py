"""The proxies that proxy_load.py compares, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from proxy_load_model import MODEL, PONDERING

MASTER = "sk-0123456789abcdef-load"
PROGRAMS = {
    "plain": "from litellm.proxy.proxy_cli import run_server; run_server()",
    "krunch": "from krunch_plugins.cli import main; main()",
}
"""The two of them: as LiteLLM starts it, and as `krunch proxy` does."""
_LIMITS = {"efficiency": {"max_conversations": 100}, "hot_bytes": 4_000_000}
"""Of what Krunch keeps in RAM; so low that the warm-up reaches them, and what grows after it grows without end."""


class Proxy:
    """A proxy in processes of its own.

    Args:
        name: one of `PROGRAMS`.
        folder: where its config and its log are put; made.
        model_port: where the model listens.
        workers: how many processes serve.
    """

    def __init__(self, name: str, folder: Path, model_port: int, workers: int) -> None:
        self.name = name
        parameters = {"api_base": f"http://127.0.0.1:{model_port}/v1", "api_key": "none"}
        models = [
            {"model_name": model, "litellm_params": {"model": f"openai/{model}", **parameters}}
            for model in (MODEL, PONDERING)
        ]
        options: dict[str, Any] = {"num_retries": 0}
        config = {"model_list": models, "litellm_settings": options | ({"krunch": _LIMITS} if name == "krunch" else {})}
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        self._port = port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = ["--config", str(folder / "config.yaml"), "--port", str(port), "--host", "127.0.0.1"]
        command = [sys.executable, "-c", PROGRAMS[name], *(["proxy"] if name == "krunch" else [])]
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            # Connections stay where they are: one that was closed would be opened to whichever worker comes first.
            [*command, *where, "--num_workers", str(workers), "--keepalive_timeout", "600"],
            env={
                **os.environ,
                "LITELLM_MASTER_KEY": MASTER,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
            },
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=5).status_code == 200:  # noqa: PLR2004 - HTTP's OK
                    return
            time.sleep(0.3)
        raise SystemExit("a proxy did not start")

    def stop(self) -> None:
        """End it and its workers."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def connections(self) -> dict[int, int]:
        """How many clients are connected to each of its processes that has any."""
        table = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        ours = {f"socket:[{row[9]}]" for row in table if row[1].endswith(f":{self._port:04X}") and row[3] == "01"}
        counts = {}
        for process in self._processes():
            opened = 0
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    opened += str(descriptor.readlink()) in ours
            if opened:
                counts[process] = opened
        return counts

    def resident(self) -> float:
        """MB of RAM of all its processes."""
        pages = [int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) for one in self._processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu(self) -> float:
        """Seconds of CPU of all its processes."""
        ticks = 0
        for one in self._processes():
            values = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(values[11]) + int(values[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            one = todo.pop()
            found.append(one)
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii")
                todo += map(int, children.split())
        return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
