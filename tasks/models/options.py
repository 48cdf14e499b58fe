"""adapter.options: what matches nothing in the model, does nothing here or cannot be read back is refused at the start.

peft takes all of it without a word: a misspelt `rank_pattern` trains the usual rank, and `pissa_niter_4` draws another
start where the adapter is read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from tasks.models.blocks import find_blocks
from tasks.models.experts import adapted_name
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean

NEEDS_DATA = "needs a pass over the data before training, which is not made here; leave it out"

QUANTIZED = "is for weights that are quantised in other ways; leave it out"

UNUSABLE = {
    "alora_invocation_tokens": "is for models that write text; leave it out",
    "apply_GS": "divides by zero at the start of training; leave it out",
    "arrow_config": "chooses among several adapters, and here is one; leave it out",
    "corda_config": NEEDS_DATA,
    "eva_config": NEEDS_DATA,
    "layer_replication": "makes a deeper model than the one that is measured; leave it out",
    "loftq_config": QUANTIZED,
    "lora_ga_config": NEEDS_DATA,
    "prompt_tuning_init_text": "is read by a tokenizer that peft would ask the Hub for; leave it out",
    "sample_at_inference": "gives another prediction each time; leave it out",
    "tokenizer_name_or_path": "would be asked for at the Hub, even offline; leave it out",
    "use_asa": "needs steps of its own in training, which are not made here; leave it out",
    "use_qalora": QUANTIZED,
}
"""Options of peft's methods that may be empty or false, and nothing else."""

LORA_STARTS = ("true", "false", "gaussian", "orthogonal", "pissa", "olora", "mica")
"""Of the others eva, corda and lora_ga need data, and pissa_niter_N is drawn anew where the adapter is read back."""

STARTS = {
    "lora": ("init_lora_weights", LORA_STARTS),
    "dora": ("init_lora_weights", LORA_STARTS[:-1]),
    "rslora": ("init_lora_weights", LORA_STARTS),
    "adalora": ("init_lora_weights", ("true", "false")),  # words make no difference to it
    "tinylora": ("init_weights", ("true", "uniform")),  # else what happens to lie in memory
}
"""The option of a method that says how its weights start, and the values that work."""

FROM_WEIGHTS = ("pissa", "olora", "mica")
"""Starts that decompose the foundation model's weights; the first two then change them."""

LAYERS = ("target_modules", "exclude_modules", "feedforward_modules")

PATTERNS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")
"""Options with names of layers, and with regular expressions for ends of names."""


def check_options(model: Any, method: str, options: Mapping[str, Any], is_quantized: bool = False) -> None:
    """What can be known before the adapter is attached; InputError names the option and what would do."""
    for option, value in options.items():
        if value and option in UNUSABLE:
            raise InputError(f"adapter.options: {option} {UNUSABLE[option]}")
    if method == "adalora" and options.get("rank_pattern"):
        raise InputError("adapter.options: rank_pattern is what adalora finds in training; leave it out")
    check_start(model, method, options, is_quantized)
    if is_quantized and options.get("trainable_token_indices"):
        raise InputError("adapter.options: trainable_token_indices does not work on quantised weights; leave it out")
    if str(options.get("prompt_tuning_init")).upper().endswith("TEXT"):
        raise InputError(
            "adapter.options: prompt_tuning_init: TEXT would ask the Hub for a tokenizer, even offline; choose RANDOM "
            "or SAMPLE_VOCAB"
        )
    for option, check in checks_of(model).items():
        if (value := options.get(option)) in (None, "", [], {}):
            continue
        try:
            check(value)
        except (AttributeError, TypeError) as error:  # a number for a name, a name for a mapping
            raise InputError(
                f"adapter.options: {option}: {value!r:.80} is not what peft takes; see its documentation of {method}"
            ) from error


