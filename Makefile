# resumekit's own targets. A lab includes resumekit.mk instead, for run, resume, runs, watch and the watcher's installation.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A lab's own Python is used as it is, nothing is installed into it: make test PYTHON=/path/python
ifeq ($(origin PYTHON), undefined)
  PY := .venv/bin/python
  READY := .venv/.ready
else
  PY := $(PYTHON)
  READY :=
endif

include resumekit.mk

##@ Start here
.PHONY: help
help: ## this list
	@$(resumekit_list) Makefile resumekit.mk
	@printf '\nThe commands themselves are in bin/, each with --help. README.md is the tour.\n'

.PHONY: setup
setup: $(READY) ## make .venv and install what is needed (torch, then the pinned rest)

.venv/.ready: requirements-torch.txt requirements.lock
	@tools/setup.sh

.PHONY: demo
demo: $(READY) ## kill a real training in the middle, resume it, compare it bit for bit
	@$(PY) examples/hrm_arc/demo.py

.PHONY: night
night: $(READY) ## a training goes wrong twice while no person is there, and finishes (two minutes)
	@$(PY) examples/hrm_arc/night.py

##@ Checking
# Side by side on two cores: half of its time a test waits for a process that it has started. A file stays in one worker,
# which makes its runs once; the files come in the order of tests/conftest.py, the longest first.
PARALLEL := -n 5 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: export PYTHONDONTWRITEBYTECODE =
test: $(READY) ## the linters and the tests, but for the long ones; what CI runs
	@$(MAKE) -j 2 lint compiled
	@$(PY) -m pytest -q $(PARALLEL) tests

.PHONY: lint
lint: $(READY) ## ruff, mypy, shellcheck, shfmt
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@if $(PY) -c 'import mypy' 2>/dev/null; then $(PY) -m mypy; else echo 'mypy is not installed: no types are checked'; fi
	@tools/shell_lint.sh $(PY)

# Compiled once, with the assertions rewritten: else each worker does it for itself, five seconds long.
.PHONY: compiled
compiled: $(READY)
	@$(PY) -m pytest --collect-only -q tests >/dev/null

.PHONY: faults
faults: $(READY) ## every case of the fault catalogue and its table, and every long test
	@$(PY) -m pytest -q $(PARALLEL) -m "fault or long" --fault-table tests

.PHONY: frameworks
frameworks: $(READY) ## the recipes in examples/ through kills, torn checkpoints and a NaN; ONLY="lightning dcp_fsdp"
	@tools/frameworks.sh $(PY) $(addprefix --only ,$(ONLY)) $(addprefix --minutes ,$(MINUTES))

.PHONY: cluster
cluster: $(READY) ## a Slurm of two nodes on this machine, and what a run has to survive there; ONLY="requeue hang"
	@$(PY) -m reliability.cluster $(addprefix --scenario ,$(ONLY))

.PHONY: cluster-quick
cluster-quick: $(READY) ## the part of it that CI runs, at most five minutes
	@$(PY) -m reliability.cluster --quick --minutes 4

.PHONY: campaign
campaign: $(READY) ## the long versions of the sampled tests (some three hours)
	@$(PY) -m reliability.campaign_checkpoints --kills 300 --mutants 2000 --seed 1
	@$(MAKE) background-kills
	@$(PY) -m reliability.campaign_example_cuts --cuts 60 --seed 1
	@$(PY) -m reliability.campaign_healthy_resumes --count 200 --seed 1
	@$(PY) -m reliability.campaign_saves --seed 1
	@$(PY) -m reliability.campaign_traces --seed 8
	@$(PY) -m reliability.campaign_fuzz --seed 1
	@$(PY) -m reliability.campaign_kills --kills 1000 --seed 2
	@$(PY) -m reliability.campaign_kills --kills 300 --seed 4 --wrapper
	@$(PY) -m reliability.campaign_stops --stops 100 --seed 2
	@$(PY) -m reliability.campaign_storm --minutes 20 --seed 1
	@$(PY) -m reliability.campaign_ranks --cuts 40 --seed 1
	@$(PY) -m reliability.campaign_sharded --kills 300 --mutants 2000 --seed 1
	@$(PY) -m reliability.campaign_protections
	@$(PY) -m pytest -q $(PARALLEL) -m campaign tests

.PHONY: ranks
ranks: $(READY) ## 40 cuts of a DDP training of two ranks, each resumed and compared bit for bit (two minutes)
	@$(PY) -m reliability.campaign_ranks --cuts 40 --seed 1

.PHONY: gpu
gpu: $(READY) ## what touches a GPU, cut and resumed on one bit for bit; says so where there is none
	@$(PY) -m reliability.gpu_checks

.PHONY: background-kills
background-kills: $(READY) ## 300 kills while a save is written beside the training (a minute)
	@$(PY) -m reliability.campaign_checkpoints --kills 300 --background --mutants 0 --damaged 0 --seed 1

.PHONY: sharded
sharded: $(READY) ## 300 kills in sharded saves of two ranks, 2,000 changed folders (six minutes)
	@$(PY) -m reliability.campaign_sharded --kills 300 --mutants 2000 --seed 1

.PHONY: bench
bench: $(READY) ## ratios side by side with peers, an hour; ROWS="1 3" for some of them
	@$(PY) benchmarks/bench.py $(ROWS)

.PHONY: approve
approve: $(READY) ## take today's help texts and table of effects as the right ones
	@RESUMEKIT_APPROVE=1 $(PY) -m pytest -q tests/test_help.py
	@$(PY) tools/policy_table.py --write

##@ Housekeeping
.PHONY: format
format: $(READY) ## ruff format, shfmt, the form of the schemas
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@tools/shell_lint.sh $(PY) --write
	@$(PY) tools/schema_format.py --write

.PHONY: lock
lock: ## requirements.lock anew from requirements.in (needs uv)
	@tools/lock.sh
