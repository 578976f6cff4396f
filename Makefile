# Everything a fresh machine needs is done here: `make tiny` and `make test` create .venv/, install pinned packages and run.
# A second call reuses the environment unless pyproject.toml or the pins changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: tiny test check lint bench clean help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

tiny: $(STAMP)  ## install, then the gates on the 3.5M model; the report lands in reports/out/
	$(BIN)/pytest suites/gates -m tiny $(ARGS)

test: $(STAMP) lint  ## install, then lint, types, layers and the project's own tests
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: test  ## the same as test

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## training step and kernels, side by side
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.kernels

$(STAMP): pyproject.toml constraints/cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "GroundThink needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 tiny")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt $$(grep '^torch==' constraints/cpu.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[dev]'
	$(BIN)/python -m kernels.cpu.build
	touch $(STAMP)

clean:  ## remove the environment and build products (the store .groundthink/ and reports/ stay)
	rm -rf $(VENV) build dist *.egg-info
