# make export MODEL=wan2.1-14b-720p GPU=rtx5090   the main job: engines into engines/<model>-<gpu>/
# make test                                        the CPU tests, on every core
# make lint                                        ruff (lint, format) and mypy
# make native                                      the plugin library, for TensorRT programs without Python
# make fuzz ARGS='--seconds 3600'                  hostile files for every reader, as long as one asks
# Each makes .venv first where it is missing, or older than pyproject.toml. Another interpreter: make PYTHON=python3.12 …

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed

# The tests build the library where that can be done, and run it.
NATIVE := $(if $(and $(shell command -v g++),$(shell command -v cmake)),native)

.PHONY: export test lint fuzz native
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
	cmake -S plugins/native -B build/native -DPython3_EXECUTABLE=$(abspath $(VENV))/bin/python
	cmake --build build/native --parallel

fuzz: $(READY)
	$(VENV)/bin/python -W ignore -m tests.fuzz $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
