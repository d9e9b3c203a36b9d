# The front door. Every target creates .venv if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Threads that spin while they wait make two busy cores many times slower.
export OMP_WAIT_POLICY ?= PASSIVE

DATA ?=
MINUTES ?= 1
WORKERS ?= 2

.PHONY: install demo test test-all test-slow-slice fuzz lint types cli-page bench gpu clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Reconstruct a photo with the shipped weights, fine-tune them, judge both; everything lies in demo/.
demo: $(READY)
	$(BIN)/python -m dkpn.demo --out demo --minutes $(MINUTES) $(if $(DATA),--data "$(DATA)")

# Everything that is neither slow nor needs a GPU: the CPU path, then the kernels in the interpreter.
test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not gpu and not slow and not interpreted"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "interpreted and not gpu and not slow" tests/kpnops

test-all: test
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and not gpu and not interpreted"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and interpreted and not gpu" tests/kpnops

# One of SLICES parts of the slow tests (a prime, so that a part mixes all kinds); it changes from day to day.
SLICES ?= 73
SLICE ?= $(shell echo $$(( $$(date +%s) / 86400 % $(SLICES) )))
test-slow-slice: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and not gpu and not interpreted" --slice $(SLICE)/$(SLICES) tests

# Random problems from the whole contract, other ones each time: at most an hour on 2 cores.
# FUZZ_SEED repeats a run; a crash of the process shows as a test that failed.
FUZZ_SEED ?= $(shell date +%s)
FUZZ_EXAMPLES ?= 10000
FUZZ_INTERPRETED ?= 300
FUZZ = FUZZ_SEED=$(FUZZ_SEED) FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) FUZZ_INTERPRETED=$(FUZZ_INTERPRETED) \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/kpnops/test_fuzz.py
fuzz: FUZZ_SEED := $(FUZZ_SEED)
fuzz: $(READY)
	@echo "FUZZ_SEED=$(FUZZ_SEED)"
	$(FUZZ) -m "not interpreted and not gpu"
	TRITON_INTERPRET=1 $(FUZZ) -m "interpreted and not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

# The page of the command line, from its help.
cli-page: $(READY)
	$(BIN)/python -m dkpn.commands.manual docs/cli.md

# Where nothing else runs, threads that spin are faster: eager PyTorch takes up to half the time.
bench: $(READY)
	env -u OMP_WAIT_POLICY $(BIN)/python -m pytest bench/

# On a machine with a GPU: its tests, then the benchmark matrix, into bench/results/<device>.json with
# a report and plots. Installs nothing and uses the python3 at hand. Each call takes at most
# GPU_MINUTES and goes on where the last one stopped; PART names one part (tests, goals, ...),
# GPU_FLAGS any option of `python -m bench.gpu`, COMMIT the commit where there is no git.
GPU_MINUTES ?= 9
PART ?=
GPU_FLAGS ?=
gpu:
	PYTHONPATH=. $(if $(COMMIT),COMMIT=$(COMMIT)) $(PYTHON) -m bench.gpu --minutes $(GPU_MINUTES) \
		$(if $(PART),--part $(PART)) $(GPU_FLAGS) || [ $$? -eq 3 ]  # 3: some is left to do

clean:
	rm -rf $(VENV) demo build dist *.egg-info
