# What a newcomer needs: `make demo` and `make test`. Both set everything up by themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kernel lint drift proto requirements bench soak fuzz clean

PYTHON ?= python3
# Without the tests that move much output through the journal: they know no cgroup, and take minutes in software.
LANE_TESTS ?= -n 2 --dist loadfile $(addprefix --ignore=tests/linux/,test_executor_journal.py test_volumes_copies.py test_volumes_streams.py) tests/linux
BIN := .venv/bin
STAMP := .venv/.set-up
PROTOS := $(wildcard proto/joblet/v1/*.proto)
PROTOC = $(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) --mypy_grpc_out=$(1) $(PROTOS)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## .venv with the programs in .venv/bin

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'joblet needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
		|| { echo 'Python lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## start the services in a temporary directory and run real jobs (root, under 2 minutes)
	@$(BIN)/python -m tools.demo

test: setup lint drift ## all checks and tests of this host (root, half an hour on two cores)
	$(BIN)/pytest -q -n 2 tests/unit tests/contract tests/property
	$(BIN)/pytest -q -n 2 --dist loadfile tests/linux tests/security tests/e2e tests/fault

test-kernel: setup ## the tests of the kernel in a machine with cgroups v2 only and a slow disk (half an hour on two cores)
	@$(BIN)/python -m tools.kernel_lane -- $(LANE_TESTS)

lint: setup ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -p tools
	$(BIN)/lint-imports --no-logo

drift: setup ## are the generated stubs those of the .proto files?
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; \
	$(call PROTOC,$$generated); \
	diff -r -x __init__.py -x __pycache__ -x '*.proto' "$$generated/proto/joblet/v1" proto/joblet/v1 \
		|| { echo 'generated stubs differ from proto/joblet/v1/*.proto: run make proto' >&2; exit 1; }
	@echo 'proto: stubs are up to date'

proto: setup ## generate the stubs beside the .proto files
	$(call PROTOC,.)

requirements: setup ## which lines of the requirements have a passing test
	@$(BIN)/python -m tests.requirements_report

bench: setup ## the comparisons of the architecture's budgets
	@$(BIN)/python -m benchmarks.run

soak: setup ## ten thousand short jobs, and nothing is left of them (root, some minutes; JOBLET_SOAK_JOBS=N)
	$(BIN)/pytest -q -s tests/soak

fuzz: setup ## malformed requests, messages and certificates for ten minutes, with new seeds (JOBLET_TEST_FUZZ_S=N)
	JOBLET_TEST_FUZZ_S=$${JOBLET_TEST_FUZZ_S:-600} $(BIN)/pytest -q --timeout 0 tests/security/test_fuzz_*.py

clean: ## remove what was set up and generated, but no data of a node
	rm -rf .venv .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
