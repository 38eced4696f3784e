# The verbs of this project; each sets up what it needs by itself.
PYTHON ?= python3
BIN := .venv/bin
SOURCES ?=
TEXT ?=
NANOGPT ?=
CONVERSATIONS ?=

.PHONY: help setup setup-dev demo train test test-slow check format bench clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: .venv/.setup ## .venv with gpt2 in it

setup-dev: .venv/.setup-dev ## the same with the test tools

demo: .venv/.setup ## train on Python's own manuals, tune on their questions and answers, ask it something
	$(BIN)/gpt2 train python-docs --config configs/demo.toml
	@echo
	$(BIN)/gpt2 tune "$$(ls -td runs/demo*/ | head -n 1)" python-docs --config configs/demo-tune.toml
	@echo
	@printf '\n> What does math.sqrt do?\n'
	@echo "What does math.sqrt do?" | $(BIN)/gpt2 chat "$$(ls -td runs/demo*-tuned*/ | head -n 1)" --temperature 0 --max-tokens 60

train: .venv/.setup ## train on data/, or on SOURCES="a.txt b.csv"
	$(BIN)/gpt2 train $(SOURCES)

test: .venv/.setup-dev ## all tests
	$(BIN)/python -m pytest -n 4 --dist worksteal

test-slow: .venv/.setup-dev ## every crash point, 200 kills, 100 small disks, 1,000 prompts: many minutes
	$(BIN)/python -m pytest -n 2 -m slow -rP

check: .venv/.setup-dev ## format, lint, types, layers, the commands in the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_documentation.py

format: .venv/.setup-dev ## mend what a program can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.setup-dev ## measure against peers: benchmarks/RESULTS.md; TEXT=tinyshakespeare.txt NANOGPT=CHECKOUT CONVERSATIONS=instructions.csv
	$(BIN)/python benchmarks/time_to_loss.py $(TEXT) $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/minutes.py $(TEXT) $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/step.py $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python -m pip install --disable-pip-version-check --quiet ctranslate2 llama-cpp-python gguf
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/drafting.py
	$(BIN)/python benchmarks/serving.py --precision fp32 fp16 bf16 int8 --record
	$(BIN)/python benchmarks/soak.py --minutes 30 --record
	$(BIN)/python benchmarks/page.py
	$(if $(CONVERSATIONS),$(BIN)/python benchmarks/tuning.py runs/demo $(CONVERSATIONS))

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

.venv/.setup: .venv/bin/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.setup-dev: .venv/.setup requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@
