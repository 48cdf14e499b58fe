"""Find a foundation model; build tokenizer and classifier from it; refuse what it cannot do."""

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.base.environment import hide_short_bars
from tasks.base.records import Source
from tasks.base.trouble import first_line, is_network_trouble
from tasks.models import quantized, serving
from tasks.models.blocks import compute_blocks_twice
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEMO_MODEL
from tasks.settings.methods import VIRTUAL_TOKENS
from tasks.settings.sections import AdapterConfig, ModelConfig
from tasks.sources.hub import HubUnreachable, check_format, find, patient

model_texts = serving.model_texts


def find_model(config: RunConfig) -> Source:
    """The foundation model, pinned; the demo's is made on first use."""
    if config.model.name == DEMO_MODEL:
        from tasks.sources.demo import demo_model

        return find("model", str(demo_model()), "main", offline=True)
    return find("model", config.model.name, config.model.revision, config.offline)


def hub_arguments(source: Source, config: ModelConfig) -> dict[str, Any]:
    """What every `from_pretrained` needs to read exactly this content."""
    revision = {} if source.is_local else {"revision": source.revision}
    return {
        **revision,
        "local_files_only": source.local_files_only,
        "trust_remote_code": config.trust_remote_code,
    }


@patient
def load_tokenizer(source: Source, config: ModelConfig) -> Any:
    """Tokenizer with a pad token: GPT-style models have none and pad with their end-of-text token.

    It pads on the side that suits the model's head, and says so where it is saved.
    """
    from transformers import AutoTokenizer

    # XLNet classifies by the last place, which must not be padding
    side = "left" if getattr(load_config(source, config), "summary_type", None) == "last" else "right"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, padding_side=side, **hub_arguments(source, config))
    except Exception as error:
        raise unusable("tokenizer", source, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise InputError(f"model.name: {source.name} has no tokenizer files")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise InputError(f"model {source.name}: its tokenizer has no pad, end, unknown or start token to pad with")
    return serving.read_as_text(tokenizer)


def unusable(what: str, source: Source, error: Exception) -> Exception:
    """The error to raise when a library could not read `what` of the model."""
    if is_network_trouble(error) and not source.local_files_only:
        return HubUnreachable(
            f"model.name: the Hub broke off while sending the {what} of {source.name}; "
            "run the same command again, whole files are kept"
        )
    if isinstance(error, OSError) and error.errno not in (None, 2):
        return error
    if "trust_remote_code" in str(error):
        return InputError(
            f"model {source.name} brings its own Python code; set model.trust_remote_code only if you trust it"
        )
    hint = "; run once with the Hub reachable" if source.local_files_only and not source.is_local else ""
    return InputError(f"model {source.name}: its {what} cannot be read: {first_line(error)}{hint}")


@patient
def load_config(source: Source, config: ModelConfig) -> Any:
    """The architecture's configuration, without weights."""
    from transformers import AutoConfig

    hide_short_bars()
    try:
        return AutoConfig.from_pretrained(source.name, **hub_arguments(source, config))
    except Exception as error:
        raise unusable("configuration", source, error) from error


@patient
def load_foundation(
    source: Source, config: RunConfig, label_names: Sequence[str], tokenizer: Any
) -> tuple[Any, list[str]]:
    """The classifier with a head drawn from the run's seed, and the names of its modules that are not pretrained.

    The same seed gives the same head every time: baseline and training start from the same weights.
    """
    import torch

    settings = base_model_settings(source, config.model)
    torch.manual_seed(config.seed)
    try:
        model, info = serving.load_classifier(settings, label_names, tokenizer.pad_token_id, source.local_files_only)
    except Exception as error:
        raise unusable("weights (safetensors)", source, error) from error
    if config.model.quantization != "none" and not quantized.packed(model):
        raise InputError(
            f"model.quantization: {source.name} has no linear layers that could be quantised; leave it out"
        )
    return model, fresh_modules(check_weights(model, info, source), model.base_model_prefix)


def check_weights(model: Any, info: Mapping[str, Any], source: Source) -> list[str]:
    """Names of the weights that the checkpoint lacks, or has in another shape, by what `from_pretrained` said.

    Refuses one that lacks more of the body than a pooler: its layers would be noise, silently.
    """
    missing = list(info["missing_keys"])
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    body = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    lost = [name for name in (*misshapen, *missing) if name in body]
    if len(lost) > 2 or body.intersection(misshapen):
        raise InputError(
            f"model {source.name}: {len(lost)} of its {len(body)} weights are not in its files or have another shape, "
            f"{lost[0]} for one; is config.json that of these weights?"
        )
    return [*missing, *misshapen]


def base_model_settings(source: Source, config: ModelConfig) -> dict[str, Any]:
    """What serving.load_classifier must know to find this model again, and to read it in the same way."""
    quantization = quantization_settings(source, config)
    return plain_settings(source, config) | ({"quantization": quantization} if quantization else {})


def plain_settings(source: Source, config: ModelConfig) -> dict[str, Any]:
    return {
        "name": source.name,
        "revision": None if source.is_local else source.revision,
        "dtype": config.dtype,
        "trust_remote_code": config.trust_remote_code,
    }


@lru_cache(maxsize=64)  # the files of a source are the same ones
def quantization_settings(source: Source, config: ModelConfig) -> dict[str, Any] | None:
    """How the model is quantised, without the head and what its files lack; None where it is not."""
    architecture = load_config(source, config)
    stored = quantized.stored_kind(architecture, source.name)
    if not stored and config.quantization == "none":
        return None
    model, info = match_weights(source, config)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return {
        "kind": stored or config.quantization,
        "compute": quantized.computes_in(architecture),
        "skip": sorted({*heads, *fresh_modules(info["missing_keys"], model.base_model_prefix)}),
        "stored": bool(stored),
    }


@patient
def match_weights(source: Source, config: ModelConfig) -> tuple[Any, dict[str, Any]]:
    """The classifier's shape, as before it was quantised, and what `from_pretrained` says about the names and shapes of
    the weights in its files, none of which is read."""
    from transformers import AutoModelForSequenceClassification

    architecture = quantized.without_stored(load_config(source, config))
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.name,
            **hub_arguments(source, config),
            config=architecture,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            device_map="meta",
            adapter_kwargs={"local_files_only": source.local_files_only},
            output_loading_info=True,
        )
    except Exception as error:
        raise unusable("weights (safetensors)", source, error) from error
    return model, info


