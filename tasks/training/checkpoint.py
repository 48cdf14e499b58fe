"""Checkpoints of a training on disk: written whole or not at all, verified on reading, the two newest kept.

Tensors are safetensors, all else is JSON: nothing that is read back can run code.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.files import whole
from tasks.base.records import file_sha256

if TYPE_CHECKING:
    from torch import Tensor


KEPT = 2

MANIFEST, STATE = "manifest.json", "state.json"

Tensors = dict[str, "Tensor"]


class Checkpoint(NamedTuple):
    folder: Path
    step: int

    def tensors(self, group: str) -> Tensors:
        from safetensors.torch import load_file

        file = self.folder / f"{group}.safetensors"
        return dict(load_file(file)) if file.exists() else {}

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        return state


def write_checkpoint(folder: Path, step: int, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> Checkpoint:
    """`folder/checkpoint-STEP` with a file for each group of tensors; its name appears when all of it is on disk."""
    from safetensors.torch import save_file

    target = folder / f"checkpoint-{step}"
    size = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    with whole(target, size, writer="training") as staged:
        staged.mkdir()
        for group, tensors in groups.items():
            if tensors:
                save_file(tensors, staged / f"{group}.safetensors")
        (staged / STATE).write_text(json.dumps(state), encoding="utf-8")
        sums = {file.name: file_sha256(file) for file in sorted(staged.iterdir())}
        (staged / MANIFEST).write_text(json.dumps({"step": step, "sha256": sums}), encoding="utf-8")
    for old in newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(target, step)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint; damaged ones that are newer are renamed, and the log says so."""
    for path in newest_first(folder):
        fault = fault_of(path)
        if not fault:
            return Checkpoint(path, step_of(path))
        aside = path.with_name(f"broken-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        say(f"{path.name} is damaged ({fault}); it was renamed to {aside}, and the one before it is used")
    return None


def newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def newest_step(folder: Path) -> int:
    """That of the newest checkpoint, 0 where there is none."""
    return max(map(step_of, newest_first(folder)), default=0)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def fault_of(path: Path) -> str:
    """What is wrong with a checkpoint, in words; nothing where every byte is the one that was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sums, step = dict(manifest["sha256"]), manifest["step"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    if step != step_of(path):
        return f"it is that of step {step}"
    # what starts with a dot is the system's: .DS_Store of macOS, .nfs... of a file that was open when it was removed
    there = {file.name for file in path.iterdir() if file.name[0] != "."} - {MANIFEST}
    if missing := sorted(set(sums) - there):
        return f"{missing[0]} is missing"
    if extra := sorted(there - set(sums)):
        return f"{extra[0]} does not belong to it"
    try:
        changed = [name for name, wanted in sums.items() if file_sha256(path / name) != wanted]
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return f"{changed[0]} has changed" if changed else ""


def trained_tensors(model: Any) -> Tensors:
    """What training can change, copied."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in changing_tensors(model).items()}


def changing_tensors(model: Any) -> Tensors:
    """What training can change, itself: trainable weights, and the buffers that are saved with a model."""
    trainable = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: Tensors = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        if name in weights and name not in trainable:
            continue
        # layers may share one tensor: it is saved once, and loading it once reaches all of them
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            found[name] = tensor
    return found


def put_back(model: Any, tensors: Tensors) -> None:
    """Load what `trained_tensors` gave; RuntimeError where the model is not the one that it came from."""
    here = changing_tensors(model)
    if here.keys() != tensors.keys():
        raise RuntimeError(f"other weights are trained now: {sorted(here.keys() ^ tensors.keys())[0]} for one")
    model.load_state_dict(tensors, strict=False)


def tensors_sha256(tensors: Tensors) -> str:
    """Over names and values."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\0".encode())
        total.update(tensors[name].flatten().contiguous().view(dtype=torch.uint8).numpy().tobytes())
    return total.hexdigest()


def pack_optimizer(optimizer: Any) -> tuple[Tensors, dict[str, Any]]:
    """Its state as tensors and as plain values."""
    from torch import Tensor

    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, Any] = {"groups": state["param_groups"], "values": {}}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().clone().contiguous()
            else:
                plain["values"].setdefault(str(index), {})[name] = value
    return tensors, plain


def unpack_optimizer(optimizer: Any, tensors: Tensors, plain: Mapping[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["values"].items()}
    for place, tensor in tensors.items():
        index, name = place.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": plain["groups"]})


def random_state() -> tuple[Tensors, dict[str, Any]]:
    """Of every generator that training draws from: Python's, NumPy's, torch's."""
    import random

    import numpy as np
    import torch

    tensors = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *rest = np.random.get_state()
    return tensors, {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}


def set_random_state(tensors: Tensors, plain: Mapping[str, Any]) -> None:
    import random

    import numpy as np
    import torch

    version, keys, gauss = plain["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = plain["numpy"]
    np.random.set_state((kind, np.asarray(numbers, dtype=np.uint32), *rest))
    torch.random.set_rng_state(tensors["cpu"])
    for name, state in tensors.items():
        device = int(name.removeprefix("cuda.")) if name.startswith("cuda.") else None
        if device is not None and device < torch.cuda.device_count():  # a GPU fewer than before, or none
            torch.cuda.set_rng_state(state, device)


def as_json(state: tuple[Tensors, dict[str, Any]]) -> list[Any]:
    """What `random_state` gave, without tensors."""
    tensors, plain = state
    return [{name: tensor.tolist() for name, tensor in tensors.items()}, plain]


def from_json(state: list[Any]) -> tuple[Tensors, dict[str, Any]]:
    import torch

    numbers, plain = state
    return {name: torch.tensor(values, dtype=torch.uint8) for name, values in numbers.items()}, plain