def checks_of(model: Any) -> dict[str, Callable[[Any], None]]:
    """By the option, what refuses values of it that do not fit the model."""
    names = [name for name, _ in model.named_modules() if name]
    return {
        **{option: partial(check_layers, option, names=names) for option in LAYERS},
        **{option: partial(check_patterns, option, names=names, where="in this model") for option in PATTERNS},
        "layers_pattern": partial(check_lists, names=names),
        "layers_to_transform": partial(check_blocks, model),
        "trainable_token_indices": partial(check_words, model, names=names),
    }


def check_start(model: Any, method: str, options: Mapping[str, Any], is_quantized: bool) -> None:
    from transformers.pytorch_utils import Conv1D

    option, works = STARTS.get(method, ("", ()))
    if is_quantized:
        works = tuple(start for start in works if start not in FROM_WEIGHTS)
    if option not in options:
        return
    start = str(options[option]).lower()
    if start not in works:
        raise InputError(
            f"adapter.options: {option}: {start} does not work with {method}{' on quantised weights' * is_quantized}; "
            f"choose of {', '.join(works)}"
        )
    if start == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
        raise InputError(f"adapter.options: {option}: olora does not fit the layers of this model; choose pissa")


def listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def check_layers(option: str, value: Any, names: Sequence[str]) -> None:
    """`value`: ends of names, or one regular expression for whole names."""
    if isinstance(value, str):
        found = any(re.fullmatch(compiled(option, value), name) for name in names)
        missing = () if found else (value,)
    else:
        missing = tuple(wanted for wanted in value if not any(f".{name}".endswith(f".{wanted}") for name in names))
    if missing:
        raise InputError(
            f"adapter.options: {option}: nothing in this model is called '{missing[0]}'{hint(missing[0], names)}"
        )


def check_lists(patterns: Any, names: Sequence[str]) -> None:
    for pattern in listed(patterns):
        if not any(re.search(rf"(^|\.){compiled('layers_pattern', pattern)}\.\d+\.", name) for name in names):
            raise InputError(f"adapter.options: layers_pattern: no list of blocks is called '{pattern}'; leave it out")


def check_patterns(option: str, patterns: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for pattern, _ in patterns.items():
        if not any(re.match(rf"(.*\.)?({compiled(option, pattern)})$", name) for name in names):
            raise InputError(f"adapter.options: {option}: no layer {where} is called '{pattern}'{hint(pattern, names)}")


def compiled(option: str, pattern: str) -> str:
    """`pattern`, after making sure that it is one."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"adapter.options: {option}: '{pattern}' is not a regular expression: {error}") from None
    return pattern


def hint(wanted: str, names: Sequence[str]) -> str:
    """What may have been meant: the most similar last name, else the last names of all parts without parts."""
    known, owners = ({name.rpartition(".")[place] for name in names} for place in (2, 0))
    leaves = ", ".join(sorted({name.rpartition(".")[2] for name in names if name not in owners}))
    return f"; {did_you_mean(wanted.rpartition('.')[2], sorted(known), f'there are {leaves}')}"


def check_blocks(model: Any, numbers: Any) -> None:
    blocks = find_blocks(model)
    for number in listed(numbers):
        if blocks and number not in range(len(blocks.modules)):
            last = len(blocks.modules) - 1
            raise InputError(f"adapter.options: layers_to_transform: there is no block {number}; there are 0 to {last}")


def check_words(model: Any, tokens: Any, names: Sequence[str]) -> None:
    """`tokens` to train: their numbers, or these by the name of the embeddings."""
    if isinstance(tokens, Mapping):
        check_layers("trainable_token_indices", list(tokens), names)
        tokens = chain.from_iterable(tokens.values())
    words = model.get_input_embeddings().weight.shape[0]
    for number in tokens:
        if number not in range(words):
            raise InputError(f"adapter.options: trainable_token_indices: {number} is outside of 0 to {words - 1}")


def check_attached(model: Any, options: Mapping[str, Any]) -> None:
    """What the options say of layers is about some that carry the adapter, and there is something to train."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = [
        adapted_name(name, module).removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for option in PATTERNS:
        check_patterns(option, options.get(option) or {}, names, "with the adapter")
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
    if all("modules_to_save" in name for name in trained):
        raise InputError("adapter.options: with these the adapter has no weights to train; leave some out")
