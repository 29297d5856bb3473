# Needs python3 (3.11 or newer, with its headers), g++ and make; the rest is installed into .venv.
# `make help` lists the targets.

PYTHON ?= python3
CXX    ?= g++
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

CSRC    := $(sort $(wildcard csrc/*.cpp csrc/tiles/*.cpp))
HEADERS := $(sort $(wildcard csrc/*.h csrc/tiles/*.h csrc/*.inl csrc/tiles/*.inl))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench asan build clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp build/native.stamp  ## train a small network on handwritten digits (sets up everything)
	$(BIN)/fastconv train digits

test: $(VENV)/test.stamp build/native.stamp  ## run the whole test suite (sets up everything)
	$(BIN)/pytest $(PYTEST_ARGS)

bench: $(VENV)/bench.stamp build/native.stamp  ## time the kernels, alone and beside the peers that are installed
	$(BIN)/pytest benchmarks
	$(BIN)/python benchmarks/compare.py

build: $(VENV)/test.stamp  ## build the source distribution and a wheel into dist/
	$(BIN)/python -m build

clean:  ## remove what was built (.venv stays)
	rm -rf build dist *.egg-info fastconv/_native.*.so

# --- the environment ---------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("fastconv needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + \
	    ": try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import os, sys, sysconfig; header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	    sys.exit(None if os.path.exists(header) else header + " is missing: on Debian, apt install python3-dev")'
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import pip, venv' 2>/dev/null; then \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	else \
	    echo '$(PYTHON) cannot create a virtual environment with pip: on Debian, apt install python3-venv' >&2; exit 1; \
	fi

# What setup.py imports: with it in place, the module is built here, file by file, and not in a throw-away environment.
$(VENV)/setup.stamp: pyproject.toml | $(BIN)/python
	$(PIP) install 'setuptools>=77' 'pybind11>=2.13'
	@touch $@

build/native.stamp: $(CSRC) $(HEADERS) setup.py $(VENV)/setup.stamp
	$(BIN)/python setup.py build_ext --inplace
	@mkdir -p build && touch $@
ifeq ($(wildcard fastconv/_native.*.so),)
.PHONY: build/native.stamp
endif

EXTRAS_demo  := train,numba
EXTRAS_test  := test
EXTRAS_lint  := test,lint
EXTRAS_bench := bench
$(VENV)/%.stamp: pyproject.toml setup.py | build/native.stamp
	$(PIP) install --no-build-isolation --editable '.[$(EXTRAS_$*)]'
	@touch $@

# --- lint --------------------------------------------------------------------------------------------------------

WARNINGS := -std=c++17 -Wall -Wextra -Werror -fsyntax-only -Icsrc
AARCH64  := $(firstword $(shell command -v aarch64-linux-gnu-g++))

lint: $(VENV)/lint.stamp build/native.stamp  ## check style, types and compiler warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastconv._native
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(HEADERS)
	$(CXX) $(WARNINGS) $$($(BIN)/python -m pybind11 --includes) $(CSRC)
	$(CXX) $(WARNINGS) $$($(BIN)/python -m pybind11 --includes) -fopenmp -DFASTCONV_OPENMP=1 $(CSRC)
ifneq ($(AARCH64),)
	$(AARCH64) $(WARNINGS) $(filter-out csrc/bindings.cpp,$(CSRC))
else
	@echo 'lint: no aarch64-linux-gnu-g++ here, so the NEON tiles were not compiled'
endif

# --- sanitizers --------------------------------------------------------------------------------------------------

# libstdc++ is preloaded beside the sanitizer's library, or the first C++ exception would end the interpreter; the
# interpreter's own leaks are not ours to report.
SANITIZED := build/asan
PRELOAD    = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

asan: $(VENV)/test.stamp  ## run the smoke tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer
	FASTCONV_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
	    --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD='$(PRELOAD)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    PYTHONPATH=$(SANITIZED)/lib FASTCONV_EXPECT_SANITIZED=1 $(BIN)/pytest -m smoke $(PYTEST_ARGS)
