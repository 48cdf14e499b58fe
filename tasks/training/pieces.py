"""A batch goes through the model in pieces that memory can hold, one after the other: the same optimizer step.

What a pass keeps for its gradients grows with its tokens, and what attention keeps with the pairs of tokens in each
row, so that a batch of long texts would take many times the memory of one of short texts.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Batch = dict[str, Tensor]


CPU_TOKENS, CPU_PAIRS = 4096, 2**20
"""The default batch of 32 rows is whole up to 128 tokens; of 512 tokens 4 rows go at a time, of 1,024 one. MiniLM keeps
270 MB of a row of 512, 84 % of it attention's, and GPT-2 2.2 GB of one of 1,024. One thread takes 0.41 s a row for 4
rows of 512 at a time and 0.62 s for 16, whose memory it has to find anew."""

GPU_TOKENS = 16_384
"""The default batch is whole up to 512 tokens. Attention keeps no pairs there; a piece that is too large is cut again
when memory runs out."""


class Pieces:
    """Cuts batches so that a pass has at most so many tokens, and pairs of tokens in a row, padding included; but one
    row at least."""

    def __init__(self, most_tokens: int, most_pairs: float = math.inf) -> None:
        self.most_tokens, self.most_pairs = most_tokens, most_pairs
        self.latest = (0, 0)
        """Rows of the piece at hand, and their length."""

    def of(self, batch: "Batch") -> "Iterator[Batch]":
        """A batch that fits as it is, else pieces of as many rows, give or take one, in their order."""
        rows, count = len(batch["attention_mask"]), self.count(batch)
        for place in range(count):
            piece = batch if count == 1 else shortened(batch, slice(rows * place // count, rows * (place + 1) // count))
            self.latest = (piece["attention_mask"].shape[0], piece["attention_mask"].shape[1])
            yield piece

    def count(self, batch: "Batch") -> int:
        rows, length = batch["attention_mask"].shape
        return math.ceil(rows / max(1.0, min(self.most_tokens // length, self.most_pairs // length**2)))

    def smaller(self) -> int:
        """The most tokens, so that half the rows of the piece at hand go at a time; 0 where it is one row, or none."""
        rows, length = self.latest
        return rows // 2 * length


def pieces_here(seen_to_fit: int | None) -> Pieces:
    """For this machine; the same for each run, whatever memory is free at the moment."""
    import torch

    if torch.cuda.is_available():
        return Pieces(seen_to_fit or GPU_TOKENS)
    return Pieces(seen_to_fit or CPU_TOKENS, CPU_PAIRS)


def shortened(batch: "Batch", rows: slice) -> "Batch":
    """These rows, without columns that hold nothing but padding."""
    length = batch["attention_mask"].shape[1]
    used = batch["attention_mask"][rows].any(0).nonzero()
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return {
        # several labels may be as many as there are tokens
        name: values[rows] if name == "labels" or values.shape[1:2] != (length,) else values[rows, columns]
        for name, values in batch.items()
    }
