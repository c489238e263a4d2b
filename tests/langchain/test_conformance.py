"""LangChain's own suites: the wrapper does what the model inside does, test by test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
LOOPS = ("asyncio_default_test_loop_scope=session", "asyncio_default_fixture_loop_scope=session", "asyncio_mode=auto")


def test_the_wrapper_passes_what_the_model_passes(tmp_path: Path) -> None:
    """A wrapped ChatOpenAI passes and skips what a bare one does in the same run; only serializing it is refused."""
    suites = shutil.copy(HERE / "chat_model_suites.py", tmp_path)  # beside it, syrupy writes its snapshot
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "no:cacheprovider", "--benchmark-disable", "--snapshot-update", "--junitxml", "report.xml", "-s"]
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", *options, *(f"-o{loop}" for loop in LOOPS), suites]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "LANGSMITH_TRACING": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    outcomes: dict[str, dict[str, str]] = {}
    for case in ET.parse(tmp_path / "report.xml").iter("testcase"):
        suite = case.attrib["classname"].rpartition(".")[2]
        outcomes.setdefault(suite, {})[case.attrib["name"]] = (
            "skipped" if case.find("skipped") is not None else "passed"
        )

    serialization = {"test_serdes": "passed"}, {"test_serdes": "skipped"}
    assert outcomes["TestWrappedIntegration"] == outcomes["TestBareIntegration"]
    assert outcomes["TestBareUnits"] == {**outcomes["TestWrappedUnits"], **serialization[0]}
    assert outcomes["TestWrappedUnits"] == {**outcomes["TestBareUnits"], **serialization[1]}
    passed = list(outcomes["TestWrappedIntegration"].values()).count("passed")
    assert passed >= 39
    saved = re.search("saved ([0-9]+)", run.stdout)
    assert saved is not None
    assert int(saved[1]) > 50 * passed
