# Every target builds .venv first when it is missing or older than the pins. Settings: make figures MODELS=mini-pythia
RIGHT = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.14 python3.13 python3.12 python3; do $$p -c '$(RIGHT)' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
MODELS ?= mini-pythia,smollm2
SEED ?= 0
STEPS ?= 6144
RUN = .venv/bin/python -m rare_token_neurons

.PHONY: help figures redraw notebooks lab suite bench check test clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Variables: MODELS=$(MODELS)  SEED=$(SEED)  STEPS=$(STEPS)  PYTHON=$(PYTHON)  TORCH_INDEX=<package index to take torch from>"

figures: .venv/.installed  ## run every notebook on the embedded models, two at a time; figures/<model>/ is the result
	$(RUN) run --model $(MODELS)

redraw: .venv/.installed  ## draw every figure again from the tables in data/results, without a model
	$(RUN) run --model $(MODELS) -p recompute never

notebooks: .venv/.installed  ## refresh the executed notebooks in notebooks/
	$(RUN) run --in-place

lab: export JUPYTER_PREFER_ENV_PATH=1
lab: .venv/.installed  ## open the notebooks in JupyterLab, with the kernel of .venv
	.venv/bin/python -m jupyterlab notebooks

# Memory that is freed stays with the process: giving it back costs a third of the training time in page faults.
suite: export MALLOC_ARENA_MAX=1
suite: export MALLOC_MMAP_MAX_=0
suite: export MALLOC_TRIM_THRESHOLD_=8000000000
suite: .venv/.installed  ## train mini-pythia's checkpoints again (about 80 minutes on 2 cores); SEED=1 STEPS=1536 trains another one
	$(RUN) suite --seed $(SEED) --steps $(STEPS)

bench: .venv/.installed  ## time the ablation of every neuron, beside one forward pass and the usual ways (about 15 minutes)
	$(RUN) bench

check test: export OMP_NUM_THREADS=1
check: .venv/.installed  ## for who edits: layout, style, arithmetic, one notebook (a minute)
	.venv/bin/python -m ruff check --quiet --no-cache src tests
	.venv/bin/python -m pytest --numprocesses 2 tests/test_layout.py tests/test_settings.py tests/statistics tests/curve \
	    tests/test_notebooks.py::test_03_is_drawn_from_the_committed_tables tests/test_notebooks.py::test_reads_well

test: .venv/.installed  ## run all tests, a file at a time on each of two cores
	.venv/bin/python -m ruff check --quiet --no-cache src tests
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile
	@echo "make test: every test passed."

clean:  ## empty data/cache (run records, cached tensors, weights that were fetched); tables and figures stay
	rm -rf data/cache .pytest_cache

.venv/.installed: pyproject.toml requirements.lock
	@$(or $(PYTHON),false) -c '$(RIGHT)' || \
	{ echo "Python 3.11, 3.12, 3.13 or 3.14 is needed; name it with make PYTHON=/path/to/python3.11."; exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),.venv/bin/python -m pip install --quiet --constraint requirements.lock --no-deps --index-url $(TORCH_INDEX) torch)
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@
