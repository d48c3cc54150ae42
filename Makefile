# Every target sets up what it needs; the first one takes minutes, later ones start at once.
PYTHON_BIN := .venv/bin
# A run starts dozens of Python processes; without bytecode each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: setup demo test check bench

setup:
	@./tools/setup.sh

demo: setup  ## The whole recipe on this machine; SEED=1 for another world, ARGS="--set prompt.format=think" for a key.
	@$(PYTHON_BIN)/still-ray demo $(if $(SEED),--seed $(SEED)) $(ARGS)

test: setup  ## Unit tests, two at a time; then, one after another, what takes every core.
	@status=0; \
	$(PYTHON_BIN)/python -m pytest tests/unit -n 2 --dist loadfile || status=$$?; \
	$(PYTHON_BIN)/python -m pytest --ignore=tests/unit || status=$$?; \
	exit $$status

check: setup  ## Format, lint, strict types, import contracts.
	@$(PYTHON_BIN)/ruff format --check .
	@$(PYTHON_BIN)/ruff check .
	@$(PYTHON_BIN)/mypy
	@$(PYTHON_BIN)/lint-imports --no-cache

bench: setup  ## docs/results/performance.md: every figure is a ratio against a baseline of the same run.
	@$(PYTHON_BIN)/python -m benchmarks.page
