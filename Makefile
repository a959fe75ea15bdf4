# make notebooks   execute the ordered notebooks on the embedded model; figures and an HTML report in build/
# make test        ruff, pytest and the notebooks' stored outputs (nbval)
# make lab         open the notebooks in JupyterLab
# make compat      the whole suite in two environments of their own, with the lowest and with the newest versions that pyproject.toml
#                  admits; all cases of every model family (about 45 minutes on 2 cores; in build/compat)
# make wheel       the wheel in dist/, installed in a bare environment of its own, in which README's code runs outside of the checkout
# make audit       known vulnerabilities of what constraints.txt pins; it fails where the advisories are out of reach
# make rows        make the stored rows that the notebooks read and that are missing (about two hours on 2 cores for all)
# make bench       speed and memory against stock generate(), in build/bench.json (about 3 hours on 2 cores; resumable)
# make mutants     plant bugs in the engine, and write which test catches each (about 10 minutes on 2 cores)
# make chaos       kill sweeps, runs and trainings at random moments, and compare what they give in the end (30 kills; about 10 minutes)
# make clean       remove what these targets made

PYTHON ?= python3
# make test VENV=build/compat/lowest runs the same with other versions.
VENV ?= .venv
BIN := $(VENV)/bin
# A file of tests, or a notebook, on each core.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile
SUITE := $(PARALLEL) --doctest-modules prunehal tests
# Stored outputs are compared; with the lowest versions, whose tables are printed otherwise, the cells have to run.
NBVAL := $(if $(findstring lowest,$(VENV)),--nbval-lax,--nbval)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

# Memory that a prune frees is used again at once; by default glibc hands it back to the system, and a sweep takes far longer.
rows: export MALLOC_MMAP_THRESHOLD_ = 1000000000
rows: export MALLOC_TRIM_THRESHOLD_ = 2000000000

# Each core has a file of tests or a notebook of its own; more threads would wait for each other.
test compat-%: export OMP_NUM_THREADS = 1
# Families that are new in the table run four cases in make test.
compat-%: export PRUNEHAL_ALL_CASES = 1

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: notebooks test compat compat-lowest compat-newest wheel audit lab rows bench mutants chaos clean

notebooks: $(VENV)/installed
	$(BIN)/python notebooks/report.py --out build $(NOTEBOOKS)

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest $(SUITE)
	$(BIN)/pytest $(PARALLEL) $(NBVAL) --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=notebooks/sanitize.cfg $(NOTEBOOKS)

compat: compat-lowest compat-newest

compat-lowest compat-newest: compat-%: build/compat/%/installed
	build/compat/$*/bin/pytest $(SUITE)

wheel: $(VENV)/installed
	rm -rf dist build/bare
	$(BIN)/python -m build --wheel --no-isolation
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build/bare && bin/python -m prunehal --help >/dev/null && bin/python -I $(CURDIR)/tests/readme_code.py $(CURDIR)/README.md

# --strict: without it a package whose advisories could not be read counts as one that has none.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

lab: $(VENV)/installed
	$(BIN)/jupyter lab notebooks

rows: $(VENV)/installed
	$(BIN)/python -m prunehal sweep $(wildcard data/grids/*.toml) --store data/results --resume
	test -e data/results/interventions.csv.gz || $(BIN)/python -m prunehal causal
	test -e data/results/evidence.csv.gz || $(BIN)/python -m prunehal evidence

bench: $(VENV)/installed
	$(BIN)/python -m prunehal bench

mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py --write

# Made anew only when its inputs change.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "prunehal needs Python 3.11 or newer, found $$($(PYTHON) --version); run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(@D)
endef

.venv/installed: pyproject.toml constraints.txt
	$(environment)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

build/compat/%/installed: pyproject.toml constraints.txt tests/compat.py
	$(environment)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(@D)/bin/python tests/compat.py $* >$(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  -c $(@D)/constraints.txt -e '.[dev]'
	@touch $@

chaos: $(VENV)/installed
	$(BIN)/python tests/chaos.py --kills 30

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
