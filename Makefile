# Two commands on a fresh machine: `make serve` and `make test`. Everything they need is set up by `make install`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_VERSION := pip>=25.1,<26
TESTS ?= tests

.PHONY: install serve test test-slow lint format check clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## set up .venv with the project and all that serve and test need

# torch goes first, in a step of its own: pulled in by another package it may come in another release.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "$(PIP_VERSION)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[server,trainer,demo]" --group dev
	touch $@

serve: install  ## serve the default ensemble on http://127.0.0.1:8000
	$(BIN)/quorum serve --bundle default

test: install  ## the tests that finish in minutes
	$(BIN)/python -m pytest -m "not slow" $(TESTS)

test-slow: install  ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: install  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test  ## what a change must pass before it is committed

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
