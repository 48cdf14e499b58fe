"""What the foundation model knows before training: how likely its own language head finds each class's words.

A text is put into the template, and a class scores the log-likelihood of its words at `{label}`. Words that are likely
after any text would win everywhere, so what they get with texts that say nothing is taken off: contextual calibration
by Zhao et al., Calibrate Before Use, ICML 2021, with the three texts used there.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.progress import tell
from tasks.base.records import PreparedData, Source
from tasks.base.words import plain
from tasks.models import foundation as models
from tasks.models import serving
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import ZERO_SHOT_TEMPLATE
from tasks.sources.hub import patient

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CONTENT_FREE = ("N/A", "", "[MASK]")

MOST_PASSES = 8
"""Over the test rows: a decoder takes one for each class whose word has several tokens, and each costs 1.1 times what
the baseline does (GPT-2, 1,066 texts). Training three epochs costs about nine over the training rows, which are several
times as many."""


class ZeroShotLeftOut(ValueError):
    """The model cannot be asked in words; the message says why, and what would do."""


class Question(NamedTuple):
    template: str
    words: tuple[str, ...]
    """Of each class, in the order of the label names."""


def question(config: RunConfig, label_names: Sequence[str]) -> Question:
    """What is asked. Raises ZeroShotLeftOut where a class has no word."""
    given = config.evaluation.zero_shot_words
    found = {name: given.get(name) or readable(name) for name in label_names}
    if without := [name for name, word in found.items() if not word]:
        raise ZeroShotLeftOut(f"class {without[0]!r:.60} has no word; give one in evaluation.zero_shot_words")
    return Question(config.evaluation.zero_shot_template or ZERO_SHOT_TEMPLATE, tuple(found.values()))


def readable(name: str) -> str:
    """A class name as words, `card_arrival` as `card arrival`; nothing where it is a number, as `3` and `LABEL_3`."""
    if re.fullmatch(r"(?i:label|class)?[\W\d_]*", name):
        return ""
    return " ".join(re.sub(r"[_\-.]+|(?<=[a-z])(?=[A-Z])", " ", name).split())


def question_note(config: RunConfig, data: PreparedData, knew: bool) -> str:
    """The very words, for the page, and whether they told the classes apart."""
    asked = question(config, data.label_names)
    pairs = zip(data.label_names, asked.words, strict=True)
    words = ", ".join(f"{plain(name)} as “{plain(word)}”" for name, word in pairs)
    chance = "" if knew else " Asked so, the model was not surely better than chance; other words may say more."
    return f"Zero-shot asked “{plain(asked.template)}”, with each class in words: {words}.{chance}"


def ask_zero_shot(config: RunConfig, data: PreparedData) -> "np.ndarray":
    """Probabilities for the test rows, (rows, classes): the softmax of log-likelihoods less the prior's."""
    from datasets import load_from_disk

    test, asked = load_from_disk(data.folder)["test"], question(config, data.label_names)
    model, tokenizer, masked = load_language_model(data.model, config)
    form = make_form(tokenizer, asked, masked, config.data.max_length, models.positions(model))
    if not masked:
        check_reads_forward(model, form)
    texts = ["\n".join(columns) for columns in zip(*(test[name][:] for name in data.text_columns), strict=True)]
    tell(
        "Zero-shot asks, of the first test row: %s", shortened(tokenizer.decode(prompts(tokenizer, form, texts[:1])[0]))
    )
    tell("Zero-shot knows the classes as %s", ", ".join(asked.words))
    scores, free = (
        likelihoods(model, tokenizer, form, part, config.evaluation.batch_size) for part in (texts, CONTENT_FREE)
    )
    prior = free.softmax(1).mean(0).log()
    table: np.ndarray = (scores - prior).softmax(1).numpy()
    return table


def shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 600 else f"{prompt[:300]} ... {prompt[-300:]}"


