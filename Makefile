# Two commands do everything: `make demo` and `make test`. Each makes or reuses .venv; a fresh machine needs Python 3.10+.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LESSONS := $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test install lab record clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install everything into it

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "timet needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; say which with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing timet and what it needs (torch included: some gigabytes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -U pip "setuptools>=77" wheel
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[lab,dev,pretrain]'
	@touch $@

demo: $(STAMP)  ## time-tune a small backbone on the sample clips and show the gain
	@$(BIN)/python -m timet.train --preset demo

test: $(STAMP)  ## everything that is checked: exports, style, notebooks, tests
	@$(BIN)/python tools/check.py
	@CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	@CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests

lab: $(STAMP)  ## open the lessons in JupyterLab
	@$(BIN)/jupyter lab nbs

record: $(STAMP)  ## run every lesson with a real kernel and keep the outputs
	@$(BIN)/python tools/run_nbs.py $(LESSONS)
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme.py

clean:  ## remove what was built; data and runs stay
	@rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
