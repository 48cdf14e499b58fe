"""The frozen weights of a model shared out among processes (FSDP2), for a model that does not fit on one GPU.

Each process keeps an equal part of every weight, and gets the rest of a block when it computes with it. The adapter and
the head stay whole in each: gradients, checkpoints and files are those of a model that is whole. The numbers are, too.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.base.device import processes
from tasks.base.disk import size
from tasks.base.records import Source
from tasks.models.blocks import find_blocks
from tasks.models.foundation import empty_classifier, load_config
from tasks.models.quantized import bytes_of, stored_kind
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError

MOST_OF_GPU = 0.7
"""Share of a GPU's memory that weights may take; passes through the model need the rest."""


def check_sharding(model: Any, source: Source, config: RunConfig) -> None:
    """Raises InputError where `shard_model: always` cannot be done; `model` may be without weights."""
    if config.training.shard_model == "always" and (why := obstacle(model, source, config)):
        raise InputError(f"training.shard_model: {why}; leave it out, or say never")


def obstacle(model: Any, source: Source, config: RunConfig) -> str:
    """Why weights cannot be shared out; nothing where they can."""
    adapter = config.adapter
    if processes(config.training) == 1:
        return "one process has nobody to share the weights with (training.processes)"
    if (stored_kind(model.config, source.name) or config.model.quantization) != "none":
        return "quantised weights cannot be shared out"
    if adapter.layers:
        return "adapter.layers computes the blocks below in one process, which needs all weights"
    if adapter.target_parameters:
        return "adapter.target_parameters computes with weights outside of their layers"
    if adapter.method == "prompt_tuning":
        return "prompt_tuning reads the word embeddings outside of the model"
    if not find_blocks(model):
        return f"{source.name} has no one list of blocks"
    return ""


def is_to_be_sharded(source: Source, config: RunConfig) -> bool:
    """Whether this process, which trains with others, is to keep its part of the weights alone."""
    import torch

    asked = config.training.shard_model
    if asked == "always":
        return True
    if asked == "never" or not torch.cuda.is_available():
        return False
    model = empty_classifier(load_config(source, config.model), source, config)
    numbers = sum(weight.numel() for weight in model.parameters())
    needed = numbers * getattr(torch, config.model.dtype).itemsize
    there = torch.cuda.get_device_properties(0).total_memory
    return needed > MOST_OF_GPU * there and not obstacle(model, source, config)


def mesh_of(count: int) -> Any:
    """All processes that train together, for torch."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (count,))


def share_out(model: Any, mesh: Any) -> Any:
    """The model with an adapter, on this process's device, with its part of each frozen weight of the body."""
    from torch.distributed.fsdp import fully_shard

    # nothing of transformers changes in place what the body has given
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    foundation = model.get_base_model()
    blocks = find_blocks(foundation)
    assert blocks  # `obstacle` has seen to it
    whole = {weight for weight in model.parameters() if weight.requires_grad}
    # the body, not what peft calls around it: some methods go around the outermost module
    for module in (*blocks.modules, getattr(foundation, foundation.base_model_prefix)):
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    return model.to(mesh.device_type)


@contextmanager
def gathered(block: Any) -> Iterator[None]:
    """Within, parts of a block can be called by themselves, also where its weights are shared out."""
    is_shared = hasattr(block, "unshard")
    if is_shared:
        block.unshard()
    try:
        yield
    finally:
        if is_shared:
            block.reshard()


def frozen_bytes(model: Any) -> tuple[int, int]:
    """What this process keeps of the frozen weights, and all of them."""
    from torch.distributed.tensor import DTensor

    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    here = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen)
    return bytes_of(here), bytes_of(frozen)


def sharing_sentence(model: Any, count: int) -> str:
    here, all_of_them = frozen_bytes(model)
    return (
        f"The frozen weights, {size(all_of_them)}, are shared out: each of {count} processes keeps {size(here)} of them"
    )
