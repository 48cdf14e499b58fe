"""docs/configuration.md and docs/commands.md."""

from pathlib import Path

import pytest

from flows import reference
from flows.commands import COMMANDS
from tasks.servers.deployments import FLOWS
from tasks.settings.config import GateConfig, PredictionConfig, RerunConfig, RetrainConfig
from tasks.settings.loading import sections


def test_pages_are_what_the_program_says() -> None:
    assert reference.main(["--check"]) == 0


def test_configuration_page_has_every_field_with_its_description() -> None:
    page = reference.configuration()
    for kind in (*dict(sections()).values(), GateConfig, PredictionConfig, RerunConfig, RetrainConfig):
        for name, field in kind.model_fields.items():
            if name not in dict(sections(RetrainConfig)):
                assert f"| `{name}` | " in page and f" | {field.description} |" in page
    assert "| `batch_size` | `32` | ≥ 1, ≤ 65,536 | Rows in one batch. " in page
    assert "| `on_error` | `stop` | `stop`, `skip` | " in page
    assert "| `run_id` | required |  | " in page


def test_commands_page_has_every_command_argument_and_deployment() -> None:
    page = reference.commands()
    for command in COMMANDS:
        assert f"## {command.name}\n\n    {command.usage()}\n\n{command.description}\n" in page
        for argument in command.arguments:
            assert f"` | {argument.help} |" in page
    assert "## predict\n\n    peft-flow predict MODEL INPUT OUTPUT [--FIELD VALUE ...] [--json]\n" in page
    assert "    peft-flow rollback NAME --reason TEXT\n" in page
    assert "### finetune-demo\n\nThe embedded demo" in page


def test_every_flow_has_a_command() -> None:
    assert sorted(flow for command in COMMANDS for flow in command.flows) == sorted(FLOWS)


def test_stale_page_is_named_in_one_line_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "prefect.yaml").write_text((reference.ROOT / "prefect.yaml").read_text())
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    assert reference.main([]) == 0 and reference.main(["--check"]) == 0
    with (tmp_path / "docs/commands.md").open("a") as page:
        page.write("one more line\n")
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/commands.md: stale; run .venv/bin/python -m flows.reference\n"
