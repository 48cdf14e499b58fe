"""The command `peft-flow`: arguments in, exit code out. Nothing heavy is imported before it is needed."""

import argparse
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

# before anything of it is imported, which would run it; people call such files tasks.py for Celery or Invoke
if (found := find_spec("tasks")) and Path(found.origin or "").parent.parent != Path(__file__).parent.parent:
    print(
        f"peft-flow: {found.origin} stands in the place of peft-flow's own package `tasks`; start the command "
        "peft-flow instead of `python -m flows.cli`, and leave that folder out of PYTHONPATH",
        file=sys.stderr,
    )
    sys.exit(2)

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.actions import DONE, FAILED, USER_MUST_CHANGE
from flows.commands import COMMANDS
from tasks.settings.fields import Config, InputError
from tasks.settings.loading import choices, sections, unknown_field
from tasks.settings.secrets import redact

__all__ = ["DONE", "FAILED", "USER_MUST_CHANGE", "build_parser", "main", "nobody_reads"]

EPILOG = """\
exit codes: 0 done; 2 you must change something (one line says what); 1 anything else
"""

COMMON: Any = {
    "epilog": EPILOG,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}
"""What every command's parser is told."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    if threading.current_thread() is threading.main_thread():  # in another, Python allows no handler
        # like Ctrl-C: everything is closed on the way out, the Prefect server of this process too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options, rest = build_parser().parse_known_args(arguments)
        if rest:
            is_field = rest[0].startswith("-") and "kind" in options
            name = rest[0].lstrip("-").split("=")[0]
            raise InputError(unknown_field(name, options.kind) if is_field else f"unexpected argument {rest[0]!r}")
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say("stopped")
        return FAILED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return FAILED

        from tasks.base.disk import describe, is_disk_full

        if is_disk_full(error):  # first: what a library could not read, or MLflow not close, may be for this reason
            say(describe(error))
            return FAILED
        if isinstance(error, InputError):
            say(str(error))
            return USER_MUST_CHANGE
        from tasks.tracking.patience import told_to_stop

        say("stopped" if told_to_stop(error) else f"failed: {type(error).__name__}: {error}")
        return FAILED


def nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader, as after `peft-flow runs | head`; then it is closed.

    The pipe itself is asked: to write once more may succeed, for what could not be written is not always kept.
    """
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
    except OSError:  # no file of the system
        return False
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    return gone


def say(message: str) -> None:
    """One line on standard error, without secrets, and without characters that move the cursor or clear the screen."""
    words = " ".join(redact(message).split())
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    if len(shown) > LONGEST_LINE:  # somebody gave a whole file as a name: field and advice are at the ends
        shown = f"{shown[:500]} ... {shown[-300:]}"
    print("peft-flow:", shown, file=sys.stderr)


LONGEST_LINE = 1_500
"""Characters. The longest line that names every fault of a data set had about a thousand."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="peft-flow",
        description="Fine-tune a classifier with PEFT, judge it against its foundation model, keep it in MLflow.",
        **COMMON,
    )
    parser.add_argument("--version", action="version", version=f"peft-flow {version('peft-flow')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(
            command.name, usage=command.usage(), help=command.help, description=command.description, **COMMON
        )
        if command.kind:
            add_fields(one, command.kind, command.places)
        for argument in command.arguments:
            one.add_argument(argument.name, help=argument.help.replace("%", "%%"), **argument.more)
        one.set_defaults(command=command.run, parser=parser)
    return parser


def add_fields(command: argparse.ArgumentParser, kind: type[Config], arguments: Sequence[str] = ()) -> None:
    """An option for each field of `kind`, which `overrides` gives back; for `arguments`, a place without a name."""
    inner = dict(sections(kind))
    for name, section in inner.items():
        group = command.add_argument_group(name, kind.model_fields[name].description or section.__doc__)
        for field in section.model_fields:
            add_option(group, f"{name}.{field}", section, field)
    for field in arguments:
        text = (kind.model_fields[field].description or "").replace("%", "%%")
        command.add_argument(f"field {field}", metavar=field.upper(), help=text)
    group = command.add_argument_group("run")
    for field in (name for name in kind.model_fields if name not in {*inner, *arguments}):
        add_option(group, field, kind, field)
    command.set_defaults(kind=kind)


def add_option(group: Any, dotted: str, section: type[Config], field: str) -> None:
    info = section.model_fields[field]
    allowed = choices(section, field)
    text = (info.description or "") + (f" One of: {', '.join(allowed)}." if allowed else "")
    default = shown(info.default)
    notes = "; ".join(filter(None, (bounds(info), f"default {default}" if default else "")))
    flag: dict[str, Any] = {"nargs": "?", "const": "true"} if info.annotation is bool else {}
    group.add_argument(
        f"--{dotted}",
        dest=f"field {dotted}",
        metavar=field.upper(),
        default=argparse.SUPPRESS,
        help=(f"{text} ({notes})" if notes else text).replace("%", "%%"),
        **flag,
    )


def bounds(info: FieldInfo) -> str:
    """`≥ 1, ≤ 4096`; nothing where a field has no bounds."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    pairs = ((sign, getattr(one, key, None)) for one in info.metadata for key, sign in signs.items())
    return ", ".join(f"{sign} {value:,}".removesuffix(".0") for sign, value in pairs if value is not None)


def shown(default: object) -> str:
    """As it is typed; nothing where the field is required or nothing is the default."""
    if default in (None, (), {}, PydanticUndefined):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    sys.exit(main())
