# Four words to know: make demo, make test, make check, make bench.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# MediaPipe, which the demo sees with, has no wheel for Python 3.13: where python3 is newer, an older one is looked for.
PYTHON_NAMED := $(if $(filter undefined,$(origin PYTHON)),,1)
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
ifndef PYTHON
PYTHON := $(firstword $(shell for python in python3 python3.12 python3.11; do \
	if $$python -c "$(SUITS)" 2>/dev/null; then echo $$python; break; fi; done) python3)
endif
.DEFAULT_GOAL := help
UV := .venv/bin/uv
# A private package index set up for pip serves uv too.
PIP_INDEX := $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX)
endif
INSTALL = $(UV) pip install --quiet --require-hashes --no-deps

.venv/.bootstrap: requirements/bootstrap.txt
	@if ! $(PYTHON) -c "$(SUITS)"; then \
		found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2], int(sys.version_info[:2] > (3, 12)))'); \
		if [ "$${found#* }" = 0 ] || [ -z "$(PYTHON_NAMED)" ]; then \
			echo "Sightline needs Python 3.11 or 3.12; $(PYTHON) is $${found% *}. Name another: make PYTHON=python3.12 ..." >&2; exit 1; \
		fi; \
		echo "Python $${found% *}: MediaPipe, which the demo sees with, has no wheel for it; 'make models' installs YOLO"; \
	fi
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

# The embedded Triton lives in an environment of its own: its Python backend wants numpy 1.
.venv-triton/.ready: .venv/.bootstrap requirements/triton.txt
	$(UV) venv --quiet --clear --python .venv/bin/python .venv-triton
	$(INSTALL) --python .venv-triton/bin/python -r requirements/triton.txt
	@touch $@

.venv-triton/.openvino: .venv-triton/.ready requirements/openvino.txt
	$(INSTALL) --python .venv-triton/bin/python -r requirements/openvino.txt
	@touch $@

# So does OCR: PaddleX looks one opencv package up by name and version. The second file lays the headless
# build of the same version over it, so that no libGL is needed.
.venv-ocr/.ready: .venv/.bootstrap requirements/ocr.txt requirements/ocr-headless.txt
	$(UV) venv --quiet --clear --python .venv/bin/python .venv-ocr
	$(INSTALL) --python .venv-ocr/bin/python -r requirements/ocr.txt
	$(INSTALL) --reinstall --python .venv-ocr/bin/python -r requirements/ocr-headless.txt
	@touch $@

# Tests run side by side, in one process more than there are cores (much of their time is waiting) and in four at most; the
# tests of one file stay together (tests/support/scheduler.py says who gets which). Tests that failed beside others run again,
# alone: the second result counts, and the last lines name those that passed then. TEST_PROCESSES=0 runs all one after the other.
TEST_PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 3 ? 4 : n + 1)))

.PHONY: help install demo serve test check format bench models engine triton-env openvino-env ocr-env docs dashboards requirements clean

help: ## what there is to do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: .venv/.service .venv-triton/.ready .venv-ocr/.ready ## everything the service needs

demo: install ## the service on http://127.0.0.1:8000, everything on the CPU, nothing to download
	@.venv/bin/sightline serve

serve: install ## the service as your settings say
	@.venv/bin/sightline serve

triton-env: .venv-triton/.ready ## the embedded Triton's environment

openvino-env: .venv-triton/.openvino ## OpenVINO for installed YOLOs on a CPU

ocr-env: .venv-ocr/.ready ## OCR's environment

models: .venv/.dev .venv-triton/.ready ## YOLO's 80 classes; DETECT=, POSE=, SEGMENT=, OBB=, CLASSIFY= name others, or paths of .pt or .onnx; NAMES=, REMOVE=1
	@.venv/bin/python triton/models.py $(if $(REMOVE),--remove) $(if $(DETECT),--detect "$(DETECT)") \
		$(if $(POSE),--pose "$(POSE)") $(if $(SEGMENT),--segment "$(SEGMENT)") $(if $(OBB),--obb "$(OBB)") \
		$(if $(CLASSIFY),--classify "$(CLASSIFY)") $(if $(IMGSZ),--imgsz "$(IMGSZ)") $(if $(ARCFACE),--arcface "$(ARCFACE)") \
		$(if $(NAMES),--names "$(NAMES)") $(if $(LAYOUT),--layout "$(LAYOUT)") $(if $(AS_IS),--as-is)

