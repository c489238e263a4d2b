# Every target sets itself up: a fresh checkout needs CPython 3.11 or newer with pip, git, gcc and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready

# A conversation file or a folder of them for `make bench`; empty: the conversations of the demo.
CORPUS ?=
# Test processes at once: one more than there are cores, for much of the suite waits for processes that it has started.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) + 1)" 2>/dev/null || echo auto)
# More arguments for pytest, as in `make test ARGS="-k legend"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions lint types bench bench-recall bench-context wheel format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY)  ## three real conversations through LiteLLM and back, with what was saved and what was checked
	$(VENV)/bin/krunch demo

test: $(READY)  ## the whole test suite
	$(RUN) pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-versions:  ## the adapters against the oldest and the newest LiteLLM, LangChain and LangGraph; takes long
	tests/versions/run.sh "oldest litellm" litellm
	tests/versions/run.sh -e agents,litellm -t tests/langchain "oldest langchain-core" "oldest langchain" \
	    "langchain-core langchain langgraph"
	tests/versions/run.sh -e agents,litellm -t "tests/langchain/test_saver.py tests/langchain/test_memory_store.py" \
	    "oldest langgraph-checkpoint" "langgraph-checkpoint langgraph langchain-core"

lint: $(READY)  ## ruff: rules and formatting
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(READY)  ## mypy, strict
	$(RUN) mypy

bench: $(READY)  ## the table of figures in the README; CORPUS=path measures other conversations
	$(VENV)/bin/python bench/compression.py $(CORPUS)

bench-recall: $(READY)  ## what search finds of long conversations: CORPUS=folder with them and their questions
	$(VENV)/bin/python bench/recall.py quality $(CORPUS)

bench-context: $(READY)  ## what smart contexts hold, and what the window costs: CORPUS=folder with long conversations
	$(VENV)/bin/python bench/context.py smart $(CORPUS)
	$(VENV)/bin/python bench/context.py window $(CORPUS)

wheel: $(READY)  ## build dist/*.whl
	rm -rf dist
	$(RUN) pip wheel --quiet --no-deps --wheel-dir dist .

format: $(READY)  ## let ruff format the code and mend what it can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is newer than pyproject.toml when what stands there is installed, so a second run starts at once.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[search]' \
	    || echo "hnswlib did not compile (is there a C++ compiler?): its tests are skipped, search stays exact"
	touch $@
