# What one runs by hand, and what .ci/run runs. `make help` lists it. On a bare Debian 12, `make demo` and `make test`
# set up everything themselves: Debian packages (scripts/apt-packages), a virtual environment with locked packages
# (scripts/make-venv), the wheel (scripts/build-wheel). The tests run against that wheel, never against the sources.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

ifneq ($(words $(CURDIR)),1)
$(error make cannot work in a folder with a space in its name: "$(CURDIR)")
endif

# Not the first python3 on PATH: a private build in somebody's home cannot be run by other users, and tests are such users.
PYTHON ?= /usr/bin/python3
PREFIX ?= /opt/secretfs
# Set to skip apt, where the packages are there in another way.
NO_APT ?=
# The native parts must build here; for an installation that may do without: SECRETFS_NATIVE=auto.
export SECRETFS_NATIVE ?= require
# More options for pytest, for example: make test T="-k cgroup -x"
T ?=
# What the tests' results are called, in $(STATE).
REPORT ?= report.xml

# root's home is closed to other users too: root's environment lies where everybody can execute it.
ifeq ($(shell id -u),0)
VENV := /opt/secretfs-dev/$(firstword $(shell printf %s '$(CURDIR)' | cksum))
else
VENV := $(CURDIR)/.venv
endif
STATE := $(VENV)/state
RUN := $(VENV)/bin/python -I
APT := $(if $(NO_APT),@true,@scripts/apt-packages --record $(STATE)/packages)
RECORD := $(STATE)/packages

# A folder changes when a file in it is removed.
SOURCES := pyproject.toml README.md LICENSE $(wildcard setup.py) $(shell find secretfs kernelbackend emulator \
	-name __pycache__ -prune -o -name '*.egg-info' -prune -o -print)

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: apt-demo $(STATE)/installed  ## mount, serve TLS with nginx from a key in it, show what root cannot read, unmount
	@PATH="$(VENV)/bin:$$PATH" $(RUN) examples/demo.py --installed $(RECORD)

.PHONY: test
test: apt-test $(STATE)/installed  ## the tests, against the installed wheel (options for pytest: T="-k area")
	@echo "== testing"
	@rm -f $(STATE)/$(REPORT)
	@top=$$(scripts/copy-sources --if-closed $(STATE)/sources); \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; cd "$$folder"; \
	$(RUN) -B -m pytest "$$top/tests" -c "$$top/pyproject.toml" --rootdir="$$top" \
	    -o cache_dir=$(STATE)/pytest-cache --junit-xml=$(STATE)/$(REPORT) $(T)

# Here comes what takes Go, Rust, a browser or a virtual machine: test-go, test-machines, ... each with its apt set.
.PHONY: test-long
test-long:  ## the tests that take minutes: real mounts with sanitizers and without a shim, a minute of hammering, 100,000 files
	@$(MAKE) --no-print-directory test REPORT=report-long.xml T="-m long $(T)"

.PHONY: test-languages
test-languages: apt-languages  ## programs in Go and Rust under `secretfs run`, with Debian's compilers
	@$(MAKE) --no-print-directory test REPORT=report-languages.xml T="-m languages $(T)"

.PHONY: test-browser
test-browser: apt-browser $(STATE)/installed  ## the audit's page in Chromium
	@$(MAKE) --no-print-directory test REPORT=report-browser.xml T="-m long -k test_t8_audit_page $(T)"

.PHONY: lab
lab: apt-lab $(STATE)/installed  ## boot packaged kernels in QEMU and search all their memory (options: T=...)
	@echo "== booting kernels"
	@rm -f $(STATE)/report-lab.xml
	@top=$$(scripts/copy-sources --if-closed $(STATE)/sources); \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; cd "$$folder"; \
	$(RUN) -B -m pytest "$$top/tests/lab" -c "$$top/pyproject.toml" --rootdir="$$top" \
	    -o cache_dir=$(STATE)/pytest-cache --junit-xml=$(STATE)/report-lab.xml $(T)

.PHONY: lab-docs
lab-docs: apt-lab $(STATE)/installed  ## the same guests, and what was found in their memory into docs/lab.md
	@$(VENV)/bin/python -EsB tests/lab/report.py docs/lab.md