engine: .venv/.dev .venv-triton/.ready ## TensorRT plans for this host's GPU, out of what make models installed; PICTURE=, FORCE=1
	@.venv/bin/python triton/engine.py source $(if $(PICTURE),--picture "$(PICTURE)")
	AUTH_TOKENS=$${AUTH_TOKENS:-unused} docker compose run --rm --no-deps triton python3 /srv/triton/engine.py build \
		$(if $(FORCE),--force)

# Programs that the tests talk to, from Debian's packages; elsewhere, or without root, what is missing is skipped by name.
# The tests start servers of their own: what is installed here must not start as a service (policy-rc.d says so).
.venv/.system: .venv/.bootstrap tests/system-packages.txt
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		missing=""; \
		for package in $$(cat tests/system-packages.txt); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
		if [ -n "$$missing" ]; then \
			echo "installing$$missing"; \
			policy=/usr/sbin/policy-rc.d; \
			if [ ! -e $$policy ]; then \
				trap "rm -f $$policy" EXIT; \
				printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; \
			fi; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		fi; \
	fi
	@touch $@

# The Kafka broker that the fleet's tests start. Without Maven a mock serves, and the tests say so.
.venv/.kafka: .venv/.dev .venv/.system tests/kafka/pom.xml
	@.venv/bin/python -m tests.support.kafka
	@touch $@

# TypeScript checks the page's JSDoc types. No npm: said, and skipped at home.
node_modules/.ready: package.json package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund && touch $@; \
	elif [ -n "$${CI:-}" ]; then echo "npm is missing: the page's types cannot be checked"; exit 1; \
	else echo "npm is missing: the page's types are not checked"; fi

check: .venv/.dev node_modules/.ready ## lint, types, directions of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@if [ -x node_modules/.bin/tsc ]; then echo node_modules/.bin/tsc && node_modules/.bin/tsc -p app/web; fi

test: install .venv/.dev .venv/.system .venv/.kafka .venv-triton/.openvino ## every test
	@if command -v node >/dev/null; then node --test tests/web/*.test.mjs; \
	elif [ -n "$${CI:-}" ]; then echo "node is missing: the page's modules cannot be tested"; exit 1; \
	else echo "node is missing: the page's modules are not tested"; fi
	@code=0; echo "pytest -n $(TEST_PROCESSES) --dist loadfile $(ARGS)"; \
	.venv/bin/pytest -n $(TEST_PROCESSES) --dist loadfile $(ARGS) || code=$$?; \
	if [ $$code = 1 ] && [ $(TEST_PROCESSES) != 0 ]; then \
		echo "Some tests failed beside others; they run again, alone."; code=0; \
		.venv/bin/pytest --last-failed --last-failed-no-failures=none --flaky $(ARGS) || code=$$?; \
	fi; exit $$code

format: .venv/.dev ## put the code in order
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: install .venv/.dev ## benchmarks, all or NAME=one; ARGS=--strict fails on a miss
	.venv/bin/python -m benchmarks $(NAME) $(ARGS)

docs: .venv/.dev ## write the README's reference tables from the code
	.venv/bin/python -m tests.docs.tables README.md

dashboards: .venv/.dev ## write Grafana's dashboards from prometheus/dashboards/*.py
	@.venv/bin/python prometheus/dashboards/build.py

requirements: .venv/.bootstrap ## compile requirements/*.in anew
	PATH="$(CURDIR)/.venv/bin:$$PATH" requirements/compile.sh

clean: ## remove the environments and what the service left
	rm -rf .venv .venv-triton .venv-ocr .state
