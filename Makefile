# Every target works on a fresh clone; the later ones install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test soak lint bench gpu clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,s3,slurm,ray,dev]'
	touch $@

demo: install
	rm -rf runs/digits
	$(BIN)/dcdist data make-digits data/digits --overwrite
	$(BIN)/dcdist train configs/deepcluster_digits.yaml

test: install lint
	tests/cluster/install.sh
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses 3 --no-loadscope-reorder

soak: install
	tests/cluster/install.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.kmeans
	$(BIN)/python -m benchmarks.epoch

gpu:
	benchmarks/gpu.sh

clean:
	rm -rf $(VENV) runs
