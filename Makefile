# make export MODEL=wan2.1-14b-720p GPU=rtx5090   the main job: engines into engines/<model>-<gpu>/
# make test                                        the CPU tests, on every core
# make lint                                        ruff (lint, format) and mypy
# make native                                      the plugin library, for TensorRT programs without Python
# make wheel                                       a wheel with the library in dist/, for machines without a compiler
# make fuzz ARGS='--seconds 3600'                  hostile files for every reader, as long as one asks
# Each makes .venv first where it is missing, or older than pyproject.toml. Another interpreter: make PYTHON=python3.12 …

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed

# The tests build the library where that can be done, and run it.
NATIVE := $(if $(shell command -v g++),native)
BIN := $(abspath $(VENV))/bin
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DPython3_EXECUTABLE=$(BIN)/python -S plugins/native

.PHONY: export test lint fuzz native wheel
.DEFAULT_GOAL := test

# The stamp is touched last, so that an interrupted installation is done again.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[export,video,oracles,dev]'
	touch $@

# Said before anything is installed.
ifneq (,$(filter export,$(MAKECMDGOALS)))
ifeq (,$(and $(MODEL),$(GPU)))
$(error usage: make export MODEL=wan2.1-14b-720p GPU=rtx5090 [ARGS='--checkpoint …'])
endif
endif

export: $(READY)
	$(VENV)/bin/turbotrt export --model '$(MODEL)' --gpu '$(GPU)' $(ARGS)

test: $(READY) $(NATIVE)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

native: $(READY)
	$(CMAKE) -B build/native
	$(BIN)/cmake --build build/native

# With fetched headers, so that it is the same whatever SDK is installed here.
wheel: $(READY)
	$(CMAKE) -B build/wheel/native -DTURBOTRT_FETCH=ON
	$(BIN)/cmake --build build/wheel/native
	rm -rf build/wheel/raw
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel/raw .
	PATH="$(BIN):$$PATH" auditwheel repair --wheel-dir dist build/wheel/raw/*.whl

fuzz: $(READY)
	$(VENV)/bin/python -W ignore -m tests.fuzz $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
