# demo and test are all a newcomer needs; each makes .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test faults lint bench lock clean

demo: $(READY)
	$(BIN)/cgd demo --out demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# A hundred killed processes, a thousand corruptions and ten killed nodes, counted; `make test` tries a few of each.
faults: $(READY)
	CGD_FAULTS=full $(BIN)/python -m pytest -n 0 -s tests/faults/test_many_kills.py tests/faults/test_corruptions.py \
	  tests/faults/test_cluster.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/whitening.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/evaluate_1m.py
	$(BIN)/python benchmarks/indexes.py
	$(BIN)/python benchmarks/epoch_targets.py

# Google's client is left out: nothing here runs it, and it is large.
EXTRAS := $(addprefix --extra ,s3 parquet ray video tensorboard onnx test lint bench)

# Every package pinned for every platform, from the bounds in pyproject.toml.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	.venv-lock/bin/uv pip compile --universal --python-version 3.11 $(EXTRAS) --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock
	rm -rf .venv-lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cgd needs Python 3.11 or newer; name one with PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv demo runs features.zarr .cgd
