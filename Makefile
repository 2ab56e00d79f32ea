# What one does daily. Every target sets up what it needs.
.PHONY: setup run test test-fast bench lint type clean

setup:
	@infra/setup.sh

run: setup
	.venv/bin/evenhand demo --out out/demo

test:
	@infra/setup.sh test
	.venv/bin/python -m pytest -m alone tests/jobs
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone" --ignore=tests/bench

test-fast:
	@infra/setup.sh test
	.venv/bin/python -m pytest -m "not slow" tests/time_ops tests/manifests tests/jobs

bench:
	@infra/setup.sh test
	.venv/bin/python -m pytest tests/bench
	.venv/bin/python -m tests.bench.bench_time_ops
	.venv/bin/python -m tests.bench.bench_generation
	.venv/bin/python -m tests.bench.bench_engine

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q tests/test_dependencies.py

type: setup
	.venv/bin/mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
