# The two commands of the README are `make serve` and `make test`.
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 30000
# PyTorch's CPU wheels, for machines without an NVIDIA GPU: PyPI's Linux wheels bring gigabytes of CUDA along.
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help serve test check format test-gpu test-slow parity docs size wheel install dev clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.installed  ## install what is needed, then serve the demo model
	@echo
	@echo 'When the server is ready, try:'
	@echo '  curl http://127.0.0.1:$(PORT)/generate -H "Content-Type: application/json" \'
	@echo "    -d '{\"text\": \"The capital of France is\", \"sampling_params\": {\"max_new_tokens\": 16, \"temperature\": 0}}'"
	@echo
	@$(PY) -m sglang.launch_server --port $(PORT)

test: $(VENV)/.dev  ## everything that needs no GPU; what Hypothesis draws is the same each time (not so in test-slow)
	$(PY) -m pytest -n auto -m "not gpu and not slow" --hypothesis-profile=ci -q test

test-gpu: $(VENV)/.dev  ## what needs a CUDA device
	$(PY) -m pytest -m gpu -q test

test-slow: $(VENV)/.dev  ## builds and installs the wheel in a clean environment, and other long tests
	$(PY) -m pytest -m slow -q test

check: $(VENV)/.dev  ## format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: $(VENV)/.dev  ## apply formatting and safe fixes
	$(VENV)/bin/ruff check --fix -q . ; $(VENV)/bin/ruff format .

parity: $(VENV)/.dev  ## every model family against its reference; writes docs/models.md
	$(PY) scripts/parity.py

docs: $(VENV)/.dev  ## renew the pages that are made of code: server arguments, families
	$(PY) scripts/docs.py

size:  ## code lines per room (no blanks, comments, docstrings)
	@$(PY) scripts/size.py

wheel: $(VENV)/.dev  ## build dist/*.whl
	$(PY) -m build --wheel python -o dist

install: $(VENV)/.installed  ## the environment in .venv
dev: $(VENV)/.dev  ## the environment with what tests and checks need

$(VENV)/bin/python:
	python3 -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python python/pyproject.toml constraints.txt
	@if ! $(PY) -c "import torch" 2>/dev/null; then \
	  index=""; \
	  if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 \
	     && curl -sfIm 3 $(CPU_INDEX)/torch/ >/dev/null 2>&1; then index="--index-url $(CPU_INDEX)"; fi; \
	  echo "installing torch (once) ..."; \
	  $(PY) -m pip install -q $$index -c constraints.txt torch; fi
	@echo "installing sglang ..."
	@$(PY) -m pip install -q -c constraints.txt -e "python[all]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what tests and checks need ..."
	@$(PY) -m pip install -q -c constraints.txt -e "python[dev]"
	@touch $@

clean:
	rm -rf $(VENV) dist python/dist python/build python/*.egg-info