@patient
def load_language_model(source: Source, config: RunConfig) -> tuple[Any, Any, bool]:
    """The model with its language head, its tokenizer, and whether it is a masked model: a decoder otherwise.

    Code that comes with a model is not run for this. Raises ZeroShotLeftOut where there is no language head.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    masked = is_masked(models.load_config(source, config.model), source)
    tokenizer = models.load_tokenizer(source, config.model)
    tokenizer.padding_side = "right"
    if masked and tokenizer.mask_token_id is None:
        raise ZeroShotLeftOut(f"the tokenizer of {source.name} has no mask")
    kind: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    quantization = models.quantization_settings(source, config.model)
    more = {}
    if quantization and not quantization["stored"]:
        more["quantization_config"] = serving.bitsandbytes_config(quantization["kind"], None)
    try:
        with serving.READING:
            model, info = kind.from_pretrained(
                source.name,
                **models.hub_arguments(source, config.model.model_copy(update={"trust_remote_code": False})),
                **more,
                dtype=getattr(torch, config.model.dtype),
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                adapter_kwargs={"local_files_only": source.local_files_only},
                output_loading_info=True,
            )
    except Exception as error:  # they were read just before, with another head
        trouble = models.unusable("weights (safetensors)", source, error)
        raise (ZeroShotLeftOut(str(trouble)) if isinstance(trouble, InputError) else trouble) from error
    if lost := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise ZeroShotLeftOut(f"{source.name} has no language head: its files lack {len(lost)} of its weights")
    if quantization:
        serving.compute_alike(model, getattr(torch, quantization["compute"]))
    model.config.use_cache = False
    serving.fuse_activations(model)
    serving.attend_to_all(model)
    return serving.on_best_device(model).eval(), tokenizer, masked


def is_masked(architecture: Any, source: Source) -> bool:
    """Whether the architecture fills in masks; it is a decoder otherwise. Most of the first have a decoder's form too,
    which is none that they were pretrained in."""
    from transformers.models.auto import modeling_auto

    kind = architecture.model_type
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if architecture.is_encoder_decoder or not (masked or kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ZeroShotLeftOut(f"{source.name} ({kind}) is neither a decoder nor a masked language model")
    return masked


# --- the question in tokens -------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """One time that the model reads all texts."""

    behind: list[int]
    """Tokens after the prompt."""
    place: int
    """From where on it is read what the model says, counted from the end of the tokens."""
    words: dict[int, list[int]]
    """By class, the tokens whose likelihood is read from that place on."""


class Form(NamedTuple):
    """The template in tokens: special tokens, what stands before the text, the text, `tail`, then a pass's tokens."""

    start: list[int]
    before: str
    room: int
    """Tokens for the text and what stands before it."""
    tail: list[int]
    passes: list[Pass]


def make_form(tokenizer: Any, asked: Question, masked: bool, max_length: int, positions: int) -> Form:
    """Texts keep `max_length` tokens, less where the model has no places for the template besides."""
    before, rest = asked.template.split("{text}")
    between, after = rest.split("{label}")
    start, end = special_tokens(tokenizer)
    tail, words = tail_and_words(tokenizer, between, asked.words)
    if not (masked or start or tail):
        raise ZeroShotLeftOut(
            "its tokenizer reads the template's words and a class's as one; put a space before {label}"
        )
    if len({*map(tuple, words)}) < len(words):
        raise ZeroShotLeftOut("its tokenizer reads two classes as one word; give others in evaluation.zero_shot_words")
    if masked:
        passes = mask_passes(words, [*token_ids(tokenizer, after), *end], tokenizer.mask_token_id)
    else:
        passes = decoder_passes(words)
    if len(passes) > MOST_PASSES:
        raise ZeroShotLeftOut(
            f"it would read the test rows {len(passes)} times, once for each class whose word has several tokens; "
            "give shorter words in evaluation.zero_shot_words"
        )
    first = len(token_ids(tokenizer, before))
    left = min(positions, tokenizer.model_max_length) - len(start) - len(tail) - max(len(one.behind) for one in passes)
    if left <= first:
        raise ZeroShotLeftOut("evaluation.zero_shot_template leaves no room for the text")
    return Form(start, before, min(left, first + max_length), tail, passes)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Those that the tokenizer puts before a text, and those behind it."""
    inner, whole = token_ids(tokenizer, "a"), tokenizer("a")["input_ids"]
    at = next(at for at in range(len(whole) + 1) if whole[at : at + len(inner)] == inner)
    return whole[:at], whole[at + len(inner) :]


def tail_and_words(tokenizer: Any, between: str, words: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """What stands between text and label, and each word as it is read behind it: with the space, where there is one."""
    whole = [token_ids(tokenizer, between + word) for word in words]
    tail = token_ids(tokenizer, between.rstrip())
    while any(ids[: len(tail)] != tail for ids in whole):  # its last token may grow together with a word
        tail = tail[:-1]
    return tail, [ids[len(tail) :] for ids in whole]


def decoder_passes(words: Sequence[list[int]]) -> list[Pass]:
    """A word's tokens are read from one pass, in which all but its last one stand behind the prompt; words that begin
    alike share it."""
    passes: list[Pass] = []
    for i in sorted(range(len(words)), key=lambda i: -len(words[i])):
        context = words[i][:-1]
        shared = next((one for one in passes if one.behind[: len(context)] == context), None)
        if not shared:
            shared = Pass(context, len(context) + 1, {})
            passes.append(shared)
        shared.words[i] = words[i]
    return passes


def mask_passes(words: Sequence[list[int]], end: list[int], mask: int) -> list[Pass]:
    """A word of several tokens has as many masks, filled in side by side, none knowing of the others: the way in which
    Schick and Schütze, It's Not Just Size That Matters, NAACL 2021, score such words in training."""
    return [
        Pass(
            [mask] * length + end,
            length + len(end),
            {i: word for i, word in enumerate(words) if len(word) == length},
        )
        for length in sorted({*map(len, words)})
    ]


