"""What the commands about recorded runs and registered models do, once their arguments are read."""

import getpass
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from flows.actions import DONE
from tasks.settings.fields import InputError, check_text

if TYPE_CHECKING:
    from tasks.base.records import Record
    from tasks.tracking.decision import Decision


def run_compare(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.studies.two_runs import compare_runs, comparison_text
    from tasks.tracking.asking import stored_run

    with TemporaryDirectory() as folder:
        first, second = (
            stored_run(run_id, Path(folder) / place)
            for place, run_id in (("first", options.first), ("second", options.second))
        )
        result = compare_runs(first, second)
    print(result.model_dump_json() if options.json else comparison_text(result))
    return DONE


def run_review(options: Namespace) -> int:
    from tasks.base import environment  # before the libraries that read it
    from tasks.studies.review import review, review_text

    with environment.without_collection():
        result = review(options.run, options.file, options.limit, options.anyway)
    print(review_text(result), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_runs(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.tracking.listing import chosen_runs, runs_text

    runs = chosen_runs(options.filter, options.sort)
    if options.json:
        print_list(runs[: options.limit])
    else:
        print(runs_text(runs, options.limit))
    return DONE


def run_models(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.registry.overview import chosen_models, models_text

    models = chosen_models(options.filter, options.sort)
    if options.json:
        print_list(models)
    else:
        print(models_text(models))
    return DONE


def print_list(records: "Sequence[Record]") -> None:
    print(json.dumps([record.model_dump(mode="json") for record in records], ensure_ascii=False))


def run_promote(options: Namespace) -> int:
    reason = given_reason(options.reason)

    from tasks.base import environment  # before the libraries that read it
    from tasks.registry.decisions import promote

    with environment.without_collection():
        return tell_champion(promote(options.name, options.version, reason, by=user()))


def run_rollback(options: Namespace) -> int:
    reason = given_reason(options.reason)

    from tasks.base import environment  # before the libraries that read it
    from tasks.registry.decisions import rollback

    with environment.without_collection():
        return tell_champion(rollback(options.name, reason, by=user()))


def tell_champion(decision: "Decision") -> int:
    what = "version {} was rolled back" if decision.action == "rolled back" else "the previous one is version {}"
    before = f"; {what.format(decision.previous)}" if decision.previous else ""
    print(f"The champion of {decision.name} is version {decision.version}{before}")
    return DONE


def given_reason(text: str) -> str:
    try:
        check_text(text)
    except ValueError as error:
        raise InputError(f"--reason: {error}") from None
    if not text.strip():
        raise InputError("--reason must say why, in a few words")
    return text


def user() -> str:
    """Who gives the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "somebody"


def run_history(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.registry.history import history_of, history_text

    picture: Path | None = options.picture
    if picture and (picture.suffix != ".png" or not picture.absolute().parent.is_dir()):
        raise InputError(f"--picture must be a file NAME.png in a folder that is there, not {str(picture)!r:.80}")
    history = history_of(options.name)
    if picture:
        from tasks.registry.timeline import draw

        picture.write_bytes(draw(history))
    print(history.model_dump_json() if options.json else history_text(history))
    return DONE
