# Everything a fresh machine needs is done here: `make tiny` and `make test` create .venv/, install pinned packages and run.
# A second call reuses the environment unless pyproject.toml or the pins changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# `make gpu` has an environment of its own: another torch, and packages that are compiled for it
GPU_VENV := .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
GPU_STAMP := $(GPU_VENV)/.installed
# `make lmeval` too: lm-evaluation-harness needs an older python-dateutil. All the rest it takes from the tests' environment
LMEVAL_VENV := .venv-lm-eval
LMEVAL_BIN := $(LMEVAL_VENV)/bin
LMEVAL_STAMP := $(LMEVAL_VENV)/.installed
SITE_PACKAGES := -c 'import site; print(site.getsitepackages()[0])'
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "GroundThink needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 tiny")'
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: tiny test check lint bench gpu interpreted lmeval clean help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

tiny: $(STAMP)  ## install, then the gates on the 3.5M model; the report lands in reports/out/
	$(BIN)/pytest suites/gates -m tiny $(ARGS)

test: $(STAMP) lint  ## install, then lint, types, layers and the project's own tests
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: test  ## the same as test

lint: $(STAMP)  ## ruff, mypy, import-linter, and zizmor and check-jsonschema for the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --no-progress --pedantic --strict-collection .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

bench: $(STAMP)  ## training steps and kernels, side by side on the CPU; the times are kept in reports/out/bench/
	$(BIN)/python -m benchmarks.step --json reports/out/bench/step.json
	$(BIN)/python -m benchmarks.kernels --json reports/out/bench/kernels.json

gpu:  ## on a machine with an NVIDIA GPU and nvcc: what CI runs there every night; ARGS names steps
	@$(CHECK_PYTHON)
	@$(PYTHON) .ci/gpu.py require
	@$(MAKE) --no-print-directory $(GPU_STAMP)
	@$(GPU_BIN)/python .ci/gpu.py run $(ARGS)

$(STAMP): pyproject.toml constraints/cpu.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints/cpu.txt $$(grep '^torch==' constraints/cpu.txt)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints/cpu.txt --editable '.[dev]'
	$(BIN)/python -m kernels.cpu.build
	touch $(STAMP)

interpreted: $(STAMP)  ## add mamba-ssm's kernels for Triton's interpreter: the tests run them on the CPU, too (1 GB)
	grep -v '^mamba' constraints/interpreted.txt > $(VENV)/interpreted.txt
	$(BIN)/python $(PIP_INSTALL) --constraint constraints/cpu.txt --requirement $(VENV)/interpreted.txt
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps --no-cache-dir --requirement constraints/interpreted.txt

lmeval: $(LMEVAL_STAMP)  ## exported canaries in lm-evaluation-harness, in an environment of its own: are its scores ours?
	$(LMEVAL_BIN)/python -m pytest tests/fixtures/test_lm_eval_equal.py $(ARGS)

# An environment over that of the tests: the same torch is not installed twice
$(LMEVAL_STAMP): $(STAMP) constraints/lm-eval.txt
	$(BIN)/python -m venv $(LMEVAL_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE_PACKAGES))')" > "$$($(LMEVAL_BIN)/python $(SITE_PACKAGES))/tests.pth"
	sed -n 's/==.*/==/; s/^[a-z]/^&/p' constraints/lm-eval.txt | grep -v -f - constraints/cpu.txt > $(LMEVAL_VENV)/constraints.txt
	cat constraints/lm-eval.txt >> $(LMEVAL_VENV)/constraints.txt
	$(LMEVAL_BIN)/python $(PIP_INSTALL) --constraint $(LMEVAL_VENV)/constraints.txt 'lm_eval[hf]'
	$(LMEVAL_BIN)/python -c 'import lm_eval'  # or its tests would be skipped
	touch $(LMEVAL_STAMP)

# The packages of cuda.txt are compiled for the torch that is installed: without isolation, and without pip's cache, which
# does not know for which torch a wheel was made. --no-deps leaves out what only models that we have not ask for.
$(GPU_STAMP): pyproject.toml constraints/cpu.txt constraints/cuda.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(GPU_VENV)
	sed -n 's/==.*/==/; s/^[a-z]/^&/p' constraints/cuda.txt | grep -v -f - constraints/cpu.txt > $(GPU_VENV)/constraints.txt
	cat constraints/cuda.txt >> $(GPU_VENV)/constraints.txt
	$(GPU_BIN)/python $(PIP_INSTALL) --constraint $(GPU_VENV)/constraints.txt torch setuptools wheel packaging ninja
	$(GPU_BIN)/python $(PIP_INSTALL) --constraint $(GPU_VENV)/constraints.txt --editable '.[dev]'
	PATH="$(CURDIR)/$(GPU_BIN):$$PATH" MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
	$(GPU_BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps --no-cache-dir --requirement constraints/cuda.txt
	touch $(GPU_STAMP)

clean:  ## remove the environments and build products (the store .groundthink/ and reports/ stay)
	rm -rf $(VENV) $(GPU_VENV) $(LMEVAL_VENV) build dist *.egg-info
