"""The history of a registered model as a page in Prefect."""

import base64
import re

from tasks.base.events import in_flow
from tasks.base.progress import warn
from tasks.base.records import digest
from tasks.registry.history import History, history_of, history_text


def publish(name: str) -> None:
    """The history as an artifact of the flow run at hand, with its picture. It never disturbs the run."""
    if not in_flow():
        return
    from prefect.artifacts import create_markdown_artifact

    try:
        history = history_of(name)
        create_markdown_artifact(page(history), key=artifact_key(name), description=f"All versions of {name}")
    except Exception as error:
        warn("the history of %s is not shown: %s", name, error)


def page(history: History) -> str:
    from tasks.registry.timeline import draw

    picture = ""
    if history.scores:
        picture = f"![History](data:image/png;base64,{base64.b64encode(draw(history)).decode()})\n\n"
    return f"# History of {history.name}\n\n{picture}{history_text(history, links=True)}\n"


def artifact_key(name: str) -> str:
    """`history-NAME` in the letters that Prefect takes; names that would lose theirs get a digest."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"history-{plain if plain == name else '-'.join(filter(None, (plain, digest(name)[:6])))}"
