# All tasks, for a fresh machine with Python 3.11 or newer. `make` lists the targets.
#
#   PYTHON=python3.12 make demo       use another Python for the virtual environment
#   TORCH_INDEX=<URL> make demo       install PyTorch from this package index: with the URL of PyTorch's index of CPU builds,
#                                     the CUDA libraries (some 4 GB) are not installed. Tested only by `make -n` and with
#                                     the filtered lock, because the machines used cannot reach that index.
#   TEST_WORKERS=0 make test          run the tests in this process: by default one for each processor does, and four at most
#   E2E_WORKERS=1 make e2e            run the end-to-end tests in one worker
#   E2E_MARKS="e2e and nightly" make e2e   run those that take too long for every change
#   make release VERSION=… REGISTRY=… OPERATOR_BASE=python:3.11-slim@sha256:… TRAINER_BASE=nvidia/cuda:…@sha256:…
#   CONTAINER_TOOL=podman make release …   build and push with podman, or with buildah

PYTHON ?= python3
TORCH_INDEX ?=
FEDPIPE_ARGS ?=
E2E_TESTS ?= tests/e2e
E2E_WORKERS ?= 4
TEST_WORKERS ?= logical

REGISTRY ?=
OPERATOR_BASE ?=
TRAINER_BASE ?=
CONTAINER_TOOL ?= docker
# Options of `helm push`, such as --plain-http for a registry without TLS.
HELM_PUSH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Each file in one worker, in the order of tests/e2e/conftest.py. More workers than processors, since these tests wait half of the time.
E2E_MARKS ?= e2e and not nightly
# A whole run that a test waits for may take longer than a test of units may.
E2E := $(BIN)/pytest -o faulthandler_timeout=1800 -m "$(E2E_MARKS)" -n $(E2E_WORKERS) --dist loadfile --no-loadscope-reorder $(E2E_TESTS)
LOCK := requirements.lock
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
# Named after a checksum of its inputs: a changed lock is installed again, and file times, which a checkout changes, do not matter.
INSTALLED := $(VENV)/installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)
# The site's own environment: its packages are for it alone, and some have other versions than ours.
DOCS_VENV := .venv-docs
DOCS_LOCK := requirements-docs.lock
DOCS_INSTALLED := $(DOCS_VENV)/installed-$(shell cat $(DOCS_LOCK) | cksum | cut -d' ' -f1)
# Likewise for the programs that tests/tracking use: MLflow has another pandas, pyarrow and protobuf.
TRACKERS_VENV := .venv-trackers
TRACKERS_LOCK := requirements-trackers.lock
TRACKERS_INSTALLED := $(TRACKERS_VENV)/installed-$(shell cat $(TRACKERS_LOCK) | cksum | cut -d' ' -f1)
FUZZ_RUNS ?= 3000
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' $(LOCK))
# Each folder for itself: their modules share names.
BENCHMARKS := benchmarks $(patsubst %/,%,$(dir $(wildcard benchmarks/*/__main__.py)))
COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --quiet
# What is installed in the images, and what builds the project there.
IMAGE_LOCKS := requirements-operator.lock requirements-trainer.lock requirements-build.lock
DIST := dist
# A lock names no dependencies between its packages, so the tool's warning that they are missing says nothing.
SBOM := $(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --validate
WITHOUT_TORCH = awk '/^[^ \#]/ { keep = ($$0 !~ /^(torch|triton|nvidia-|cuda-)/) } keep' $(LOCK)

.PHONY: help venv demo test browser trackers slow gpu e2e cluster cluster-down lint format lock bench bench-flower bench-operator sbom audit release-images release docs nightly clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Create .venv with the pinned packages (hashes checked) and the project

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "FedPipe needs Python 3.11 or newer: choose one with PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) cannot create virtual environments: on Debian or Ubuntu, apt install python3-venv (and python3-pip)"; exit 1; }
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

demo: $(INSTALLED) ## Fine-tune one model across three heterogeneous sites on this machine: five minutes, and three more to train each site alone
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/fedpipe run examples/quickstart/ $(FEDPIPE_ARGS)

# One thread for PyTorch in each worker: together they have all processors.
test: lint ## Lint, then run every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --maxprocesses 4 --dist loadfile

browser: ## Install Debian's Chromium and its driver for the tests that open a report (needs root); else they are skipped
	@for program in chromium chromedriver; do command -v $$program > /dev/null || missing=yes; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	command -v apt-get > /dev/null || { echo "browser: SKIPPED: this machine has no apt-get to install chromium and chromium-driver with"; exit 75; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq chromium chromium-driver > /dev/null \
	    || { echo "browser: SKIPPED: apt-get did not install chromium and chromium-driver"; exit 75; }

trackers: $(TRACKERS_INSTALLED) ## Install MLflow and TensorBoard in .venv-trackers (700 MB) for the tests that need the real ones; else they are skipped

$(TRACKERS_INSTALLED):
	$(PYTHON) -m venv $(TRACKERS_VENV)
	$(TRACKERS_VENV)/bin/pip install --quiet --no-deps --require-hashes -r $(TRACKERS_LOCK)
	@rm -f $(TRACKERS_VENV)/installed-*
	@touch $@

slow: $(INSTALLED) ## Run the slow tests: whole runs in real processes, some ten minutes
	$(BIN)/pytest -m "slow and not nightly"

gpu: $(INSTALLED) ## Run the tests that need a GPU, on this machine's first GPU, and those that need two on its first two
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0,1} $(BIN)/pytest tests/trainer/test_on_a_gpu.py

e2e: $(INSTALLED) ## Run the end-to-end tests on the cluster of KUBECONFIG, else on one created on this machine (needs root, Debian, Go)
ifdef KUBECONFIG
	$(E2E)
else
	@$(MAKE) --no-print-directory cluster
	eval "$$($(PYTHON) tests/cluster env)" && $(E2E)
endif

cluster: ## Start a real Kubernetes on this machine and build the images for it: docs/development/cluster.md
	$(PYTHON) tests/cluster up
	$(PYTHON) tests/cluster images

cluster-down: ## Stop that cluster; programs and images stay in the cache
	$(PYTHON) tests/cluster down

lint: $(INSTALLED) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy operator trainer examples/ingredients tests/cluster tools
	for folder in $(BENCHMARKS); do MYPYPATH=$$folder:benchmarks:benchmarks/fleet:tests/helpers $(BIN)/mypy $$folder/*.py || exit 1; done
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

# Without pip, which pip-audit requires: every environment has its own, and an installation must not replace the pip that runs it.
lock: ## Pin all packages that pyproject.toml requires, with hashes and without index URLs; then each image's part of them
	$(COMPILE) --all-extras --no-emit-package pip pyproject.toml -o $(LOCK)
	$(COMPILE) --extra operator --constraint $(LOCK) pyproject.toml -o requirements-operator.lock
	$(COMPILE) --extra trainer --constraint $(LOCK) pyproject.toml -o requirements-trainer.lock
	$(COMPILE) --group rival --constraint $(LOCK) -o requirements-rival.lock
	$(COMPILE) --group docs -o $(DOCS_LOCK)
	$(COMPILE) --group trackers -o $(TRACKERS_LOCK)
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | $(COMPILE) - -o requirements-build.lock

sbom: $(INSTALLED) ## Write the Python packages of each image as CycloneDX: dist/fedpipe-operator.cdx.json and dist/fedpipe-trainer.cdx.json
	@mkdir -p $(DIST)
	for image in operator trainer; do $(SBOM) --output-file $(DIST)/fedpipe-$$image.cdx.json requirements-$$image.lock || exit 1; done

audit: $(INSTALLED) ## Look for known vulnerabilities in the images' locks; says SKIPPED where the vulnerability service cannot be reached
	@$(BIN)/python tools/audit.py $(IMAGE_LOCKS) || { status=$$?; [ $$status -eq 75 ] || exit $$status; }

bench: $(INSTALLED) ## Run the benchmarks, which print the tables of benchmarks/README.md
	$(BIN)/python benchmarks/aggregate.py
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python benchmarks/train_step.py examples/quickstart/volumes/models/mpnet --task classify

bench-flower: $(INSTALLED) ## Measure whole rounds against Flower's own simulation, which it installs into .venv (ray, 80 MB)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-rival.lock
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python benchmarks/round.py

bench-operator: $(INSTALLED) ## Measure one operator with 1,000 sites and 100 runs; needs what `make cluster` needs, and 75 minutes
	$(BIN)/python benchmarks/operator

docs: $(DOCS_INSTALLED) ## Build the site of all pages in site/; REPOSITORY_URL is where its links to code lead
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

$(DOCS_INSTALLED):
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --no-deps --require-hashes -r $(DOCS_LOCK)
	@rm -f $(DOCS_VENV)/installed-*
	@touch $@

nightly: export PYTEST_ADDOPTS = -o faulthandler_timeout=0 # a test may take an hour here
nightly: $(INSTALLED) docs ## What is too long for every change: FUZZ_RUNS runs with a hostile site, all families of models and new examples of every property, the short form of the benchmarks, the site, long whole runs, long end-to-end tests
	FUZZ_RUNS=$(FUZZ_RUNS) $(BIN)/pytest -n auto tests/admission/test_hostile_site.py tests/admission/test_hostile_kinds.py tests/aggregation/test_hostile_updates.py
	FEDPIPE_ALL_FAMILIES=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --maxprocesses 4 --dist loadfile --hypothesis-profile=random
	$(BIN)/python benchmarks/aggregate.py --sites 4 16 --megabytes 20 --repeats 1
	$(BIN)/python benchmarks/admission.py
	$(BIN)/python benchmarks/planner.py --sites 200
	$(BIN)/python benchmarks/export --shape tiny
	$(BIN)/pytest -m "slow and nightly"
	$(MAKE) --no-print-directory e2e E2E_MARKS="e2e and nightly"

# A tag is moved: the same release, built again, would have another base, which nobody has looked at.
release-images: ## Build a release's images on base images that are named by digest, and push them to REGISTRY
	@test -n "$(REGISTRY)" || { echo "Set REGISTRY, to which the images are pushed"; exit 1; }
	@for given in "OPERATOR_BASE=$(OPERATOR_BASE)" "TRAINER_BASE=$(TRAINER_BASE)"; do \
	    printf '%s\n' "$${given#*=}" | grep -Eq '^[^@[:space:]]+@sha256:[0-9a-f]{64}$$' || { \
	        echo "A release is built on base images that are named by digest, such as python:3.11-slim@sha256:…, and not on $$given." \
	            "docker buildx imagetools inspect IMAGE shows the digest of a tag"; exit 1; }; \
	done
	$(CONTAINER_TOOL) build -f Dockerfile.operator --build-arg "BASE_IMAGE=$(OPERATOR_BASE)" -t $(REGISTRY)/fedpipe-operator:$(VERSION) .
	$(CONTAINER_TOOL) build -f Dockerfile.trainer --build-arg "BASE_IMAGE=$(TRAINER_BASE)" -t $(REGISTRY)/fedpipe-trainer:$(VERSION) .
	$(PYTHON) tools/release.py push --folder "$(DIST)" "$(CONTAINER_TOOL)" $(REGISTRY)/fedpipe-operator:$(VERSION) $(REGISTRY)/fedpipe-trainer:$(VERSION)

release: ## Check VERSION, then make images, SBOMs, chart and checksums in dist/ and push images and chart to REGISTRY
	@test "$(origin VERSION)" = "command line" || { echo "Set VERSION, such as make release VERSION=$(VERSION): it is what you mean to release"; exit 1; }
	@$(PYTHON) tools/release.py check "$(VERSION)"
	@$(MAKE) --no-print-directory release-images
	@$(MAKE) --no-print-directory sbom
	@$(PYTHON) tools/release.py chart --folder "$(DIST)" "$(VERSION)" "$(REGISTRY)" -- $(HELM_PUSH_ARGS)
	@$(PYTHON) tools/release.py checksums "$(VERSION)" --folder "$(DIST)"

clean: ## Remove everything that was built; the cache of models stays
	rm -rf $(VENV) $(DOCS_VENV) $(TRACKERS_VENV) runs dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache examples/*/volumes