def prompts(tokenizer: Any, form: Form, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text in the template, up to the label; long texts lose their end."""
    (texts,) = serving.without_special_tokens([[form.before + text for text in texts]], tokenizer)
    heads = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=form.room)["input_ids"]
    return [[*form.start, *head, *form.tail] for head in heads]


# --- the answer -------------------------------------------------------------------------------------------------------


def likelihoods(model: Any, tokenizer: Any, form: Form, texts: Sequence[str], batch_size: int) -> "Tensor":
    """Log-likelihood of each class's words in each text's prompt, (texts, classes)."""
    import torch

    asked = prompts(tokenizer, form, texts)
    columns: dict[int, Tensor] = {}
    for one in form.passes:
        ids = [[*prompt, *one.behind] for prompt in asked]
        rows = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}

        def read(inputs: Any, one: Pass = one) -> "Tensor":
            longest = max(map(len, one.words.values()))
            first = inputs["attention_mask"].sum(1, keepdim=True) - one.place
            said = logits_at(model, inputs, first + torch.arange(longest, device=first.device)).float().log_softmax(-1)
            return torch.stack([said[:, range(len(word)), word].sum(1) for word in one.words.values()], 1)

        found = serving.run_in_batches(read, model.device, tokenizer, rows, batch_size)
        columns |= dict(zip(one.words, found.T, strict=True))
    return torch.stack([columns[i] for i in range(len(columns))], 1)


def logits_at(model: Any, inputs: Any, places: "Tensor") -> "Tensor":
    """Logits over the vocabulary, (rows, places, tokens), at `places`, (rows, places).

    The head computes no others where it can be had to: for all tokens they cost as much as the rest of a small model.
    """
    import torch

    rows, chosen = torch.arange(len(places), device=places.device)[:, None], False

    def choose(head: Any, given: Any) -> Any:
        nonlocal chosen
        if given[0].shape[:2] != inputs["input_ids"].shape:
            return None
        chosen = True
        return (given[0][rows, places], *given[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        if hook:
            hook.remove()
    return logits if chosen else logits[rows, places]


def check_reads_forward(model: Any, form: Form) -> None:
    """Raises ZeroShotLeftOut where the model sees what comes next, as XLNet does: it would only copy the word."""
    import torch

    prompt, last = [*form.start, *form.tail], len(form.start) + len(form.tail) - 1
    word = next(iter(form.passes[0].words.values()))[0]
    ids = torch.tensor([[*prompt, word], [*prompt, word - 1 if word else 1]], device=model.device)
    with torch.inference_mode():
        said = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, last].float().log_softmax(-1)
    if (said[0] - said[1]).abs().max() > 0.1:
        raise ZeroShotLeftOut("the model does not read from left to right")
