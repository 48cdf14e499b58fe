"""docs/configuration.md and docs/commands.md, written from the program's own descriptions.

python -m flows.reference           writes both
python -m flows.reference --check   one line and exit code 1 where one is stale; `make lint` does this
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic.fields import FieldInfo

from flows.cli import EPILOG, bounds, shown
from flows.commands import COMMANDS, Argument, Command
from tasks.settings.config import (
    GateConfig,
    LearningCurveConfig,
    PredictionConfig,
    RerunConfig,
    RetrainConfig,
    RunConfig,
    SeedsConfig,
    SweepConfig,
)
from tasks.settings.fields import Config
from tasks.settings.loading import choices, sections

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = "<!-- Written by `python -m flows.reference`; change the descriptions in the program, not this page. -->"


def pages() -> dict[Path, str]:
    return {ROOT / "docs/configuration.md": configuration(), ROOT / "docs/commands.md": commands()}


def configuration() -> str:
    own = [name for name in RetrainConfig.model_fields if name not in RunConfig.model_fields and name != "gate"]
    parts = [
        "# Configuration",
        WRITTEN,
        "The same fields in a YAML file (`section:` with its fields below), on the command line (`--section.field "
        "VALUE`), in the form of a Prefect deployment, and in Python. An unknown field or an impossible value is "
        "refused in one line before anything starts. Where no default is shown, there is none: the meaning says what "
        "happens then. Lists are written `a,b`.",
        "## A run: `finetune`",
        "Everything else that trains (`retrain`, several seeds) takes these fields too.",
        *(part for name, section in sections() for part in (f"### {name}", text_of(RunConfig, name), table(section))),
        "### Outside the sections",
        table(RunConfig, ("seed", "offline")),
        "## Several seeds: `finetune --seeds N`, the deployment `finetune-seeds`",
        table(SeedsConfig, ("seeds",)),
        "## More data or not: `learning-curve`",
        table(LearningCurveConfig, ("seeds",)),
        "## A sweep: `sweep`",
        table(SweepConfig, [name for name in SweepConfig.model_fields if name not in RunConfig.model_fields]),
        "## Retraining: `retrain`",
        text_of(RetrainConfig, "tracking") + " `tracking.registered_model` is `peft-flow` unless you name another.",
        "### gate",
        text_of(RetrainConfig, "gate"),
        table(GateConfig),
        "### Outside the sections",
        table(RetrainConfig, own),
        "## Prediction: `predict`",
        table(PredictionConfig),
        "## A run done again: `rerun`",
        table(RerunConfig),
    ]
    return "\n\n".join(parts) + "\n"


def text_of(kind: type[Config], name: str) -> str:
    """What a section is for."""
    field = kind.model_fields[name]
    return field.description or (field.annotation.__doc__ or "" if field.annotation else "")


def table(section: type[Config], fields: Sequence[str] = ()) -> str:
    rows = []
    for name in fields or section.model_fields:
        field = section.model_fields[name]
        allowed = ", ".join(f"`{choice}`" for choice in choices(section, name)) or bounds(field)
        default = "required" if field.is_required() else code(shown(field.default))
        rows.append((code(name), default, allowed, field.description or ""))
    return "\n".join(markdown(("field", "default", "allowed", "meaning"), rows))


def commands() -> str:
    rows = [(f"[`{one.name}`](#{one.name})", f"{one.help[0].upper()}{one.help[1:]}.") for one in COMMANDS]
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    parts = [
        "# Commands",
        WRITTEN,
        "`peft-flow COMMAND --help` shows the same. Fields (`--SECTION.FIELD VALUE`) are in "
        "[configuration.md](configuration.md).",
        "\n".join(markdown(("command", "what it does"), rows)),
        f"{EPILOG.strip()[0].upper()}{EPILOG.strip()[1:]}.",
        *(part for one in COMMANDS for part in described(one)),
        "## Deployments",
        "What `peft-flow up` offers in Prefect; their parameters are in [configuration.md](configuration.md).",
        *(part for one in deployments for part in (f"### {one['name']}", one["description"].strip())),
    ]
    return "\n\n".join(parts) + "\n"


def described(command: Command) -> Iterator[str]:
    yield f"## {command.name}"
    yield f"    {command.usage()}"
    yield command.description
    rows = [(code(one), field.description or "") for one, field in places(command)]
    rows += [(code(name_of(one)), one.help) for one in command.arguments]
    yield "\n".join(markdown(("argument", "meaning"), rows))
    if command.flows:
        yield f"In Prefect: the flow{'s' * (len(command.flows) > 1)} {' and '.join(map(code, command.flows))}."


def places(command: Command) -> Iterator[tuple[str, FieldInfo]]:
    for name in command.places:
        assert command.kind
        yield name.upper(), command.kind.model_fields[name]


def name_of(argument: Argument) -> str:
    return argument.shown().strip("[]")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def main(arguments: Sequence[str]) -> int:
    stale = []
    for path, text in pages().items():
        if arguments == ["--check"]:
            stale += [path.relative_to(ROOT)] if not path.exists() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{' and '.join(map(str, stale))}: stale; run .venv/bin/python -m flows.reference", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
