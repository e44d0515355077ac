# `make demo` shows the whole path on real images; `make test` runs the quick tests; `make check` runs all, ruff and mypy.
# All share .venv, which is made anew when a requirement or a pinned version changes.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin

# Keyed by content, not by time: a checkout gives every file a new time.
REQUIREMENTS := pyproject.toml runtime/pyproject.toml tools/constraints.txt tools/setup_venv.sh
INSTALLED := $(VENV)/.installed-$(shell cat $(REQUIREMENTS) | cksum | cut -d' ' -f1)

# Extra arguments for pytest: make test PYTEST_ARGS="tests/runtime -k card"
PYTEST_ARGS ?=

# Extra arguments for tools/release.py
RELEASE_ARGS ?=

# A file of tests stays on one worker, which makes its fixtures once; threads of torch would fight for the same cores.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: help demo test slow check lint coverage docs release format venv clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    learn, export, build, validate and classify with the built-in demo recipe'
	@echo 'make test    run the quick tests'
	@echo 'make slow    run the other tests, which take longer'
	@echo 'make check   ruff, mypy and all tests'
	@echo 'make lint    ruff and mypy'
	@echo 'make coverage  all tests with line and branch coverage, which fails below .ci/coverage-floor'
	@echo 'make docs    the documentation site in build/site'
	@echo 'make release  build wheels and source archives twice, compare, and try them; RELEASE_ARGS="--cut VERSION" first'
	@echo 'make format  let ruff format and mend the code'
	@echo 'make clean   remove build/ and the caches, keep $(VENV)'

$(INSTALLED): $(REQUIREMENTS)
	tools/setup_venv.sh $(VENV)
	@rm -f $(VENV)/.installed-*
	@touch $@

venv: $(INSTALLED)

demo: venv
	$(BIN)/p4q-edge build --engine build/demo.onnx
	$(BIN)/p4q-edge learn --ablate methods --output build/demo.run -v > /dev/null
	@$(BIN)/python tools/demo_images.py build/demo.p4q build/demo.images
	$(BIN)/p4q-edge classify build/demo.onnx build/demo.images --top-k 2
	$(BIN)/p4q-edge validate build/demo.onnx
	@printf '%-8s %s\n' bundle build/demo.p4q engine build/demo.onnx card build/demo.onnx.json report build/demo.report.json

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m slow $(PYTEST_ARGS)

check: venv
	OMP_NUM_THREADS=1 VENV=$(VENV) tools/check.sh $(PARALLEL) -m '' $(PYTEST_ARGS)

lint: venv
	VENV=$(VENV) tools/check.sh --lint

coverage: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m '' --cov --cov-report=term:skip-covered \
		--cov-fail-under=$(if $(PYTEST_ARGS),0,$(shell cat .ci/coverage-floor)) $(PYTEST_ARGS)

release: venv
	$(BIN)/python tools/release.py $(RELEASE_ARGS)

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f docs/mkdocs.yml
	@echo 'build/site/index.html; searching needs a server: $(BIN)/python -m http.server -d build/site'

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
