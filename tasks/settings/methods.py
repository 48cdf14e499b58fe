"""The PEFT methods on offer: peft's configuration class for each, and its names for rank, alpha and dropout.

Each row was trained, saved and reloaded with equal logits on GPT-2-, BERT-, RoBERTa-, DistilBERT-, Llama- and
DeBERTa-shaped classifiers with peft 0.21.2. Methods that failed are not here: prefix_tuning and cartridge (no past
key values in transformers 5), p_tuning (the best checkpoint cannot be read back), xlora, cpt, poly, shadow,
adaption_prompt, trainable_tokens, multitask_prompt_tuning; lily, whose predictions depend on padding.
Some refuse GPT-2's Conv1D layers; that is found by attaching them to the model's shape before anything is loaded.
"""

from collections.abc import Callable, Mapping
from math import ceil, gcd
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """What a method's settings may have to fit."""

    inputs: int
    """Greatest common divisor of the input widths of the adapted layers."""
    outputs: int
    embedding: int
    """Width of the word embeddings."""
    steps: int
    """Optimizer steps of the run."""
    r: int


MATRICES_RATE, FEW_RATE = 5e-4, 5e-3
"""Learning rates of methods that train matrices, ten times that of full fine-tuning, and of those that train a few
numbers a layer: PEFT's examples have 3e-3 for RoAD, 5e-3 for IA3 and UniLoRA, 6e-3 for FourierFT's head, 1e-2 for
VeRA's. They were looked up, not tuned here.
"""


class Method(NamedTuple):
    config: str
    """Name of the configuration class in peft."""
    r: str | None = None
    alpha: str | None = None
    dropout: str | None = None
    fitted: Callable[[Shape], Mapping[str, Any]] = lambda shape: {}
    """Fields that must suit the model or the run and that peft does not find itself."""
    rate: float = MATRICES_RATE
    """Highest learning rate, where the user names none."""


def divisor(width: int, most: int) -> int:
    """Largest divisor of `width` that is at most `most`."""
    return max(n for n in range(1, min(width, most) + 1) if width % n == 0)


def even_divisor(width: int, most: int) -> int:
    return 2 * divisor(width // 2, most // 2) if width % 2 == 0 else 1


def adalora_schedule(shape: Shape) -> dict[str, Any]:
    """Start half as wide again as asked, prune to the asked rank in the middle of the run, then settle.

    Zhang et al., AdaLoRA (2023), appendix: initial rank 1.5 times the target.
    """
    third = shape.steps // 3
    return {
        "target_r": shape.r,
        "init_r": ceil(1.5 * shape.r),
        "total_step": shape.steps,
        "tinit": third // 2,
        "tfinal": third,
    }


VIRTUAL_TOKENS = 20
"""Length of the prompt that prompt_tuning learns, unless adapter.options says otherwise."""


def virtual_tokens(shape: Shape) -> dict[str, Any]:
    """Names for what peft finds in most model configurations but not in DistilBERT's; the heads are not used."""
    return {"num_virtual_tokens": VIRTUAL_TOKENS, "token_dim": shape.embedding, "num_attention_heads": 1}


def frequencies(most: int) -> Callable[[Shape], dict[str, Any]]:
    """peft's default number of frequencies, or all that the smallest layer has."""
    return lambda shape: {"n_frequency": min(most, shape.inputs * shape.outputs)}


LORA = ("r", "lora_alpha", "lora_dropout")

METHODS: dict[str, Method] = {
    "lora": Method("LoraConfig", *LORA),
    "dora": Method("LoraConfig", *LORA, lambda shape: {"use_dora": True}),
    "rslora": Method("LoraConfig", *LORA, lambda shape: {"use_rslora": True}, rate=3e-4),  # alpha / sqrt(r) is larger
    "adalora": Method("AdaLoraConfig", "init_r", "lora_alpha", "lora_dropout", adalora_schedule),
    "adamss": Method("AdamssConfig", "r"),
    "beft": Method("BeftConfig", rate=FEW_RATE),
    "boft": Method("BOFTConfig", dropout="boft_dropout"),
    "c3a": Method(
        "C3AConfig", fitted=lambda shape: {"block_size": divisor(gcd(shape.inputs, shape.outputs), 256)}, rate=FEW_RATE
    ),
    "deft": Method("DeftConfig", "r", "alpha", "deft_dropout"),
    "delora": Method("DeloraConfig", "r", dropout="module_dropout"),
    "fourierft": Method("FourierFTConfig", fitted=frequencies(1000), rate=FEW_RATE),
    "glora": Method("GloraConfig", "r"),
    "gralora": Method("GraloraConfig", "r", "alpha", "gralora_dropout"),
    "hira": Method("HiraConfig", "r", dropout="hira_dropout"),
    "hra": Method("HRAConfig", "r"),
    "ia3": Method("IA3Config", rate=FEW_RATE),
    "ln_tuning": Method("LNTuningConfig", rate=FEW_RATE),
    "loha": Method("LoHaConfig", "r", "alpha", "rank_dropout"),
    "lokr": Method("LoKrConfig", "r", "alpha", "rank_dropout"),
    "miss": Method("MissConfig", "r", dropout="miss_dropout"),
    "oft": Method("OFTConfig", dropout="module_dropout"),
    "peanut": Method("PeanutConfig", "r"),
    "prompt_tuning": Method("PromptTuningConfig", fitted=virtual_tokens, rate=FEW_RATE),
    "psoft": Method("PsoftConfig", "r", "psoft_alpha", "psoft_dropout"),
    "pvera": Method("PveraConfig", "r", dropout="pvera_dropout", rate=FEW_RATE),
    "randlora": Method("RandLoraConfig", "r", dropout="randlora_dropout"),
    "road": Method("RoadConfig", fitted=lambda shape: {"group_size": even_divisor(shape.outputs, 64)}, rate=FEW_RATE),
    "shira": Method("ShiraConfig", "r"),
    "supertuning": Method("SupertuningConfig", "r", "lora_alpha", "lora_dropout"),
    "tinylora": Method("TinyLoraConfig", "r", dropout="tinylora_dropout", rate=FEW_RATE),
    "unilora": Method("UniLoraConfig", "r", dropout="unilora_dropout", rate=FEW_RATE),
    "vblora": Method(
        "VBLoRAConfig",
        "r",
        dropout="vblora_dropout",
        fitted=lambda shape: {"vector_length": divisor(gcd(shape.inputs, shape.outputs), 256)},
        rate=FEW_RATE,
    ),
    "vera": Method("VeraConfig", "r", dropout="vera_dropout", rate=FEW_RATE),
    "waveft": Method("WaveFTConfig", fitted=frequencies(2592), rate=FEW_RATE),
}

ON_QUANTIZED = frozenset(
    {
        *("lora", "dora", "rslora", "adalora", "beft", "boft", "fourierft", "hira", "ia3", "ln_tuning", "miss", "oft"),
        *("prompt_tuning", "pvera", "randlora", "road", "shira", "vblora", "vera", "waveft"),
    }
)
"""Methods that give the same logits on weights in nf4 and int8 as on the floats that these stand for. Of the others
most break off; peanut and hra compute with the bytes of int8 as if they were the weights."""