# More options for benchmarks/run.py, for example: make bench B="--parts secrets --nice -20"
B ?=

.PHONY: bench
bench: apt-bench $(STATE)/installed $(STATE)/peers  ## benchmarks, about twenty minutes; prints tables (options: B="--parts secrets")
	@PATH="$(VENV)/bin:$$PATH" $(VENV)/bin/python -EsB benchmarks/run.py $(B)

# What the mount is compared with, beside what Debian has.
$(STATE)/peers: $(STATE)/installed
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check mfusepy==3.1.1
	@touch $@

.PHONY: test-all
test-all: test test-long test-languages test-browser lab lint  ## everything: the tests, the kernels, and lint

.PHONY: lint
lint: apt-lint $(STATE)/requirements  ## ruff, mypy --strict, shellcheck
	@echo "== ruff, mypy, shellcheck"
	@export RUFF_CACHE_DIR=$(STATE)/ruff MYPY_CACHE_DIR=$(STATE)/mypy; \
	$(VENV)/bin/ruff check --quiet .; \
	$(VENV)/bin/ruff format --quiet --check . || { $(VENV)/bin/ruff format --diff --quiet . ; exit 1; }; \
	$(VENV)/bin/mypy; \
	$(VENV)/bin/mypy --python-version 3.11 $(wildcard scripts/*.py examples/demo*.py) tests/box.py $(filter-out tests/lab/test_% tests/lab/conftest.py tests/lab/guest_%,$(wildcard tests/lab/*.py))
	@shellcheck .ci/run tests/lab/init $(shell grep -lE '^#!.*\b(ba)?sh\b' scripts/*)

.PHONY: check-skips
check-skips:  ## after the tests: was anything skipped that may not be?
	@$(PYTHON) -I scripts/check-skips.py tests/allowed-skips.txt $(STATE)/report*.xml

.PHONY: wheel
wheel: apt-base $(STATE)/installed  ## build the wheel into dist/
	@mkdir -p dist && rm -f dist/*.whl && cp $(STATE)/dist/*.whl dist/ && ls dist/*.whl

.PHONY: install
install: apt-base  ## install into /opt/secretfs (PREFIX=...), the command into /usr/local/bin; as root
	@scripts/install $(PYTHON) $(PREFIX)

.PHONY: uninstall
uninstall:  ## take away what `make install` put there; as root
	@scripts/install --remove $(PREFIX)

.PHONY: lock
lock: apt-base  ## renew the lock files from pyproject.toml (newest versions: U=--upgrade)
	@test -x $(STATE)/pip-tools/bin/pip-compile || { $(PYTHON) -m venv $(STATE)/pip-tools && \
	    $(STATE)/pip-tools/bin/pip install --quiet pip-tools; }
	@$(STATE)/pip-tools/bin/python -I scripts/lock.py $(STATE)/pip-tools/bin/pip-compile $(U)

.PHONY: clean
clean:  ## remove everything that make has built (not Debian packages)
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# What the targets above stand on.

.PHONY: apt-base apt-demo apt-test apt-languages apt-browser apt-lab apt-bench apt-lint
apt-base:
	$(APT) base
apt-demo:
	$(APT) base demo
apt-test:
	$(APT) base test
apt-languages:
	$(APT) base languages
apt-browser:
	$(APT) base chromium
apt-lab:
	$(APT) base lab
apt-bench:
	$(APT) base bench
apt-lint:
	$(APT) base lint

$(STATE)/requirements: requirements-dev.txt requirements-build.txt scripts/make-venv | apt-base
	@echo "== making a virtual environment in $(VENV); the first time this takes a minute or two"
	@scripts/make-venv $(PYTHON) $(VENV) requirements-dev.txt
	@mkdir -p $(STATE) && touch $@

$(STATE)/installed: $(STATE)/requirements $(SOURCES) scripts/build-wheel
	@echo "== building and installing the wheel"
	@scripts/build-wheel $(VENV)/bin/python $(STATE)/dist
	@$(VENV)/bin/pip install --quiet --no-deps --force-reinstall $(STATE)/dist/*.whl
	@touch $@
