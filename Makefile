# make notebooks   execute the ordered notebooks on the embedded model; figures and an HTML report in build/
# make test        ruff, pytest and the notebooks' stored outputs (nbval)
# make lab         open the notebooks in JupyterLab
# make rows        make the stored rows that the notebooks read and that are missing (about two hours on 2 cores for all)
# make bench       speed and memory against stock generate(), in build/bench.json (about 3 hours on 2 cores; resumable)
# make mutants     plant bugs in the engine, and write which test catches each (about 10 minutes on 2 cores)
# make clean       remove what these targets made

PYTHON ?= python3
BIN := .venv/bin
# A file of tests, or a notebook, on each core.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

# Memory that a prune frees is used again at once; by default glibc hands it back to the system, and a sweep takes far longer.
rows: export MALLOC_MMAP_THRESHOLD_ = 1000000000
rows: export MALLOC_TRIM_THRESHOLD_ = 2000000000

# Each core has a file of tests or a notebook of its own; more threads would wait for each other.
test: export OMP_NUM_THREADS = 1

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: notebooks test lab rows bench mutants clean

notebooks: .venv/installed
	$(BIN)/python notebooks/report.py --out build $(NOTEBOOKS)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest $(PARALLEL) --doctest-modules prunehal tests
	$(BIN)/pytest $(PARALLEL) --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=notebooks/sanitize.cfg $(NOTEBOOKS)

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

rows: .venv/installed
	$(BIN)/python -m prunehal sweep $(wildcard data/grids/*.toml) --store data/results --resume
	test -e data/results/interventions.csv.gz || $(BIN)/python -m prunehal causal
	test -e data/results/evidence.csv.gz || $(BIN)/python -m prunehal evidence
	test -e data/results/polled.csv.gz || $(BIN)/python -m prunehal poll

bench: .venv/installed
	$(BIN)/python -m prunehal bench

mutants: .venv/installed
	$(BIN)/python tests/mutants.py --write

# Made anew only when its inputs change.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "prunehal needs Python 3.11 or newer, found $$($(PYTHON) --version); run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
