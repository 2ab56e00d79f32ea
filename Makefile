# What one does daily. Every target sets up what it needs. `make help` lists them.
.PHONY: setup dev help run test test-fast fuzz check bench soak advisories lint type docs clean

# Many images set it, and then every process compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE

# Not beside other tests: a head that is started from the command line minds other Rays that start just then.
ALONE = tests/jobs/cluster/test_placement.py

setup: ## .venv, with what running needs
	@infra/setup.sh

dev: ## .venv, with what style, types and tests need
	@infra/setup.sh dev

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup ## the main job on an embedded S3 server and Ray, with the demo model
	.venv/bin/evenhand demo --out out/demo

# Three at a time on two cores: many tests wait, for a store that is away or a node that is lost.
test: ## all tests except the benchmarks'
	@infra/setup.sh test
	.venv/bin/python -m pytest $(ALONE)
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/bench --ignore=$(ALONE)

test-fast: ## the quick tests of time_ops, manifests and jobs
	@infra/setup.sh test
	.venv/bin/python -m pytest -m "not slow" tests/time_ops tests/manifests tests/jobs

fuzz: ## hostile input, some ten thousand inputs; prints what became of them
	@infra/setup.sh test
	EVENHAND_FUZZ=long .venv/bin/python -m pytest --timeout=3600 tests/fuzz

check: lint type test-fast ## before every commit: lint, type and test-fast

bench: ## the benchmarks of docs/benchmarks.md that take minutes
	@infra/setup.sh test
	.venv/bin/python -m pytest tests/bench
	.venv/bin/python -m tests.bench.bench_time_ops
	.venv/bin/python -m tests.bench.bench_generation
	.venv/bin/python -m tests.bench.bench_engine

soak: ## a thousand random faults on real servers, each run compared with a calm one; see docs/operations.md
	@infra/setup.sh test
	.venv/bin/python -m tests.soak --faults 1000 --seed $(or $(SEED),1)

advisories: dev ## known vulnerabilities of the pinned packages, from FILE=, a zip or folder in OSV's format
	.venv/bin/python -m infra.advisories $(FILE)

lint: dev ## style, format, and that every dependency is pinned
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q tests/test_dependencies.py

type: dev ## mypy, strict
	.venv/bin/mypy

docs: dev ## docs/configuration.md from the code
	.venv/bin/python -m jobs.config.reference > docs/configuration.md

clean: ## remove .venv and what tools leave behind
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
