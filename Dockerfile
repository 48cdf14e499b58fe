# peft-flow with all that it needs: servers, worker and commands. docs/operations.md says how it is built and run.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# torch of the default index brings CUDA on x86-64. For a CPU, which needs gigabytes less, name the index of PyTorch's CPU
# wheels; pip takes both variables from its environment
ARG PIP_EXTRA_INDEX_URL
ARG PIP_INDEX_URL
# more of pyproject.toml's optional packages, for example "postgresql quantized onnx"
ARG EXTRAS="postgresql"

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# all that is kept lies in two folders: runs and records, and downloaded models
RUN useradd --uid 10001 --create-home peft \
    && install --directory --owner peft --group peft /srv/peft-flow/mlruns /home/peft/.cache
WORKDIR /srv/peft-flow

# a layer of its own: packages change less often than our code
COPY pyproject.toml constraints.txt ./
RUN python -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *(one for extra in sys.argv[1:] for one in project["optional-dependencies"][extra]), sep="\n")' ${EXTRAS} > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY . .
RUN pip install --no-cache-dir --no-deps --editable . \
    && python -m compileall -q flows tasks

USER 10001
# PWD: where runs go that a work pool starts; only a shell would set it
ENV PREFECT_HOME=/srv/peft-flow/mlruns/prefect \
    PWD=/srv/peft-flow
VOLUME ["/srv/peft-flow/mlruns", "/home/peft/.cache"]
EXPOSE 4200 5000
# no entry point: the work pools of Prefect give their command alone
CMD ["peft-flow", "--help"]
