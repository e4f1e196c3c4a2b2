# Two targets do everything on a fresh machine with Python 3.11 to 3.13, venv and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# MONAI Label has an environment of its own: `make label STUDIES=folder` starts it, `make label-test` tests it.
LABEL_VENV := .venv-label
LABEL_BIN := $(LABEL_VENV)/bin
LABEL_PIP := $(LABEL_BIN)/python -m pip --disable-pip-version-check
LABEL_PINS := --constraint constraints.txt --constraint constraints-label.txt

# nnU-Net and TotalSegmentator have one too: `make import-test` compares imported models with what they themselves say.
PEERS_VENV := .venv-peers
PEERS_BIN := $(PEERS_VENV)/bin
PEERS_PIP := $(PEERS_BIN)/python -m pip --disable-pip-version-check
PEERS_PINS := --constraint constraints.txt --constraint constraints-peers.txt

BUNDLES ?= bundles/hippocampus_mri_segmentation
STUDIES ?=
WORK ?= label-work

.PHONY: help demo check test lint docs label label-test import-test format clean

help:
	@echo "make demo    train a small model on made-up scans and segment others; ends with out/index.html"
	@echo "make test    all tests"
	@echo "make check   form, types, layers and the quick tests"
	@echo "make docs    the documentation, in site/"
	@echo "make label   MONAI Label: make label STUDIES=folder"

demo: $(VENV)/.core
	$(BIN)/voxelgate demo --out out --overwrite

# What every change is checked with: form, types, layers, and the tests that are not marked slow.
check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	for version in 3.11 3.12 3.13; do $(BIN)/mypy --python-version $$version || exit; done

label: $(LABEL_VENV)/.ready
	@test -n "$(STUDIES)" || { echo "Which images? make label STUDIES=folder, or STUDIES=http://pacs/dicom-web"; exit 2; }
	exec $(LABEL_BIN)/voxelgate label $(BUNDLES) --studies "$(STUDIES)" --work "$(WORK)"

label-test: $(LABEL_VENV)/.ready
	$(LABEL_PIP) install --quiet $(LABEL_PINS) pytest hypothesis
	$(LABEL_BIN)/python -m pytest tests/apps/test_label_*.py

# Where timm is imported for networks that no test runs, a stand-in does: it would bring torchvision.
import-test: $(PEERS_VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=tests/imports/stand_ins $(PEERS_BIN)/python -m pytest --numprocesses 2 --dist loadfile -m peers tests/imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core tests/js/package-lock.json
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	npm ci --prefix tests/js --no-audit --no-fund --silent || echo "without npm the page's JavaScript is not linted"
	touch $@

$(LABEL_VENV)/.ready: pyproject.toml constraints.txt constraints-label.txt
	test -x $(LABEL_BIN)/python || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_PIP) install --quiet $(LABEL_PINS) --editable '.[label]'
	$(LABEL_PIP) install --quiet $(LABEL_PINS) --no-deps monailabel
	touch $@

$(PEERS_VENV)/.ready: pyproject.toml constraints.txt constraints-peers.txt
	test -x $(PEERS_BIN)/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_PIP) install --quiet $(PEERS_PINS) --editable '.[dask,onnx,openvino,peers]' pytest pytest-xdist hypothesis
	$(PEERS_PIP) install --quiet $(PEERS_PINS) --no-deps dynamic-network-architectures nnunetv2 TotalSegmentator
	touch $@

clean:
	rm -rf $(VENV) $(LABEL_VENV) $(PEERS_VENV) tests/js/node_modules out
