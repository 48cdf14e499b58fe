"""One of several processes that label the rows of one prediction: its chunks, into the folder where all parts come
together, or through MLflow where that folder is on another machine."""

import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.base.device import claim_device
from tasks.base.fresh_process import end_with
from tasks.base.progress import tell
from tasks.base.records import Record, read_record
from tasks.inference.job import Job, parts_of
from tasks.inference.parts import Part, Parts
from tasks.inference.prediction import Labeller, chunks
from tasks.inference.rows import read_rows
from tasks.models import serving
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.sources.demo import demo_folder, demo_model
from tasks.sources.local import content_sha256, visible_files
from tasks.tracking import exchange

TICKET = "ticket"
"""File beside the parts, by which a process knows that this folder is the one that was meant."""

INPUT, ADAPTER, DONE = "input", "adapter", "done.json"
"""In what a machine is given that does not see the folder."""

PARTS = "parts"
"""Of the artifacts of the exchange: what such a machine gives back."""


class Ticket(Record):
    """One attempt to label a file in shards, however often it is interrupted."""

    id: str
    exchange: str | None
    """MLflow run that carries files to and from other machines; None where there is no server for it."""


class Shard(Record):
    """All that a process must know."""

    config: PredictionConfig
    job: Job
    ids: str | None
    """Kind of the column `id`, see tasks/inference/rows.py."""
    threads: int
    """Of the driver: the last digits depend on them."""
    chunk_rows: int
    rows: int
    """Of the whole input."""
    number: int
    """From 1."""
    of: int
    start: int
    stop: int
    """Its chunks, from `start` to before `stop`."""
    ticket: Ticket
    adapter_sha256: str

    def __str__(self) -> str:
        first, last = self.start * self.chunk_rows, min(self.stop * self.chunk_rows, self.rows) - 1
        return f"shard {self.number} of {self.of} (rows {first:,} to {last:,})"

    @property
    def numbers(self) -> range:
        return range(self.start, self.stop)


def label_shard(shard: Shard) -> None:
    """All parts of the shard are there; those that were, are left alone."""
    claim_device()

    import torch

    torch.set_num_threads(shard.threads)
    assert shard.job.work
    if read_record(Ticket, Path(shard.job.work) / "parts" / TICKET) == shard.ticket:
        label_chunks(shard, shard.config, shard.job, done=())
        return
    with TemporaryDirectory(prefix="peft-flow-") as folder:
        label_elsewhere(shard, Path(folder))


def label_chunks(
    shard: Shard,
    config: PredictionConfig,
    job: Job,
    done: Container[int],
    hand_over: Callable[[int, Part, Parts], None] = lambda number, part, parts: None,
) -> None:
    assert job.source
    if job.source.is_local and content_sha256(Path(job.source.name)) != job.source.revision:
        raise InputError(f"input: {shard.config.input} has changed since the prediction began; give the command again")
    parts = parts_of(config, job)
    labeller = Labeller(config, job, parts, shard.ids)
    for number, chunk in enumerate(chunks(read_rows(config, job.source, job.columns), shard.chunk_rows)):
        if number >= shard.stop:
            break
        if number < shard.start or number in done or parts.done(number):
            continue
        part = labeller.label(number, chunk)
        hand_over(number, part, parts)
        tell("%s: chunk %d of %d", shard, number - shard.start + 1, len(shard.numbers))


# --- on another machine than the parts -------------------------------------------------------------------------------


def label_elsewhere(shard: Shard, folder: Path) -> None:
    """The same with input and adapter fetched into `folder`, and each part handed over as soon as it is made."""
    assert shard.job.source
    run_id = shard.ticket.exchange
    if not run_id:
        raise InputError(
            f"shards: this machine does not see {shard.job.work}, where the parts come together; set "
            "MLFLOW_TRACKING_URI, where the prediction is started, to a server that all machines reach"
        )
    with tarfile.open(exchange.given(run_id, folder)) as packed:
        packed.extractall(folder, filter="data")
    config, source, adapter = shard.config, shard.job.source, next((folder / ADAPTER).iterdir())
    if content_sha256(adapter) != shard.adapter_sha256:
        raise RuntimeError("the adapter that came over MLflow is not the one that was given; give the command again")
    if source.is_local:
        path = str(next((folder / INPUT).iterdir()))
        source = source.model_copy(update={"name": path})
        config = config.model_copy(update={"input": path})
    found = {"source": source, "adapter": str(adapter), "base": base_model_here(adapter), "work": str(folder)}
    job = shard.job.model_copy(update=found)

    def hand_over(number: int, part: Part, parts: Parts) -> None:
        record = parts.record(number)
        exchange.attach(run_id, PARTS, *(parts.folder / name for name in part.sha256), record)

    there = exchange.patiently(lambda: exchange.names(run_id, PARTS))
    label_chunks(shard, config, job, {*json.loads((folder / DONE).read_bytes()), *numbers_of(there)}, hand_over)


def base_model_here(adapter: Path) -> str | None:
    """Where the foundation model lies on this machine, if it may be elsewhere than the adapter says: the demo's."""
    path = Path(serving.read_settings(adapter)["base_model"]["name"])
    is_demo = path.parent.name == demo_folder().name and not path.exists()
    return str(demo_model()) if is_demo else None


def pack(target: Path, job: Job, done: list[int]) -> None:
    """What a machine is given that does not see the folder of the parts."""
    assert job.source
    given = [(ADAPTER, Path(job.adapter))] + [(INPUT, Path(job.source.name))] * job.source.is_local
    with TemporaryDirectory() as folder, tarfile.open(target, "w", dereference=True) as packed:
        for kind, path in given:
            for file in [path] if path.is_file() else visible_files(path):
                packed.add(file, f"{kind}/{file.relative_to(path.parent)}", recursive=False)
        (Path(folder) / DONE).write_text(json.dumps(done))
        packed.add(Path(folder) / DONE, DONE)


def numbers_of(names: Iterable[str]) -> set[int]:
    """Of the parts whose records are among these files."""
    return {int(name[:6]) for name in names if name.endswith(".json") and name[:6].isdecimal()}


# --- a process of its own --------------------------------------------------------------------------------------------


def main() -> None:
    """`python -m tasks.inference.shard PARENT <<< '{"shard": {...}, "log": FILE}'`: ends with the process PARENT."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with(int(sys.argv[1]))
    request = json.load(sys.stdin)
    with Path(request["log"]).open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        label_shard(Shard.model_validate(request["shard"]))
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)

    main()
