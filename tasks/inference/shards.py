"""The driver of a prediction in shards: who labels which rows, how far all of them are, and who goes on where one died.

When all have ended, every part lies in the work folder, where the step after this one finds and joins them.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.base.files import whole, write_bytes
from tasks.base.progress import progress_artifact, tell, warn
from tasks.base.records import file_sha256, read_record
from tasks.base.trouble import first_line, is_network_trouble
from tasks.base.work import sole_user
from tasks.inference.job import Job, parts_of
from tasks.inference.parts import Part, Parts
from tasks.inference.prediction import CHUNK_ROWS, Progress, check_faults, chunks, given_already
from tasks.inference.rows import kind_of_ids, read_rows
from tasks.inference.shard import PARTS, TICKET, Shard, Ticket, numbers_of, pack
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.sources.local import content_sha256
from tasks.tracking import exchange
from tasks.tracking.asking import fetched
from tasks.tracking.patience import may_recover

LOOK_SECONDS, EXCHANGE_SECONDS = 1.0, 5.0
"""Between two looks at this disk, and at MLflow."""

MOST_STARTS = 4
"""A shard that is killed so often with nothing done in between brings its process down itself, by its need of memory
for example."""


class Runners(Protocol):
    """Processes that label shards, here or elsewhere: tasks/servers/shards.py."""

    places: int
    """Most at a time."""
    elsewhere: bool
    """They may be on machines that do not see this disk."""

    def start(self, key: str, shard: dict[str, Any]) -> str:
        """Name of a new one; of one that a killed driver has started under the same key, where that goes on."""

    def alive(self, known: Sequence[str]) -> list[str]: ...

    def was_killed(self, name: str) -> bool: ...

    def last_words(self, name: str) -> str: ...

    def stop(self) -> None: ...


@task(name="label in shards", task_run_name="label in shards", cache_policy=NO_CACHE)
def label_in_shards(config: PredictionConfig, job: Job, find_runners: Callable[[Path, int], Runners | None]) -> None:
    """All parts of the output on disk, labelled by several processes; where there is nobody but this one, none."""
    assert job.work and job.source
    Path(job.work).mkdir(parents=True, exist_ok=True)
    with sole_user(job.work):
        parts = parts_of(config, job)
        if given_already(config, parts):
            return
        rows = count_rows(config, job)
        count = -(-rows // CHUNK_ROWS)
        if count < config.shards:
            tell("%s rows are %d chunks of %s: no more shards than that", f"{rows:,}", count, f"{CHUNK_ROWS:,}")
        number = min(config.shards, count)
        runners = find_runners(parts.folder, number) if number > 1 else None
        if runners:
            made = shards_of(config, job, parts, rows, number, runners.elsewhere)
            Driver(runners, parts, made).run()


def count_rows(config: PredictionConfig, job: Job) -> int:
    """Of the input. InputError for one that cannot be used, unless such rows are to be skipped."""
    count = 0
    for chunk in chunks(read_rows(config, job.source, job.columns)):
        check_faults(config, job, chunk)
        count += len(chunk)
    return count


def shards_of(
    config: PredictionConfig, job: Job, parts: Parts, rows: int, number: int, elsewhere: bool
) -> "list[Shard]":
    """So many, each with a range of the chunks; all that they need besides the input lies beside the parts."""
    import torch

    assert job.source
    parts.folder.mkdir(parents=True, exist_ok=True)
    adapter = parts.folder / "adapter"  # that of the job is gone when a killed driver goes on
    if not adapter.is_dir():
        with whole(adapter, sum(file.stat().st_size for file in Path(job.adapter).rglob("*"))) as staged:
            shutil.copytree(job.adapter, staged)
    ids = kind_of_ids(config, job.source)
    ticket, count = ticket_of(config, parts, elsewhere), -(-rows // CHUNK_ROWS)
    edges = [place * count // number for place in range(number + 1)]
    return [
        Shard(
            config=config.model_copy(update={"input": job.source.name}) if job.source.is_local else config,
            job=job.model_copy(update={"adapter": str(adapter)}),
            ids=ids,
            threads=torch.get_num_threads(),
            chunk_rows=CHUNK_ROWS,
            rows=rows,
            number=place,
            of=number,
            start=start,
            stop=stop,
            ticket=ticket,
            adapter_sha256=content_sha256(adapter),
        )
        for place, (start, stop) in enumerate(pairwise(edges), 1)
    ]


def ticket_of(config: PredictionConfig, parts: Parts, elsewhere: bool) -> Ticket:
    """That of the interrupted command which this one goes on with, or a new one."""
    known = read_record(Ticket, parts.folder / TICKET)
    if known and (not elsewhere or (known.exchange and exchange.is_open(known.exchange))):
        return known
    run_id = exchange.open_exchange(config.run_name()) if elsewhere else None
    if known and known.exchange == run_id:
        return known
    ticket = Ticket(id=uuid4().hex, exchange=run_id)
    ticket.write(parts.folder / TICKET)
    return ticket


class Driver:
    """Starts shards, watches them, and has another process go on with those that were killed."""

    def __init__(self, runners: Runners, parts: Parts, shards: Sequence[Shard]) -> None:
        self.runners, self.parts, self.shards = runners, parts, shards
        self.count, self.job, self.ticket = shards[-1].stop, shards[0].job, shards[0].ticket
        self.tried: dict[int, tuple[int, int]] = {}
        """By number of a shard that was killed: how many parts it had then, and how often it was with so many."""
        self.next_exchange = 0.0

    def run(self) -> None:
        self.collect()
        waiting = [shard for shard in self.shards if not all(map(self.parts.done, shard.numbers))]
        running: dict[str, Shard] = {}
        try:
            with progress_artifact("shards") as show:
                progress = Progress(show)
                while waiting or running:
                    self.start_some(waiting, running)
                    ended = set(running) - set(self.runners.alive(list(running)))
                    if self.collect(at_once=bool(ended)):
                        waiting += [shard for name in ended if self.is_to_go_on(name, shard := running.pop(name))]
                    self.tell(progress)
                    if running:
                        time.sleep(LOOK_SECONDS)
        finally:
            self.runners.stop()
        self.close_exchange()

    def start_some(self, waiting: list[Shard], running: dict[str, Shard]) -> None:
        """As many as there are places; where nobody answers who could start them, the next look tries again."""
        try:
            while waiting and len(running) < self.runners.places:
                key = f"{self.ticket.id}-{waiting[0].number}-of-{waiting[0].of}"
                name = self.runners.start(key, waiting[0].model_dump(mode="json"))
                running[name] = waiting.pop(0)
        except Exception as error:
            if not is_network_trouble(error):
                raise

    def is_to_go_on(self, name: str, shard: Shard) -> bool:
        """Whether a shard whose process has ended is to go on in another. Raises why, where it failed."""
        done = len(self.done().intersection(shard.numbers))
        if done == len(shard.numbers):
            return False
        words = self.runners.last_words(name)
        before, times = self.tried.get(shard.number, (0, 0))
        self.tried[shard.number] = done, times + 1 if done == before else 1
        if self.runners.was_killed(name) and self.tried[shard.number][1] < MOST_STARTS:
            warn("%s was killed (%s); another process goes on with it", shard, words)
            return True
        if user_must_change := re.search(r"InputError: (.*)", words):
            raise InputError(f"{user_must_change[1]} (said by {shard})")
        raise RuntimeError(f"{shard} failed: {words}")

    def done(self) -> set[int]:
        """Numbers of the parts that are on this disk."""
        return numbers_of(os.listdir(self.parts.folder))

    def tell(self, progress: Progress) -> None:
        done, shard = len(self.done()), self.shards[0]
        progress.tick(min(done * shard.chunk_rows, shard.rows), done / self.count, worked=True)

    # --- with machines that do not see this disk

    def collect(self, at_once: bool = True) -> bool:
        """Whether all that other machines have handed over is on this disk; they are given what they want."""
        run_id = self.ticket.exchange
        if not run_id or (time.monotonic() < self.next_exchange and not at_once):
            return True
        self.next_exchange = time.monotonic() + EXCHANGE_SECONDS
        try:
            if exchange.is_wanted(run_id):
                with TemporaryDirectory() as folder:
                    file = Path(folder) / exchange.FILE
                    pack(file, self.job, [number for number in range(self.count) if self.parts.done(number)])
                    exchange.give(run_id, file)
            for number in sorted(numbers_of(exchange.names(run_id, PARTS)) - self.done()):
                self.fetch(run_id, number)
        except Exception as error:
            if not may_recover(error):
                raise
            return False
        return True

    def close_exchange(self) -> None:
        try:
            if self.ticket.exchange:
                exchange.close_exchange(self.ticket.exchange)
        except Exception as error:  # all is labelled
            warn("copies of input and output stay in MLflow run %s: %s", self.ticket.exchange, first_line(error))

    def fetch(self, run_id: str, number: int) -> None:
        """A part that another machine has made; its record last, as always."""
        with TemporaryDirectory() as folder:
            record = fetched(run_id, f"{PARTS}/{self.parts.record(number).name}", Path(folder))
            part = Part.model_validate_json(record.read_bytes())
            for name, sha256 in part.sha256.items():
                assert name == f"{record.stem}{Path(name).suffix}"  # and leads nowhere else
                file = fetched(run_id, f"{PARTS}/{name}", Path(folder))
                if file_sha256(file) != sha256:
                    raise RuntimeError(f"{name} is not the file that its record tells of; give the command again")
                write_bytes(self.parts.folder / name, file.read_bytes())
            part.write(self.parts.record(number))
