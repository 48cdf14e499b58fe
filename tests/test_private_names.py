"""What the product uses of libraries that they have promised nobody: any release may drop it without a word."""

import ast
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from tasks.servers.deployments import MIGRATIONS
from tests.conftest import ROOT

NAMES = (
    "bitsandbytes.autograd._functions",
    "bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu",
    "evaluate.Metric._compute",
    "evaluate.Metric._info",
    "huggingface_hub.utils._http.default_client_factory",
    "mlflow.data.huggingface_dataset.HuggingFaceDataset._to_mlflow_entity",
    "mlflow.environment_variables._MLFLOW_IS_IN_SERVING_ENVIRONMENT",
    "mlflow.pyfunc.scoring_server.parse_csv_input",
    "mlflow.store.db.utils._initialize_tables",
    "optuna.trial.FrozenTrial._trial_id",
    "peft.AdaLoraModel.rankallocator",
    "peft.tuners.adalora.RankAllocator.exp_avg_ipt",
    "peft.tuners.adalora.RankAllocator.exp_avg_unc",
    "peft.tuners.adalora.RankAllocator.ipt",
    "prefect.serializers.PickleSerializer.loads",
    "prefect.server.database.configurations.AioSqliteConfiguration.begin_transaction",
    "torch.nn.modules.batchnorm._BatchNorm",
    "transformers.PreTrainedConfig._attn_implementation",
    "transformers.Trainer._determine_best_metric",
    "transformers.Trainer._get_eval_sampler",
    "transformers.Trainer._get_train_sampler",
    "transformers.Trainer._globalstep_last_logged",
    "transformers.Trainer._init_training_state",
    "transformers.Trainer._inner_training_loop",
    "transformers.Trainer._load_optimizer_and_scheduler",
    "transformers.Trainer._load_rng_state",
    "transformers.Trainer._prepare_inputs",
    "transformers.Trainer._save_checkpoint",
    "transformers.Trainer._tr_loss",
    "transformers.Trainer.floating_point_ops",
    "transformers.TrainingArguments._n_gpu",
    "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
)
"""Private members and modules, members that we override or replace, and where AdaLoRA keeps its averages."""

LIBRARIES = ("datasets", "evaluate", "huggingface_hub", "mlflow", "optuna", "peft", "prefect", "transformers")
"""Of which most imports stand inside functions, and fail when these run."""

FILES = sorted(file for folder in ("flows", "tasks") for file in (ROOT / folder).rglob("*.py"))
TREES = {file: list(ast.walk(ast.parse(file.read_text(encoding="utf-8")))) for file in FILES}


@pytest.mark.parametrize("name", NAMES)
def test_what_no_library_has_promised_is_there(name: str) -> None:
    path, _, member = name.rpartition(".")
    users = [file.name for file in FILES if re.search(rf"\b{member}\b", file.read_text(encoding="utf-8"))]
    assert users, f"nothing uses {name}: take it out of the list"
    try:
        owner = pkgutil.resolve_name(path)
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{name}, used by {users}, is gone: {error}")
    is_set = inspect.isclass(owner) and re.search(rf"self\.{member}\s*[:=]", inspect.getsource(owner))
    assert hasattr(owner, member) or is_set, f"{name}, used by {users}, is gone"


def test_what_we_put_in_place_of_a_library_member_is_still_called() -> None:
    overridden = [use for file in FILES for use in overrides(file)]
    assert len(overridden) > 5
    for use in overridden:
        (name,) = (name for name in NAMES if name.endswith(f".{use.name}"))
        owner = pkgutil.resolve_name(name.rpartition(".")[0])
        source = inspect.getsource(sys.modules[owner.__module__])
        assert re.search(rf"self\.{use.name}\b", source), f"nothing calls {name} any more, which {use.file} overrides"


def test_list_of_private_names_is_whole() -> None:
    found = [use for file in FILES for use in (*private_names(file), *overrides(file), *replacements(file))]
    listed = {part for name in NAMES for part in name.split(".")}
    assert len(found) > 20
    missing = {use for use in found if use.name not in listed}
    assert not missing, f"of a library, and not in NAMES: {', '.join(sorted(use.name for use in missing))}"


def test_every_name_that_is_imported_of_them_is_there() -> None:
    asked = {(path, name) for file in FILES for path, name in imports(file) if path.split(".")[0] in LIBRARIES}
    assert len(asked) > 50
    gone = []
    for path, name in sorted(asked):
        try:
            module = import_module(path)
            if not hasattr(module, name):
                import_module(f"{path}.{name}")
        except ImportError as error:
            gone.append(f"{path}.{name}: {error}")
    assert gone == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_changes_of_prefects_database_lie_where_we_look_for_them(kind: str) -> None:
    files = list(Path(str(distribution("prefect").locate_file(f"{MIGRATIONS}/{kind}"))).glob("*.py"))
    assert len(files) > 100
    for file in files:
        assert re.search(r"^revision\b.*[\"'][0-9a-f]{12}[\"']", file.read_text(encoding="utf-8"), re.MULTILINE), file


class Use(NamedTuple):
    name: str
    file: str


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file of ours imports from others."""
    ours = {*sys.stdlib_module_names, "flows", "tasks"}
    for node in TREES[file]:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in ours:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "__name__") for alias in node.names if alias.name.split(".")[0] not in ours)


def private_names(file: Path) -> Iterator[Use]:
    """Private parts of imported paths, and private attributes that nothing of ours has defined."""
    for path, name in imports(file):
        yield from (Use(part, file.name) for part in (*path.split("."), name) if is_private(part))
    for node in TREES[file]:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in OURS:
            yield Use(node.attr, file.name)


OURS = {"_replace", "_exit"} | {  # a named tuple's and that of `os`, by their documentation
    node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else node.id
    for nodes in TREES.values()
    for node in nodes
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
    or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
}
"""Names of functions, classes and variables."""

REACHED = {
    node.attr
    for nodes in TREES.values()
    for node in nodes
    if isinstance(node, ast.Attribute) and not is_super(node.value)
}


def overrides(file: Path) -> Iterator[Use]:
    """Private methods that we do not call ourselves: the class that ours is made from does."""
    classes = [node for node in TREES[file] if isinstance(node, ast.ClassDef) and node.bases]
    for method in (part for kind in classes for part in kind.body if isinstance(part, ast.FunctionDef)):
        if is_private(method.name) and not method.decorator_list and method.name not in REACHED:
            yield Use(method.name, file.name)


def replacements(file: Path) -> Iterator[Use]:
    """`Imported.member = ...` and `Imported[...] = ...`"""
    foreign = {name for _, name in imports(file)}
    assigned = [target for node in TREES[file] if isinstance(node, ast.Assign) for target in node.targets]
    for target in assigned:
        owner = target.value if isinstance(target, ast.Attribute | ast.Subscript) else None
        if isinstance(owner, ast.Name) and owner.id in foreign:
            yield Use(target.attr if isinstance(target, ast.Attribute) else owner.id, file.name)
