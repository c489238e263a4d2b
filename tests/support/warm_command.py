"""The `krunch` command in a process of its own, without the seconds that Python takes to start and to load.

`WarmCommand` starts one process that has imported what the commands import and has loaded a tokenizer. It runs each
command line in a fork: with its own standard streams, variables, folder and exit code, as the installed command would.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class WarmCommand:
    """Runs command lines of `krunch`, one after the other. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run `krunch ARGUMENTS` in a folder, with these environment variables and no others."""
        assert self._process.stdin
        assert self._process.stdout
        files = [folder / ".krunch-stdout", folder / ".krunch-stderr"]
        order = {"arguments": arguments, "environment": dict(environment), "folder": str(folder)}
        self._process.stdin.write(json.dumps({**order, "files": [str(file) for file in files]}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, error = (file.read_text("utf-8") for file in files)
        for file in files:
            file.unlink()
        return subprocess.CompletedProcess(["krunch", *arguments], code, out, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)


def _serve() -> None:
    """Run each order that comes in; answer with its exit code."""
    import pkgutil

    from krunch_plugins import cli, tokens

    for module in pkgutil.iter_modules(cli.__path__):
        importlib.import_module(f"{cli.__name__}.{module.name}")
    importlib.import_module("typer.rich_utils")  # for help and errors
    tokens.load("o200k_base", wait=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> NoReturn:
    """Be the command: from here on nothing of the process around it is left but what it has loaded."""
    from krunch_plugins.cli import main

    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(file, os.O_CREAT | os.O_WRONLY) for file in order["files"])]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
    sys.argv = ["krunch", *order["arguments"]]
    main()
    sys.exit()


if __name__ == "__main__":
    _serve()
