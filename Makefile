# Everything a fresh machine with Python 3.11 or newer needs. `make` alone lists the targets.
#
#   PYTHON=python3.12 make demo       another Python for the virtual environment
#   TORCH_INDEX=<URL> make demo       PyTorch from that package index first: with the address of PyTorch's own index of CPU
#                                     builds, the CUDA libraries (some 4 GB) stay out. Only its dry form is tested
#                                     (`make -n`, and the filtered lock), for want of that index on the machines used.

PYTHON ?= python3
TORCH_INDEX ?=
FEDPIPE_ARGS ?=
E2E_TESTS ?= tests/e2e

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
# Named after what it was installed from: a changed lock is installed anew, a fresh checkout's file times mean nothing.
INSTALLED := $(VENV)/installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' $(LOCK))
COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --quiet
WITHOUT_TORCH = awk '/^[^ \#]/ { keep = ($$0 !~ /^(torch|triton|nvidia-|cuda-)/) } keep' $(LOCK)

.PHONY: help venv demo test slow gpu e2e cluster cluster-down lint format lock bench bench-operator clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Create .venv with the pinned packages (hashes checked) and the project

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "FedPipe needs Python 3.11 or newer: name one, PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, apt install python3-venv (and python3-pip)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) $(TORCH)
	$(WITHOUT_TORCH) > $(VENV)/without-torch.lock
	$(BIN)/pip install --quiet --no-deps --require-hashes -r $(VENV)/without-torch.lock
else
	$(BIN)/pip install --quiet --no-deps --require-hashes -r $(LOCK)
endif
	$(BIN)/pip install --quiet --no-deps -e .
	@rm -f $(VENV)/installed-*
	@touch $@

demo: $(INSTALLED) ## Fine-tune one model across three unlike sites on this machine, in ten minutes
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/fedpipe run examples/quickstart/ $(FEDPIPE_ARGS)

test: lint ## Lint, then run every test
	$(BIN)/pytest

slow: $(INSTALLED) ## Run the slow tests: whole runs in real processes, some ten minutes
	$(BIN)/pytest -m slow

gpu: $(INSTALLED) ## Run the tests that need a GPU, on the first one here
	CUDA_VISIBLE_DEVICES=0 $(BIN)/pytest tests/trainer/test_on_a_gpu.py

e2e: $(INSTALLED) ## Run the end-to-end tests on the cluster that KUBECONFIG names, else on one made here (root, Debian, Go)
ifdef KUBECONFIG
	$(BIN)/pytest -m e2e $(E2E_TESTS)
else
	@$(MAKE) --no-print-directory cluster
	eval "$$($(PYTHON) tests/cluster env)" && $(BIN)/pytest -m e2e $(E2E_TESTS)
endif

cluster: ## Bring up a real Kubernetes on this machine and build the images for it: docs/development/cluster.md
	$(PYTHON) tests/cluster up
	$(PYTHON) tests/cluster images

cluster-down: ## Take that cluster down; what was built stays in the cache
	$(PYTHON) tests/cluster down

lint: $(INSTALLED) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy operator trainer examples/ingredients tests/cluster
	$(BIN)/lint-imports

format: $(INSTALLED) ## Bring the code into its form
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

lock: ## Pin every package below pyproject.toml anew, with hashes and without any index's address; then each image's part of them
	$(COMPILE) --all-extras pyproject.toml -o $(LOCK)
	$(COMPILE) --extra operator --constraint $(LOCK) pyproject.toml -o requirements-operator.lock
	$(COMPILE) --extra trainer --constraint $(LOCK) pyproject.toml -o requirements-trainer.lock
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | $(COMPILE) - -o requirements-build.lock

bench: $(INSTALLED) ## Run the benchmarks; they print the tables of benchmarks/README.md
	$(BIN)/python benchmarks/aggregate.py
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python benchmarks/train_step.py examples/quickstart/volumes/models/mpnet --task classify

bench-operator: $(INSTALLED) ## Measure one operator with 1,000 sites and 100 runs; needs what `make cluster` needs, and 75 minutes
	$(BIN)/python benchmarks/operator

clean: ## Remove what was built; the cache of models stays
	rm -rf $(VENV) runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache examples/*/volumes
