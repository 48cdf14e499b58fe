"""The model with its adapter, tried on a few texts before anything slow starts.

It must say the same of a text alone, beside a longer one, and again after others, or its scores would depend on what
stands next to a row or was asked before; and the adapter must have a say in it. This asks every architecture the same,
known or not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.base.fresh_process import free_device_memory
from tasks.base.progress import warn
from tasks.base.records import Source, digest
from tasks.base.trouble import first_line
from tasks.base.words import counted
from tasks.models import serving
from tasks.models.adapter import attach_adapter
from tasks.models.blocks import entering, evaluating, find_blocks
from tasks.models.foundation import load_foundation, load_tokenizer
from tasks.models.quantized import compute_in_float32, rounding
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError

TEXTS = ("good", "a second text, with a few more words in it, so that the first one is padded where both are together")

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the largest logit, as a part of it. Rounding was seen to make 2e-6 and 0.016 of it (MiniLM, BERT, GPT-2)."""

EXACT_WEIGHTS = 1_000_000_000
"""Up to so many, a bfloat16 model is asked about padding in float32, where rounding hides nothing."""

LONGEST = 1024
"""Tokens of the text that is asked in between: some models work in another way from a length on, BigBird from 704."""

_passed: set[str] = set()


def try_model(source: Source, config: RunConfig) -> None:
    """Raises InputError for a model that cannot be trained and served with equal results. Once a process for each.

    Draws no random number that anybody else would have drawn.
    """
    import torch

    key = digest([source.content, config.model.model_dump(), config.adapter.model_dump(), config.data.max_length])
    if key in _passed:
        return
    with torch.random.fork_rng(devices=[]):
        tokenizer = load_tokenizer(source, config.model)
        model, fresh = load_foundation(source, config, ("one", "two"), tokenizer)
        model = serving.on_best_device(attach_adapter(model, config, fresh, steps=100))
        rows = serving.tokenize([list(TEXTS)], tokenizer, config.data.max_length)
        length = min(config.data.max_length, LONGEST)
        long = serving.tokenize([[f"{TEXTS[1]} " * (1 + length // 8)]], tokenizer, length)
        with refusing(source), stirred(model):
            if config.adapter.layers:
                check_blocks(model, tokenizer, rows, config)
            check_gradients(model, tokenizer, rows, source)
            if model.num_parameters() <= EXACT_WEIGHTS:
                compute_in_float32(model)
            check_answers(model, tokenizer, rows, long, source)
    del model
    free_device_memory()
    _passed.add(key)


@contextmanager
def refusing(source: Source) -> Iterator[None]:
    """Within, whatever a model does not like about a few texts is the user's to know, in one line."""
    import torch

    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"model {source.name}: it cannot read a few plain texts ({first_line(error)}); choose another model"
        ) from error


def check_answers(model: Any, tokenizer: Any, rows: Any, long: Any, source: Source) -> None:
    """Of the two `rows`: side by side, each alone, and side by side again after the `long` text."""
    import torch

    with evaluating(model):
        together = serving.classify(model, tokenizer, rows, 2)
        alone = torch.cat([serving.classify(model, tokenizer, row(rows, place), 1) for place in range(2)])
        serving.classify(model, tokenizer, long, 1)
        again = serving.classify(model, tokenizer, rows, 2)
    tolerance = TOLERANCE[rounding(model)] * float(together.abs().max())
    findings = (  # what answers by chance differs alone, too
        (again, "differs when it is asked again after other texts", "it keeps something of them, or draws by chance"),
        (alone, "depends on the other texts of the batch", "it does not ignore padding"),
    )
    for answers, how, why in findings:
        difference = float((answers - together).abs().max())
        if not difference <= tolerance:
            raise InputError(
                f"model {source.name}: its answer to a text {how} (logits differ by {difference:.2g}), because {why}; "
                "choose another model"
            )


def check_blocks(model: Any, tokenizer: Any, rows: Any, config: RunConfig) -> None:
    """What enters the adapted blocks can be kept for each text: (texts, length, width), a text's own tokens first."""
    import torch

    blocks = find_blocks(model)
    assert blocks and config.adapter.layers
    batch = tokenizer.pad(dict(rows), return_tensors="pt").to(model.device)
    with torch.no_grad():
        states = entering(blocks.modules[-config.adapter.layers], model, batch)
    if tokenizer.padding_side != "right" or states.shape[:2] != batch["input_ids"].shape:
        raise InputError(
            f"adapter.layers: what enters the top blocks of {config.model.name} cannot be kept for each text; leave it "
            "empty"
        )


def row(rows: Any, place: int) -> dict[str, Any]:
    return {name: values[place : place + 1] for name, values in rows.items()}


def check_gradients(model: Any, tokenizer: Any, rows: Any, source: Source) -> None:
    """Refuses an adapter that changes nothing, and says which adapted layers take no part. Tries training mode, too."""
    import torch

    batch = tokenizer.pad(dict(rows), return_tensors="pt").to(model.device)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    names, weights = zip(*(pair for pair in named if ".modules_to_save." not in pair[0]), strict=True)
    with evaluating(model):
        logits = model(**batch).logits
        # not the plain sum: two logits may always add up to the same
        asked = (logits[:, 0] - 2 * logits[:, 1]).sum()
        slopes = torch.autograd.grad(asked, weights, allow_unused=True) if asked.requires_grad else [None] * len(names)
    used = [name for name, slope in zip(names, slopes, strict=True) if slope is not None and slope.any()]
    if not used:
        raise InputError(
            f"model {source.name}: no gradient reaches an adapted layer, nothing would be learned; name others in "
            "adapter.target_modules, or choose another model"
        )
    if idle := idle_layers(model, names, used):
        counts = counted(len(idle), "adapted layer")
        few = ", ".join(idle[:3]) + f" and {len(idle) - 3} more" * (len(idle) > 3)
        warn("%s of %s will learn nothing because the model does not use them: %s", counts, source.name, few)
    model.train()
    with torch.no_grad():
        model(**batch)


def idle_layers(model: Any, names: Sequence[str], used: Sequence[str]) -> list[str]:
    """Adapted layers that hold some of the weights `names` and none of those that are `used`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    idle = [
        layer
        for layer in layers
        if any(n.startswith(layer) for n in names) and not any(n.startswith(layer) for n in used)
    ]
    return [layer.removeprefix("base_model.model.").removesuffix(".") for layer in idle]


@contextmanager
def stirred(model: Any) -> Iterator[None]:
    """Within, the trained weights are others: half of an adapter starts as zeros, which no gradient passes."""
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(0)  # not the one that training draws from
    with torch.no_grad():
        for weight in weights:
            noise = torch.empty(weight.shape).uniform_(-0.1, 0.1, generator=generator)
            weight.add_(noise.to(weight.device, weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)
