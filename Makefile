# Every target builds .venv first when it is missing or older than the pins. Settings: make figures MODELS=mini-pythia
RIGHT = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.14 python3.13 python3.12 python3; do $$p -c '$(RIGHT)' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
MODELS ?= mini-pythia,smollm2
SEED ?= 0
STEPS ?= 6144
RUN = .venv/bin/python -m rare_token_neurons

.PHONY: help figures redraw lab book check test check-book suite bench notebooks clean

help:  ## list what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Variables: MODELS=$(MODELS)  SEED=$(SEED)  STEPS=$(STEPS)  PYTHON=$(PYTHON)  TORCH_INDEX=<package index to take torch from>"

figures: .venv/.installed  ## every figure, computed from weights and text, in figures/<model>/
	$(RUN) run --model $(MODELS)

redraw: .venv/.installed  ## every figure, drawn from the tables in data/results, without a model
	$(RUN) run --model $(MODELS) -p recompute never

lab: export JUPYTER_PREFER_ENV_PATH=1
lab: .venv/.installed  ## the notebooks in JupyterLab, ready to run
	.venv/bin/python -m jupyterlab notebooks

book: .venv/.book  ## the notebooks as a site with navigation and search, in build/book/index.html
	.venv/bin/python -m sphinx --quiet --fail-on-warning -b html -d build/doctrees notebooks build/book
	@echo "Open build/book/index.html"

check test: export OMP_NUM_THREADS=1
check: .venv/.installed  ## for who edits: do layout, style, arithmetic and one notebook still hold? (a minute)
	.venv/bin/python -m ruff check --quiet --no-cache src tests
	.venv/bin/python -m pytest --numprocesses 2 tests/test_layout.py tests/test_pages.py tests/test_settings.py tests/statistics tests/curve \
	    tests/test_notebooks.py::test_03_is_drawn_from_the_committed_tables tests/test_notebooks.py::test_reads_well

test: .venv/.book  ## what every test says (8 minutes on two cores)
	.venv/bin/python -m ruff check --quiet --no-cache src tests
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile
	@echo "make test: every test passed."

check-book: book .venv/.browser  ## what Chromium says of every page of the site: errors, and whatever is cut
	.venv/bin/python -m pytest -rs tests/check_book.py

# Memory that is freed stays with the process: giving it back costs a third of the training time in page faults.
suite: export MALLOC_ARENA_MAX=1
suite: export MALLOC_MMAP_MAX_=0
suite: export MALLOC_TRIM_THRESHOLD_=8000000000
suite: .venv/.installed  ## mini-pythia's checkpoints, trained again (80 minutes on 2 cores); SEED=1 STEPS=1536: another one
	$(RUN) suite --seed $(SEED) --steps $(STEPS)

bench: .venv/.installed  ## a table of how fast the kernel is here, beside the usual ways (15 minutes)
	$(RUN) bench

notebooks: .venv/.installed  ## the executed notebooks in notebooks/, with their tables and figures, made anew
	$(RUN) run --in-place

clean:  ## room on the disk: data/cache (tensors, fetched weights) and the site go, tables and figures stay
	rm -rf data/cache build .pytest_cache

.venv/.installed: pyproject.toml requirements.lock
	@$(or $(PYTHON),false) -c '$(RIGHT)' || \
	{ echo "Python 3.11, 3.12, 3.13 or 3.14 is needed; name it with make PYTHON=/path/to/python3.11."; exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),.venv/bin/python -m pip install --quiet --constraint requirements.lock --no-deps --index-url $(TORCH_INDEX) torch)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

.venv/.book .venv/.browser: .venv/.%: .venv/.installed
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[$*]'
	touch $@
