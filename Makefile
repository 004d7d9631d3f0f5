# Needs only make and Python 3.10, 3.11 or 3.12; everything else goes into an environment of its own.
#   make test VENV=/some/dir         use or create the environment there
#   make demo PYTHON=/path/python    create the environment with this Python
#   make test PYTEST_ARGS="-k plan"  pass options to pytest
#   make test PROCESSES=4            run the tests in this many processes (2 unless given, 0 for none)
#   make mutation FOLDERS="plan batch"   how many of 300 mutants of each folder the tests find, some minutes for each
#   make bench DATA=rows.jsonl TOKENIZER=/dir/of/tokenizer   measure on your own files
#   make bench PARTS=abcdefghi       the whole table of docs/performance.md, about half an hour

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
PROCESSES ?= 2
DATA ?= ms_prefstream/demo/pairs.jsonl
TOKENIZER ?= bytes
PARTS ?= ab
FOLDERS ?= plan

SHELL := /bin/sh
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# The pair that the demo and the tests run with; pyproject.toml allows others.
PAIR := mindspore==2.9.0 mindformers==1.9.0
# What is installed is remembered in the environment; a newer pyproject.toml or Makefile makes it install again.
RUN_STAMP := $(VENV)/.ms-prefstream-run
TEST_STAMP := $(VENV)/.ms-prefstream-test
DOCS_STAMP := $(VENV)/.ms-prefstream-docs
CODE := $(wildcard ms_prefstream tests examples benchmarks docs setup.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-long mutation lint docs bench figures dist clean

help:
	@echo "make demo       install, then train a small reward model and DPO on the bundled pairs (CPU, nothing to prepare)"
	@echo "make test       install with the test tools, then ruff, mypy, every test that is quick and a few trainings"
	@echo "make test-all   the rest: all other trainings, the examples, whole programs and what takes seconds (what make test runs is left out)"
	@echo "make test-long  everything, with many new random examples and the tests that take minutes"
	@echo "make mutation   install mutmut, then change the code of a folder in 300 places, one at a time, and see which tests fail"
	@echo "make lint       ruff and mypy only"
	@echo "make docs       install Sphinx, then build the site into docs/_build; a warning or a dead link is an error"
	@echo "make bench      throughput from JSON Lines text to padded batches (of the bundled pairs; DATA=... TOKENIZER=... for others, PARTS=abcdefghi for everything)"
	@echo "make figures    the pictures of README and documents, from the library and docs/performance.md (Chromium; ../shared/tokenizers)"
	@echo "make dist       wheel and sdist in dist/, each checked with twine"
	@echo "make clean      remove caches and build leftovers (the environment in $(VENV) stays)"

demo: $(RUN_STAMP)
	@$(BIN)/ms-prefstream demo

test: lint
	@$(PYTEST) -m "not long and not slow and (smoke or not training)" $(PYTEST_ARGS) || { $(NO_TESTS); }

test-all: $(TEST_STAMP)
	@$(PYTEST) -m "not long and (slow or (training and not smoke))" $(PYTEST_ARGS) || { $(NO_TESTS); }

test-long: $(TEST_STAMP)
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) $(PYTEST_ARGS) || { $(NO_TESTS); }

mutation: $(TEST_STAMP)
	@$(PIP) install -q mutmut==3.8.1
	@$(BIN)/python -m tests.mutation $(FOLDERS)

lint: $(TEST_STAMP)
	$(BIN)/python -m ruff check $(CODE)
	$(BIN)/python -m ruff format --check $(CODE)
	$(BIN)/python -m mypy

# No MindSpore: docstrings are read from the package, which loads it where a dataset is made.
docs: $(DOCS_STAMP)
	@$(BIN)/python -m sphinx -q -W -j auto docs docs/_build $(SPHINX_ARGS)
	@echo "docs/_build/index.html"

bench: $(RUN_STAMP)
	@$(BIN)/python benchmarks/suite.py --data "$(DATA)" --tokenizer "$(TOKENIZER)" --parts "$(PARTS)"

figures: $(TEST_STAMP)
	@$(BIN)/python docs/figures/make.py

dist:
	@$(ENVIRONMENT)
	@$(PIP) install -q build twine
	@rm -rf build dist *.egg-info
	@$(BIN)/python -m build -q
	@$(BIN)/python -m twine check --strict dist/*

clean:
	@rm -rf build dist docs/_build output kernel_meta rank_* *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@for part in $(CODE); do find "$$part" -name __pycache__ -type d -prune -exec rm -rf {} +; done

# pytest ends with 5 when it found no test to run: that is a failure here, and says so.
NO_TESTS = code=$$?; if [ "$$code" -eq 5 ]; then echo "pytest ran no test, which counts as a failure: check PYTEST_ARGS and tests/." >&2; fi; exit $$code
# Tests of one scope, a file as a rule, stay in one of the processes: see tests/conftest.py.
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder

$(RUN_STAMP): pyproject.toml Makefile
	@$(ENVIRONMENT)
	@echo "Installing ms_prefstream into $(VENV): MindSpore is some hundred MB, this takes a minute or more ..."
	@$(PIP) install -q -e ".[mindformers,fast]" $(PAIR) || { $(NOT_INSTALLED); }
	@touch $@

$(TEST_STAMP): pyproject.toml Makefile
	@$(ENVIRONMENT)
	@echo "Installing ms_prefstream and its test tools into $(VENV): MindSpore is some hundred MB, this takes a minute or more ..."
	@$(PIP) install -q -e ".[test]" $(PAIR) || { $(NOT_INSTALLED); }
	@touch $@ $(RUN_STAMP)

$(DOCS_STAMP): pyproject.toml Makefile
	@$(ENVIRONMENT)
	@echo "Installing ms_prefstream and Sphinx into $(VENV) ..."
	@$(PIP) install -q -e ".[docs]" || { $(NOT_INSTALLED); }
	@touch $@

NOT_INSTALLED = echo "The installation failed: the lines above say why; run make again once that is solved." >&2; exit 1

# An environment that works is used as it is; otherwise one is created with the first Python that fits.
ENVIRONMENT = \
	fits='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; \
	whole='import ensurepip, venv'; \
	if [ -x "$(BIN)/python" ] && "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
		"$(BIN)/python" -c "$$fits" || { \
			echo "The environment in $(VENV) has another Python than 3.10, 3.11 or 3.12: remove that folder and run make again." >&2; exit 1; }; \
	else \
		chosen=; bare=; tried="$(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.10 python3 python)"; \
		for candidate in $$tried; do \
			"$$candidate" -c "$$fits" >/dev/null 2>&1 || continue; \
			if "$$candidate" -c "$$whole" >/dev/null 2>&1; then chosen=$$candidate; break; else bare=$$candidate; fi; \
		done; \
		if [ -z "$$chosen" ] && [ -n "$$bare" ]; then \
			echo "$$bare fits but lacks the modules venv and ensurepip (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; fi; \
		if [ -z "$$chosen" ]; then \
			echo "No Python 3.10, 3.11 or 3.12 found (tried: $$tried): install one, or name it with PYTHON=/path/to/python." >&2; exit 1; fi; \
		echo "Creating an environment in $(VENV) with $$chosen ..."; \
		"$$chosen" -m venv "$(VENV)" || { echo "$$chosen could not create an environment in $(VENV)." >&2; exit 1; }; \
	fi