def fresh_modules(parameters: Sequence[str], prefix: str) -> list[str]:
    """Modules that hold the freshly drawn `parameters`: the head's, and those a checkpoint lacks (BERT's pooler).

    They must be trained and saved with the adapter, or a reload would draw them anew.
    """
    modules = set()
    for parameter in parameters:
        path = parameter.split(".")
        modules.add(".".join(path[:-1]) if path[0] == prefix else path[0])
    return sorted(modules)


def check_model(source: Source, config: RunConfig) -> Any:
    """The classifier's shape, without weights, after refusing what this model cannot do: InputError with the field."""
    architecture = load_config(source, config.model)
    check_layers(architecture, source)
    quantized.check_quantization(architecture, source.name, config.model)
    tokenizer = load_tokenizer(source, config.model)
    model = empty_classifier(architecture, source, config)
    check_vocabulary(tokenizer, model, source)
    if config.training.gradient_checkpointing:
        check_checkpointing(model, source)
    limit = min(positions(model), tokenizer.model_max_length)
    virtual = prompt_length(config.adapter)
    if config.data.max_length > limit - virtual:
        less = f", less {virtual} for num_virtual_tokens" if virtual else ""
        raise InputError(
            f"data.max_length: {config.data.max_length} is more than the {limit} positions of {source.name}{less}"
        )
    if source.is_local:
        check_files(source, config)
    return model


def check_checkpointing(model: Any, source: Source) -> None:
    try:
        compute_blocks_twice(model)
    except (NotImplementedError, ValueError):
        raise InputError(f"training.gradient_checkpointing: {source.name} does not support it; leave it off") from None


def prompt_length(adapter: AdapterConfig) -> int:
    """How many places the learned prompt takes from the text."""
    given = adapter.options.get("num_virtual_tokens", VIRTUAL_TOKENS)
    return given if adapter.method == "prompt_tuning" and isinstance(given, int) else 0  # else refused later


def check_layers(architecture: Any, source: Source) -> None:
    layers = getattr(architecture.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:  # more would be built for hours
        raise InputError(f"model {source.name}: its config.json says {layers!r:.80} layers; give 1 to {MOST_LAYERS}")


MOST_LAYERS = 1_000
"""The deepest models in use have about a hundred."""


def check_vocabulary(tokenizer: Any, model: Any, source: Source) -> None:
    """Refuses a tokenizer of another model: training would end at the first word that the model has no place for."""
    words, places = max(tokenizer.vocab_size, tokenizer.pad_token_id + 1), vocabulary(model)
    if places and words > places:
        raise InputError(
            f"model {source.name}: its tokenizer knows {words:,} words and its weights only {places:,}; "
            "is the tokenizer that of these weights?"
        )


def vocabulary(model: Any) -> int | None:
    """How many different tokens the model has a place for; None where its embeddings cannot be told (CANINE hashes)."""
    embeddings = word_embeddings(model)
    return None if embeddings is None else int(embeddings.shape[0])


def word_embeddings(model: Any) -> Any:
    """The weights (tokens, width), or None."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return getattr(embeddings, "weight", None)


def check_files(source: Source, config: RunConfig) -> None:
    """A local model's weight files are there, whole, and those of its configuration; InputError says which is not."""
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(source.name).glob("*.safetensors"))
    if not files:
        check_format(source.name, sorted(file.name for file in Path(source.name).iterdir()), folder=True)
        raise InputError(f"model {source.name}: there are no weights as safetensors; other formats can hide code")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"model {source.name}: {file.name} is damaged ({first_line(error)}); copy it again"
            ) from None
    if not quantized.stored_kind(load_config(source, config.model), source.name):  # else tried whole
        check_weights(*match_weights(source, config.model), source)


def empty_classifier(architecture: Any, source: Source, config: RunConfig) -> Any:
    """The model's shape, without memory for weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                architecture, trust_remote_code=config.model.trust_remote_code
            )
    except Exception as error:  # whatever the architecture makes of values that it did not expect
        raise InputError(f"model {source.name} cannot classify sequences: {first_line(error)}") from None


def positions(model: Any) -> int:
    """Longest text in tokens. RoBERTa's kin count positions from behind the pad token: two of 514 are lost."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    limit = next((limit for limit in limits if limit and limit > 0), sys.maxsize)  # XLNet's -1 is none
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(len(module.weight) - module.padding_idx - 1)
    return int(limit)
