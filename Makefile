# Needs python3 (3.11 or newer, with its headers), g++ and make; the rest is installed into .venv.
# `make help` lists the targets.

PYTHON ?= python3
CXX    ?= g++
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

CSRC    := $(sort $(wildcard csrc/*.cpp csrc/tiles/*.cpp))
HEADERS := $(sort $(wildcard csrc/*.h csrc/tiles/*.h csrc/*.inl csrc/tiles/*.inl))
CUDA    := $(sort $(wildcard fastconv/backends/cupy/cuda/*.cuh tests/emulator/*.h tests/emulator/*.cuh))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench asan cuda-check gpu build clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp build/native.stamp  ## train a small network on handwritten digits (sets up everything)
	$(BIN)/fastconv train digits

test: $(VENV)/test.stamp build/native.stamp  ## run the whole test suite (sets up everything)
	$(BIN)/pytest $(PYTEST_ARGS)

RESULTS := build/bench
bench: $(VENV)/bench.stamp build/native.stamp  ## time the kernels, alone and beside the peers that are installed
	$(BIN)/pytest benchmarks
	$(BIN)/fastconv bench --json $(RESULTS)/comparison.json --plot $(RESULTS)/comparison.png $(BENCH_ARGS)

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

WARNINGS := -std=c++17 -Wall -Wextra -Icsrc
OPENMP   := -fopenmp -DFASTCONV_OPENMP=1
PYBIND    = $$($(BIN)/python -m pybind11 --includes | sed 's/-I/-isystem /g')

lint: $(VENV)/lint.stamp build/native.stamp lint-aarch64  ## check style, types, and compiler warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastconv._native
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(HEADERS) $(CUDA)
	$(CXX) $(WARNINGS) -Werror -fsyntax-only $(PYBIND) $(CSRC)
	$(CXX) $(WARNINGS) -Werror -fsyntax-only $(PYBIND) $(OPENMP) $(CSRC)
	$(BIN)/clang-tidy --quiet $(CSRC) -- $(WARNINGS) $(PYBIND)

# What differs on AArch64 is compiled by the cross compiler where there is one, and always by the compiler in clang-tidy.
# That has this machine's headers only: two of glibc's, which take other machines for 32-bit ones, are replaced.
AARCH64_CSRC  := $(filter csrc/tiles/% csrc/select_tiles.cpp,$(CSRC))
AARCH64_CXX   := $(firstword $(shell command -v aarch64-linux-gnu-g++))
HOST_HEADERS   = $$($(CXX) -E -x c++ - -v </dev/null 2>&1 | sed -n '/^\#include </,/^End/p' | grep '^ ' | \
                 grep -v /lib/gcc | sed 's/^ /-isystem /')

.PHONY: lint-aarch64
lint-aarch64: $(VENV)/lint.stamp
ifeq ($(shell uname -s),Linux)
	@mkdir -p build/aarch64/gnu build/aarch64/bits && touch build/aarch64/gnu/stubs.h
	@echo '#define __WORDSIZE 64' > build/aarch64/bits/wordsize.h
	$(BIN)/clang-tidy --quiet $(AARCH64_CSRC) -- $(WARNINGS) --target=aarch64-linux-gnu -isystem build/aarch64 $(HOST_HEADERS)
endif
ifneq ($(AARCH64_CXX),)
	$(AARCH64_CXX) $(WARNINGS) -Werror -fsyntax-only $(filter-out csrc/bindings.cpp,$(CSRC))
endif

# --- sanitizers --------------------------------------------------------------------------------------------------

# libstdc++ is preloaded beside the sanitizer's library, or the first C++ exception would end the interpreter; the
# interpreter's own leaks are not ours to report.
SANITIZED := build/asan
PRELOAD    = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

asan: $(VENV)/test.stamp  ## run the smoke tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer
	FASTCONV_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
	    --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD='$(PRELOAD)' ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    PYTHONPATH=$(SANITIZED)/lib FASTCONV_EXPECT_SANITIZED=1 $(BIN)/pytest -m smoke $(PYTEST_ARGS)

# --- CUDA --------------------------------------------------------------------------------------------------------

# NVIDIA's compiler and CuPy, which need no GPU for this, in an environment of their own.
CUDA_CHECK := build/cuda
CUDA_NEEDS  = $$($(BIN)/python -c 'import tomllib; \
    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cuda"])')

$(CUDA_CHECK)/stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv --clear --without-pip $(CUDA_CHECK)
	$(PIP) --python $(CUDA_CHECK)/bin/python install $(CUDA_NEEDS) nvidia-cuda-nvdisasm
	@touch $@

cuda-check: $(CUDA_CHECK)/stamp  ## compile the CUDA kernels for every architecture and look at what came of it (no GPU)
	PYTHONPATH=. $(CUDA_CHECK)/bin/python tests/cuda_check.py

# With the machine's own Python and what it has: CuPy, and PyTorch where cuDNN is to be compared with.
gpu:  ## check and time the CUDA backend on a GPU
	PYTHONPATH=.:tests $(PYTHON) benchmarks/gpu.py $(GPU_ARGS)
