# Four words to know: make demo, make test, make check, make bench.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
UV := .venv/bin/uv
# A private package index set up for pip serves uv too.
PIP_INDEX := $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX)
endif
INSTALL = $(UV) pip install --quiet --require-hashes --no-deps

.venv/.bootstrap: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Sightline needs Python 3.11 or newer; this is {v.major}.{v.minor}. Name another: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

.venv/.service: .venv/.bootstrap requirements/service.txt pyproject.toml
	$(INSTALL) --python .venv/bin/python -r requirements/service.txt
	$(UV) pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.service requirements/dev.txt
	$(INSTALL) --python .venv/bin/python -r requirements/dev.txt
	@touch $@
