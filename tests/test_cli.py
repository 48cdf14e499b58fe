"""The command: arguments in, exit code out."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from flows.actions import prefect_starting
from flows.cli import DONE, FAILED, USER_MUST_CHANGE, main, nobody_reads
from flows.commands import COMMANDS
from tasks.settings.config import PredictionConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import sections
from tasks.settings.methods import METHODS
from tests.conftest import ROOT, register
from tests.stacks import used_by_newer_prefect

HEAVY = {"torch", "transformers", "peft", "datasets", "evaluate", "mlflow", "prefect", "pandas", "numpy"}
OPTIONS = [f"--{name}.{field}" for name, section in sections() for field in section.model_fields]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def replace_flow(monkeypatch: pytest.MonkeyPatch, flow: Any) -> None:
    import flows.seeds  # before the flow is replaced: the module keeps, for the tests after this one, what it imports

    monkeypatch.setattr("tasks.data.prepare.check_input", lambda config: (None, None))
    monkeypatch.setattr("flows.actions.prefect_starting", nullcontext)
    monkeypatch.setattr("flows.actions.get_ready_to_train", lambda: None)
    monkeypatch.setattr("tasks.base.fresh_process.reload_at_hand", nullcontext)
    monkeypatch.setattr(flows.finetune, "finetune", flow)


def test_a_prefect_server_that_does_not_start_is_the_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    class Broken:
        def wait(self) -> None:
            raise RuntimeError("no free port")

    monkeypatch.setattr("tasks.servers.temporary.TemporaryServer", Broken)
    monkeypatch.setattr("tasks.servers.deployments.refuse_newer_database", lambda database: None)
    done = []
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(RuntimeError, match="no free port"),
        prefect_starting(),
    ):
        done.append("what takes long")
    assert done


def test_database_of_a_newer_prefect_is_refused_before_a_server_starts_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.servers.temporary.TemporaryServer", None)
    with (
        used_by_newer_prefect(tmp_path) as database,
        pytest.raises(InputError, match=f"{database} was changed by a newer Prefect"),
        prefect_starting(),
    ):
        pytest.fail("it goes on")


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--help"])
    assert stopped.value.code == DONE
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom flows.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    *text, modules = done.stdout.splitlines()
    assert any("peft-flow" in line for line in text)
    assert "pydantic" in modules
    assert not HEAVY & set(json.loads(modules))


def test_help_shows_every_field_with_its_description(help_text: str) -> None:
    words = " ".join(help_text.split())
    assert len(OPTIONS) > 30
    for option in [*OPTIONS, "--seed", "--seeds", "--offline", "--json"]:
        assert f"{option} " in words
    for owner in (RunConfig, *dict(sections()).values()):
        for info in owner.model_fields.values():
            assert " ".join((info.description or "").split()) in words


def test_help_of_predict_shows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, info in PredictionConfig.model_fields.items():
        assert (f"--{name} " if name not in ("model", "input", "output") else name.upper()) in words
        assert info.description and " ".join(info.description.split()) in words
        assert info.description[0].isupper() and info.description.endswith(".")


def test_help_shows_choices_bounds_and_defaults(help_text: str) -> None:
    words = " ".join(help_text.split())
    for said in (
        *METHODS,
        "0.0005 for lora",
        "≥ 0, ≤ 1; default 0.06",
        "≥ 0, < 1",
        "default lora",
        "default text",
        "exit codes",
    ):
        assert said in words


def test_error_is_one_line_on_standard_error(foundation: Any, tmp_path: Path) -> None:
    """In a process of its own, where every library may speak: model and adapter are read, then the data fail."""
    (tmp_path / "reviews.csv").write_text("text,label\n" + "a film,good\n" * 30 + '"never closed,good\n')
    done = run(
        *("finetune", "--json", "--model.name", str(foundation("gpt2")), "--data.max_length", "32"),
        *("--data.name", "reviews.csv"),
        folder=tmp_path,
    )
    assert done.returncode == USER_MUST_CHANGE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "reviews.csv" in done.stderr and "row 30" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["finetun"], "finetune"),
        (["finetune", "--sed", "1"], "did you mean seed?"),
        (["finetune", "--trainig.epochs=2"], "did you mean training.epochs?"),
        (["finetune", "--data.nam", "x"], "did you mean data.name?"),
        (["finetune", "--seeds"], "--seeds: expected one argument"),
        (["compare"], "RUN"),
        (["compare", "a"], "RUN"),
        (["compare", "a", "b", "c"], "unexpected argument 'c'"),
        (["compare", "a", "b", "--jsn"], "unexpected argument '--jsn'"),
        (["promote", "reviews", "--reason", "x"], "VERSION"),
        (["promote", "reviews", "1"], "--reason"),
        (["rollback", "reviews"], "--reason"),
        (["rollback", "reviews", "1", "--reason", "x"], "unexpected argument '1'"),
        (["history"], "NAME"),
        (["history", "reviews", "--picture"], "--picture: expected one argument"),
        (["rerun"], "RUN"),
        (["rerun", "a", "b"], "unexpected argument 'b'"),
        (["export", "a"], "OUTPUT_FOLDER"),
        (["export", "a", "out"], "say what to write: --merged, --onnx or both"),
        (["export", "a", "out", "--merge"], "unexpected argument '--merge'"),
    ],
)
def test_mistyped_argument_is_refused_without_a_traceback(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1 and says in errors


def test_flow_gets_the_configuration_of_file_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def flow(**sections: Any) -> None:
        given.update(sections)
        raise RuntimeError("enough")

    replace_flow(monkeypatch, flow)
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: a/b}\ndata: {name: c/d}\ntraining: {epochs: 5, batch_size: 4}\n")
    assert main(["finetune", str(path), "--training.epochs", "2", "--offline", "--seed=9"]) == FAILED
    config = RunConfig(**given)
    assert (config.training.epochs, config.training.batch_size, config.seed, config.offline) == (2, 4, 9, True)
    assert config.model.name == "a/b"


@pytest.mark.parametrize(("seeds", "called"), [((), "finetune"), (("--seeds", "1"), "finetune"), (("--seeds=3",), 3)])
def test_several_seeds_go_to_the_flow_of_seeds(
    seeds: tuple[str, ...], called: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import flows.seeds

    calls: list[Any] = []

    def flow(**settings: Any) -> None:
        calls.append(settings.pop("seeds", "finetune"))
        assert RunConfig(**settings).seed == 4
        raise RuntimeError("enough")

    replace_flow(monkeypatch, flow)
    monkeypatch.setattr(flows.seeds, "finetune_seeds", flow)
    assert main(["finetune", "--model.name", "a/b", "--data.name", "c/d", "--seed", "4", *seeds]) == FAILED
    assert calls == [called]
    assert "RuntimeError: enough" in capsys.readouterr().err


def test_seeds_are_no_field_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("seeds: 3\n")
    assert main(["finetune", str(tmp_path / "run.yaml")]) == USER_MUST_CHANGE
    assert "unknown field 'seeds'" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "70000", "http", "-1"])
def test_port_must_be_one(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", f"--mlflow-port={given}"]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "--mlflow-port" in line and "a whole number from 1 to 65535" in line


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_unforeseen_failure_is_exit_code_1_with_nothing_on_standard_output(
    json_option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flow(**sections: Any) -> None:
        raise RuntimeError("the disk\nis full")

    replace_flow(monkeypatch, flow)
    assert main(["finetune", "--model.name", "a/b", "--data.name", "c/d", *json_option]) == FAILED
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1 and "RuntimeError: the disk is full" in errors


def test_connection_that_broke_is_told_though_nobody_has_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flow(**sections: Any) -> None:
        raise BrokenPipeError("the server is gone")

    replace_flow(monkeypatch, flow)
    assert main(["finetune", "--model.name", "a/b", "--data.name", "c/d"]) == FAILED
    assert "failed: BrokenPipeError: the server is gone" in capsys.readouterr().err


@pytest.mark.parametrize("hidden", [False, True])
def test_interrupt_is_exit_code_1_in_one_line(
    hidden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flow(**sections: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if hidden:  # Prefect's server has been interrupted as well
                raise ConnectionError("refused")  # noqa: B904
            raise

    replace_flow(monkeypatch, flow)
    assert main(["finetune", "--model.name", "a/b", "--data.name", "c/d"]) == FAILED
    assert capsys.readouterr().err == "peft-flow: stopped\n"


def test_demo_says_that_it_is_one_and_real_jobs_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flow(**sections: Any) -> None:
        raise RuntimeError("enough")

    replace_flow(monkeypatch, flow)
    main(["finetune"])
    assert "embedded demo" in capsys.readouterr().err
    main(["finetune", "--model.name", "a/b", "--data.name", "c/d"])
    assert "demo" not in capsys.readouterr().err


def finished_run(folder: Path) -> Any:
    """The result of a run that has left its comparison in `folder`."""
    from tests.test_studies_seeds import write_run

    return write_run(folder / "a", right=80, verdict="no evidence")


def test_json_is_the_last_line_and_the_table_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finished_run(tmp_path)
    monkeypatch.setattr("tasks.tracking.address.is_served", lambda: True)
    monkeypatch.setattr("tasks.tracking.address.run_url", lambda run_id: "http://127.0.0.1:5000/run")
    monkeypatch.setattr("tasks.tracking.address.experiment_url", lambda run_id: "http://127.0.0.1:5000/list")
    replace_flow(monkeypatch, lambda **sections: result)
    arguments = ["finetune", "--model.name", "a/b", "--data.name", "c/d"]

    assert main([*arguments, "--json"]) == DONE
    output, errors = capsys.readouterr()
    assert output.count("\n") == 1
    assert json.loads(output) == result.model_dump()
    told = "NOT SHOWN BETTER THAN MAJORITY CLASS"
    assert told in errors and "| classifier" in errors and result.adapter_path in errors

    assert main(arguments) == DONE
    output, errors = capsys.readouterr()
    assert output.startswith(f"\n{told}  b · d · lora r8\n\nAccuracy on 100 test rows is 0.800: +0.300 (")
    assert result.adapter_path in output and errors == ""
    lines = output.splitlines()
    for said in (
        f"run       {result.run_id}",
        "browse    http://127.0.0.1:5000/run",
        "all runs  http://127.0.0.1:5000/list",
        f"next      peft-flow predict {result.run_id[:8]} FILE.csv labelled.csv",
        f"          peft-flow export {result.run_id[:8]} FOLDER --merged",
    ):
        assert said in lines
    facts = lines.index(f"run       {result.run_id}")
    assert max(map(len, lines[:facts])) <= 120


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [("better than every reference", 32), ("worse than TF-IDF", 31), ("not shown better than majority class", 33)],
)
def test_verdict_is_in_colour_on_a_terminal_alone(verdict: str, colour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from flows.summary import in_colour

    terminal = io.StringIO()
    assert in_colour(verdict, terminal) == verdict.upper()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert in_colour(verdict, terminal) == f"\x1b[1;{colour}m{verdict.upper()}\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert in_colour(verdict, terminal) == verdict.upper()


def test_no_address_is_given_at_which_nothing_answers(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from flows.summary import where_to_browse
    from tasks.tracking.address import _experiments, where_to_find

    monkeypatch.delenv("MLFLOW_UI_URL", raising=False)
    monkeypatch.setitem(_experiments, "abc", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("tasks.tracking.address.UI", address)
        assert where_to_find("abc") == "MLflow run abc"
        assert list(where_to_browse("abc")) == ["browse"] and "http" not in where_to_browse("abc")["browse"]
        server.listen()
        assert where_to_find("abc").startswith(f"{address}/#/experiments/1/runs/abc")
        assert [text[:20] for text in where_to_browse("abc").values()] == [address[:20]] * 2
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example")  # somebody says so
    assert where_to_find("abc").startswith("https://mlflow.example/#/")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("peft-flow run", "runs"),
        ("peft-flow sweep --sampl", "--sampler"),
        ("peft-flow finetune --training.l", "--training.learning_rate"),
        ("peft-flow models --sort sc", "score"),
    ],
)
def test_shell_completes_commands_options_and_choices(
    words: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == DONE
    script, place = capsys.readouterr().out, len(words.split()) - 1
    tab = f'COMP_WORDS=({words}); COMP_CWORD={place}; _shtab_peft_flow; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{tab}"], capture_output=True, text=True)
    assert done.stdout.split() == [found], done.stderr


def test_output_that_nobody_reads_to_its_end_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m flows.cli completion zsh | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "#compdef peft-flow\n" and not done.stderr


def test_pipe_is_known_to_have_no_reader_with_nothing_left_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert not nobody_reads()
        os.close(reader)
        assert nobody_reads()


def test_several_seeds_are_summed_up_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import flows.seeds
    from tests.test_studies_seeds import judge

    result = judge(tmp_path, [80, 84, 88])
    monkeypatch.setattr("tasks.tracking.address.is_served", lambda: True)
    monkeypatch.setattr("tasks.tracking.address.run_url", lambda run_id: "http://127.0.0.1:5000/run")
    monkeypatch.setattr("tasks.tracking.address.experiment_url", lambda run_id: "http://127.0.0.1:5000/list")
    replace_flow(monkeypatch, lambda **sections: None)
    monkeypatch.setattr(flows.seeds, "finetune_seeds", lambda **sections: result)
    arguments = ["finetune", "--model.name", "a/b", "--data.name", "c/d", "--seeds", "3"]

    assert main([*arguments, "--json"]) == DONE
    output, errors = capsys.readouterr()
    assert output.count("\n") == 1
    assert json.loads(output) == json.loads(result.model_dump_json())
    assert "BETTER THAN EVERY REFERENCE" in errors

    assert main(arguments) == DONE
    output, errors = capsys.readouterr()
    assert errors == ""
    for said in (
        "BETTER THAN EVERY REFERENCE  b · d · lora r8 · 3 seeds",
        "0.840 ± 0.040",
        "is seed noise",
        "/run",
        result.run_id,
    ):
        assert said in output
    assert max(len(line) for line in output.splitlines() if line.startswith("|")) <= 120


def test_promote_and_rollback_say_who_is_champion_and_record_who_gave_the_command(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.registry.decisions import decisions

    register(workplace, "reviews", 2)
    monkeypatch.setenv("LOGNAME", "anna")
    for command, said in (
        (("promote", "reviews", "1"), "The champion of reviews is version 1\n"),
        (("promote", "reviews", "2"), "The champion of reviews is version 2; the previous one is version 1\n"),
        (("rollback", "reviews"), "The champion of reviews is version 1; version 2 was rolled back\n"),
    ):
        assert main([*command, "--reason", "complaints"]) == DONE
        assert capsys.readouterr() == (said, "")
    assert {(decision.by, decision.reason) for decision in decisions("reviews")} == {("anna", "complaints")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("promote", "review", "1"), "no registered model 'review'"),
        (("promote", "reviews", "2"), "no version '2' of reviews; it has 1"),
        (("promote", "a/b", "1"), "not 'a/b'"),
        (("rollback", "reviews"), "no previous champion"),
        (("rollback", "a:b"), "not 'a:b'"),
    ],
)
def test_what_cannot_be_promoted_or_rolled_back_is_reported_in_one_line(
    arguments: tuple[str, ...], says: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(workplace, "reviews", 1)
    assert main([*arguments, "--reason", "complaints"]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and says in errors


def test_rollback_loads_neither_prefect_nor_torch(workplace: Path) -> None:
    """In an emergency it takes what importing MLflow takes, and little more."""
    from tasks.registry.decisions import promote

    register(workplace, "reviews", 2)
    for version in ("1", "2"):
        promote("reviews", version, "better", "gate")
    code = (
        "import sys\nfrom flows.cli import main\nassert main(['rollback', 'reviews', '--reason', 'x']) == 0\n"
        "print(*{'torch', 'transformers', 'peft', 'datasets', 'prefect', 'sklearn'}.intersection(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "The champion of reviews is version 1; version 2 was rolled back\n\n"
    assert done.stderr == ""


def test_command_can_be_called_in_any_thread(capfd: pytest.CaptureFixture[str]) -> None:
    """Python lets only the main thread choose what SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(main, ["finetune", "no-such.yaml"]).result() == USER_MUST_CHANGE
    assert "no configuration file at no-such.yaml" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kind", ["file", "package"])
def test_tasks_of_somebody_else_in_our_place_is_reported_at_once_and_not_run(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ("tasks.py" if kind == "file" else "tasks/__init__.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("open('ran', 'w')\n")
    command = [sys.executable, "-m", "flows.cli", "--help"]
    paths = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=paths, capture_output=True, text=True)
    assert done.returncode == USER_MUST_CHANGE and done.stdout == "" and not (tmp_path / "ran").exists()
    assert done.stderr.count("\n") == 1 and f"{file} stands in the place of peft-flow's own package" in done.stderr
