"""Where only the top blocks are adapted (`adapter.layers`), what enters them is computed once, for all epochs and runs.

The states that the blocks below give for the training and validation rows lie in one file, memory-mapped, named by all
that decides about them: runs that differ by seed, rank or learning rate share it. Blocks below run without dropout.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.disk import check_space, size
from tasks.base.files import whole
from tasks.base.machine import environment_key
from tasks.base.records import PreparedData, digest
from tasks.base.words import counted
from tasks.models import serving
from tasks.models.adapter import PROBE_TOLERANCE
from tasks.models.blocks import Blocks, entering, evaluating, find_blocks, text_width
from tasks.models.quantized import rounding
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE

if TYPE_CHECKING:
    from torch import Tensor


TRUNKS = STORE / "trunks"

SPLITS = ("train", "validation")

PLACE = "trunk_place"
"""Column of a row: where its states are, as `Trunk.read` takes it."""

STATES = "trunk_states"
"""What the collator adds to a batch: (rows, length, width), zero where there is padding."""


class Trunk:
    """The blocks below the adapted ones, as the file of their results."""

    def __init__(self, model: Any, data: PreparedData, config: RunConfig, splits: Any) -> None:
        """Raises InputError where the file would be larger than the configuration allows."""
        import numpy as np
        import torch

        blocks = find_blocks(model)
        assert blocks and config.adapter.layers  # tasks/models/adapter.py has refused what has none
        self.blocks: Blocks = blocks
        self.first = len(blocks.modules) - config.adapter.layers
        self.width, self.dtype = text_width(model.config), getattr(torch, config.model.dtype)
        lengths = [len(ids) for split in SPLITS for ids in splits[split]["input_ids"]]
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.bytes = trunk_bytes(model.config, int(self.starts[-1]), config)
        asked = [
            config.data.text_columns,
            config.data.max_length,
            config.model.dtype,
            config.model.quantization,
            self.first,
        ]
        key = digest([data.model.content, data.fingerprint, asked, environment_key()])
        self.file = TRUNKS / f"{key}.states"
        limit = int(config.training.max_trunk_gb * 10**9)
        if self.bytes > limit:
            raise InputError(
                f"training.max_trunk_gb: what enters the top {config.adapter.layers} blocks needs {size(self.bytes)} "
                f"on disk, and {size(limit)} may be used; raise it, or leave adapter.layers empty"
            )
        self.limit = limit

    def rows(self, splits: Any, split: str) -> Any:
        """The split with the column that says where the states of each row are."""
        begin = first_place(splits, split)
        return splits[split].add_column(PLACE, list(range(begin, begin + len(splits[split]))))

    def compute(self, model: Any, tokenizer: Any, splits: Any, batch_size: int, say: Callable[[str], None]) -> None:
        """Make the file, unless it is there."""
        from filelock import FileLock

        TRUNKS.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"):  # runs at the same time may share it
            if self.file.exists() and self.file.stat().st_size == self.bytes:
                self.file.touch()  # the newest are kept
                say(f"{counted(self.first, 'lower block')} computed before: {size(self.bytes)} in {self.file}")
                return
            make_room(self.limit - self.bytes)
            check_space(self.file, self.bytes)
            say(f"{counted(self.first, 'lower block')} computed once and kept: {size(self.bytes)} in {self.file}")
            with whole(self.file, self.bytes, writer="trunk") as staged:
                self.fill(staged, model, tokenizer, splits, batch_size)

    def fill(self, file: Path, model: Any, tokenizer: Any, splits: Any, batch_size: int) -> None:
        """Rows of like length together, so that little padding is computed."""
        import torch
        from tqdm import tqdm

        states = self.mapped(file, writable=True)
        for split in SPLITS:
            rows = serving.model_rows(splits[split], tokenizer)
            lengths = [len(ids) for ids in rows["input_ids"]]
            steps = list(serving.batches(lengths, batch_size, str(model.device)))
            for batch in tqdm(steps, desc=f"lower blocks, {split}", unit="batch", file=sys.stderr, mininterval=0.5):
                kept = {name: [values[row] for row in batch] for name, values in rows.items()}
                inputs = tokenizer.pad(kept, return_tensors="pt")
                with torch.no_grad():
                    entering = self.entering(model, inputs.to(model.device)).cpu()
                for place, row in enumerate(batch):
                    mine = self.span(first_place(splits, split) + row)
                    states[mine] = entering[place, : mine.stop - mine.start]

    def entering(self, model: Any, inputs: Any) -> "Tensor":
        """What enters the first adapted block, (rows, length, width), without dropout."""
        return entering(self.blocks.modules[self.first], model, inputs)

    def span(self, place: int) -> slice:
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def mapped(self, file: Path, writable: bool = False) -> "Tensor":
        """(tokens, width)"""
        import torch

        tokens = int(self.starts[-1])
        if writable:
            with file.open("wb") as opened:
                opened.truncate(self.bytes)
        flat = torch.from_file(str(file), shared=writable, size=tokens * self.width, dtype=self.dtype)
        return flat.view(tokens, self.width)

    def collator(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`collate`, with the states of the rows in the batch."""
        from torch.nn.utils.rnn import pad_sequence

        states = self.mapped(self.file)

        def collate_with_states(rows: Any) -> Any:
            kept = [{name: value for name, value in row.items() if name != PLACE} for row in rows]
            found = [states[self.span(row[PLACE])] for row in rows]
            return {**collate(kept), STATES: pad_sequence(found, batch_first=True)}

        return collate_with_states

    @contextmanager
    def in_place_of_blocks(self, model: Any) -> Iterator[None]:
        """Within, `model` takes batches of the collator, and its lower blocks do nothing."""
        given: list[Tensor] = []

        def take(outer: Any, arguments: Any, named: Any) -> Any:
            given[:] = [named.pop(STATES)]
            return arguments, named

        def put(block: Any, inputs: Any) -> Any:
            return (given.pop(), *inputs[1:])

        below = self.blocks.modules[: self.first]
        hooks = [
            model.register_forward_pre_hook(take, with_kwargs=True),
            self.blocks.modules[self.first].register_forward_pre_hook(put),
        ]
        for block in below:
            block.forward = passed_on
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for block in below:
                del block.forward

    def check(self, model: Any, batch: Any) -> None:
        """Raises InputError where the model does not say the same with the file as with its lower blocks."""
        import torch

        inputs = {name: values for name, values in batch.items() if name not in (STATES, "labels")}
        with evaluating(model), torch.no_grad():
            whole = model(**inputs).logits
            try:
                with self.in_place_of_blocks(model):
                    cut = model(**inputs, **{STATES: batch[STATES]}).logits
            except torch.OutOfMemoryError:
                raise
            except Exception:  # its blocks take more than the states, or states of another length
                cut = whole * math.inf
        difference = float((whole - cut).abs().max())
        if not difference <= PROBE_TOLERANCE[rounding(model)]:
            raise InputError(
                f"adapter.layers: the {counted(self.first, 'lower block')} of this model cannot be computed once "
                f"(logits differ by {difference:.2g}); leave it empty"
            )


def trunk_bytes(model: Any, tokens: int, config: RunConfig) -> int:
    """On disk, for so many tokens; `model` is the architecture's configuration."""
    import torch

    return tokens * text_width(model) * int(getattr(torch, config.model.dtype).itemsize)


def first_place(splits: Any, split: str) -> int:
    """Of the rows of a split; those of train come first."""
    return 0 if split == "train" else len(splits["train"])


def passed_on(states: Any, *_: Any, **__: Any) -> Any:
    return states


def make_room(most: int) -> None:
    """Remove the files that were not used for the longest time, until the others are no larger than `most` bytes."""
    files = sorted(TRUNKS.glob("*.states"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > most:
            file.unlink()
