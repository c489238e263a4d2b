"""What holds the house: who may import whom, what is public, and that everything the documents show runs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from krunch_plugins.upstream import Answer, Upstream

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "krunch_plugins": ROOT / "krunch_plugins",
    "krunch_litellm": ROOT / "adapters" / "krunch_litellm",
    "krunch_langchain": ROOT / "adapters" / "krunch_langchain",
}
WINGS = ("compression", "storage", "recall")
FRAMEWORKS = ("litellm", "langchain", "langchain_core", "langgraph")
HEAVY = (*FRAMEWORKS, "hnswlib", "matplotlib", "krunch_litellm", "krunch_langchain")

FOR_WINGS = {"abandoned", "exchange", "report", "turns", "settings", "errors", "tokens", "snapshots"}
"""What a wing may import of the core; its door, plugin.py, the hook markers too."""
FOR_ADAPTERS = {
    "krunch_plugins",
    "krunch_plugins.abandoned",
    "krunch_plugins.errors",
    "krunch_plugins.exchange",
    "krunch_plugins.report",
    "krunch_plugins.turns",
    "krunch_plugins.testing",
}
"""What an adapter may import."""
CONTRACTS = {"exchange", "report", "turns", "settings", "errors", "tokens", "snapshots", "hookspecs", "plugins"} | {
    "_version",
    "abandoned",
    "isolation",
    "settings_sources",
}
"""The part of the core that all others stand on: it knows no wing."""


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(path: Path, name: str) -> set[tuple[str, str]]:
    """What a module imports anywhere in it, for types too: (module, name in it or "")."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add((whole, "") if whole in MODULES else (str(node.module), alias.name))
    return found


def place(module: str) -> tuple[str, str]:
    """The package of a module, and where in the package it lies: a wing's or file's name, "" for the package itself."""
    package, _, rest = module.partition(".")
    return package, rest.split(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if place(name)[1] in WINGS])
def test_a_wing_imports_the_contracts_and_itself(module: str) -> None:
    """No wing knows another, and only its plugin.py knows the hooks."""
    wing = place(module)[1]
    allowed = FOR_WINGS | {wing} | ({"hookspecs"} if module.endswith(".plugin") else set())

    used = {place(target)[1] for target, _ in imports(MODULES[module], module) if place(target)[0] in PACKAGES}
    assert used <= allowed


@pytest.mark.parametrize("module", [name for name in MODULES if place(name)[0] == "krunch_plugins"])
def test_the_core_knows_no_framework(module: str) -> None:
    """Only the command line and the adapters import a framework, or an adapter."""
    used = {place(target)[0] for target, _ in imports(MODULES[module], module)}

    if place(module)[1] != "cli":
        assert used.isdisjoint({*FRAMEWORKS, "krunch_litellm", "krunch_langchain"})


@pytest.mark.parametrize("module", [f"krunch_plugins.{name}" for name in sorted(CONTRACTS)])
def test_the_contracts_know_no_wing(module: str) -> None:
    """What everything stands on imports none of what stands on it."""
    if module in MODULES:
        used = {place(target)[1] for target, _ in imports(MODULES[module], module) if place(target)[0] in PACKAGES}
        assert used <= CONTRACTS


@pytest.mark.parametrize("module", [name for name in MODULES if place(name)[0] != "krunch_plugins"])
def test_an_adapter_uses_public_names(module: str) -> None:
    """Adapters use what a user of Krunch could use, and do not know each other."""
    public = importlib.import_module("krunch_plugins").__all__
    for target, name in imports(MODULES[module], module):
        package = place(target)[0]
        if package == "krunch_plugins":
            assert target in FOR_ADAPTERS
            assert name in public or target != "krunch_plugins"
        else:
            assert package not in PACKAGES or package == place(module)[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_there(package: str) -> None:
    """`__all__` is sorted, each name in it is there, and nothing of its own that the package binds is missing."""
    tree = ast.parse((PACKAGES[package] / "__init__.py").read_text(encoding="utf-8"))
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and place(str(node.module))[0] == package:
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id for target in targets if isinstance(target, ast.Name)}
    module = importlib.import_module(package)
    public = list(getattr(module, "__all__", []))

    assert public == sorted(set(public))
    assert {name for name in bound if not name.startswith("_")} <= set(public)
    assert [name for name in public if not hasattr(module, name)] == []


def test_importing_krunch_imports_no_framework() -> None:
    """In a fresh process, importing and using Krunch imports neither a framework nor an optional dependency."""
    program = """
import json, sys
from krunch_plugins import Krunch, Settings
with Krunch(Settings()) as krunch:
    exchange = krunch.prepare([{"role": "user", "content": "x " * 100}], model="gpt-4o")
    exchange.finish({"role": "assistant", "content": "y"})
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    environment = {**os.environ, "KRUNCH_DISABLE_PLUGINS": "all"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, env=environment
    )

    loaded = json.loads(done.stdout)
    assert "krunch_plugins" in loaded
    assert [name for name in HEAVY if name in loaded] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def program(page: Path) -> str:
    """The Python blocks of a page, each line where it stands in the page; all else is left out."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def test_there_are_snippets() -> None:
    """The README and the page about hooks show code."""
    assert "krunch.prepare(" in program(ROOT / "README.md")
    assert "@hookimpl" in program(ROOT / "docs" / "hooks.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """What a page shows runs as it stands, from top to bottom, in an empty folder; a stand-in answers for models."""
    with Upstream(lambda _: Answer("Good morning.")) as upstream:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KRUNCH_")}
        model = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": upstream.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(
            [sys.executable, "-c", program(page)],
            cwd=tmp_path,
            env={**kept, **model},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert done.returncode == 0, done.stderr
