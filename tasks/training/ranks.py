"""What processes that train one run together tell each other: the sum of their gradients, and what all must agree on.

Each computes its part of every batch; the sum of their gradients makes the optimizer step that one process would make.
The first decides, draws the order of the rows, validates and writes; the others follow. (DistributedDataParallel needs
as many passes from each in every step; here one may have more pieces than another, or no row at all.)
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.training.checkpoint import tensors_sha256
from tasks.training.pieces import shortened

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Sampler

    from tasks.training.pieces import Batch


class Lost(RuntimeError):
    """Another process of the training is gone; what has ended it is said elsewhere."""


class Ranks(NamedTuple):
    """This process and the others. One that is alone tells itself what it says, and nothing is computed otherwise."""

    number: int = 0
    size: int = 1
    first_here: int = 0
    """Number of the first one on the same machine."""
    machines: int = 1
    sharded: bool = False
    """Each has only its part of the frozen weights: they compute together, pass by pass."""

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def is_first_here(self) -> bool:
        return self.number == self.first_here

    def part(self, batch: "Batch", most_rows: int) -> "Batch":
        """Rows of a batch that are this process's, where a whole batch has `most_rows`; {} where there are none."""
        if self.size == 1:
            return batch
        share = most_rows // self.size
        rows = slice(self.number * share, (self.number + 1) * share)
        return shortened(batch, rows) if len(batch["labels"][rows]) else {}

    def numbers(self, *mine: float) -> list[list[float]]:
        """Those of each of them, in order; as many from each."""
        import torch

        return [numbers.tolist() for numbers in of_all(torch.tensor(mine, dtype=torch.float64), self.size)]

    def gathered(self, value: Any) -> list[Any]:
        """What each of them says, in order. Values of JSON."""
        if self.size == 1:
            return [value]
        import torch

        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [int(length) for (length,) in self.numbers(len(said))]
        texts = of_all(torch.nn.functional.pad(said, (0, max(lengths) - len(said))), self.size)
        return [json.loads(text.numpy().tobytes()[:length]) for text, length in zip(texts, lengths, strict=True)]

    def told(self, value: Any) -> Any:
        """What the first says, in all of them. A value of JSON."""
        return self.gathered(value if self.is_first else None)[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One after the other on each machine, whose memory then holds one whole model at a time."""
        mine = self.number - self.first_here
        for turn in range(self.size // self.machines):
            if turn == mine:
                yield
            self.numbers()

    def hand_over(self, folder: Path) -> None:
        """Have every machine find the files of a folder that lies on that of the first."""
        if self.machines == 1:
            return
        import torch
        import torch.distributed as dist

        if writes := self.is_first_here and not self.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        there = sorted(folder.iterdir()) if self.is_first else ()
        for name, length in self.told([[file.name, file.stat().st_size] for file in there]):
            file = folder / Path(name).name
            content = torch.empty(length, dtype=torch.uint8)
            if self.is_first and length:
                content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
            with talking():
                dist.broadcast(content, 0)
            if writes:
                file.write_bytes(content.numpy().tobytes())
        self.numbers()  # nobody reads before all is written

    def check_alike(self, model: Any, step: int) -> None:
        """Raises RuntimeError where not all have the same trained weights, to the last bit."""
        if self.size > 1:
            trained = {name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad}
            if len(set(self.gathered(tensors_sha256(trained)))) > 1:
                raise RuntimeError(f"the processes of this training have different weights after step {step}")

    def add_up(self, weights: "Iterable[Tensor]") -> None:
        """Give each weight the sum of its gradients; one that has none in any process is left without."""
        if self.size > 1:
            by_kind: dict[Any, list[Tensor]] = {}
            for weight in weights:
                by_kind.setdefault(weight.dtype, []).append(weight)
            for alike in by_kind.values():
                add_up(alike)

    def order(self, sampler: "Sampler[int]") -> "Sampler[int]":
        """The sampler of the first for all: each process draws random numbers of its own meanwhile."""
        return together(sampler, self) if self.size > 1 else sampler


ALONE = Ranks()


def of_all(mine: "Tensor", size: int) -> "list[Tensor]":
    """The tensor of each process, in order; all of one shape, on the CPU."""
    import torch
    import torch.distributed as dist

    found = [torch.empty_like(mine) for _ in range(size)]
    with talking():
        dist.all_gather(found, mine)
    return found


def add_up(weights: "Sequence[Tensor]") -> None:
    """Those of one number format on one device, in one message."""
    import torch
    import torch.distributed as dist

    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    used = gradients[0].new_tensor([weight.grad is not None for weight in weights])
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), used])
    with talking():
        dist.all_reduce(flat)
    *sums, used = flat.split([*(gradient.numel() for gradient in gradients), len(weights)])
    for weight, total, count in zip(weights, sums, used.tolist(), strict=True):
        if count:
            weight.grad = total.view_as(weight).clone()


def together(sampler: "Sampler[int]", ranks: Ranks) -> "Sampler[int]":
    from torch.utils.data import Sampler

    class OneOrder(Sampler[int]):
        def __len__(self) -> int:
            return len(sampler)

        def __iter__(self) -> Iterator[int]:
            return iter(ranks.told(list(sampler) if ranks.is_first else None))

    return OneOrder()


@contextmanager
def talking() -> Iterator[None]:
    """Within, an error is that of the others."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this training is gone") from error
