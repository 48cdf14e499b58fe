"""What the adapter is compared with: one record for each, from which tables, gate and error analysis derive.

How each is measured says tasks/evaluation/references.py.
"""

from typing import Literal, NamedTuple

ReferenceName = Literal["majority", "tfidf", "probe", "zero_shot", "champion"]
"""Those that a run may be told to leave out."""


class Reference(NamedTuple):
    name: str
    title: str
    """What people read, in tables. In a sentence, what stands before a plus."""
    short_title: str
    """The same where there is little room."""
    learns_from_train: bool = False
    """From the run's own training rows: it can bear witness about labels."""
    must_be_beaten: bool = False
    """By the first model of a name: what this one does not need, that model need not be for."""


RIVALS: dict[str, Reference] = {}
"""By name, in the order of tables."""

TITLES = {"tuned": "adapter"}
"""What people read for each rung of the ladder."""

NAMES = TITLES.copy()
"""The same in a sentence."""

SHORT_TITLES = TITLES.copy()
"""The same where there is little room."""


def add(rival: Reference) -> None:
    RIVALS[rival.name] = rival
    TITLES[rival.name], SHORT_TITLES[rival.name] = rival.title, rival.short_title
    NAMES[rival.name] = in_a_sentence(rival.title)


def in_a_sentence(title: str) -> str:
    return title.partition(" + ")[0]


for each in (
    Reference("baseline", "foundation model", "foundation"),
    Reference("majority", "majority class", "majority"),
    Reference("tfidf", "TF-IDF + logistic regression", "TF-IDF", learns_from_train=True, must_be_beaten=True),
    Reference("probe", "linear probe", "probe", learns_from_train=True, must_be_beaten=True),
    Reference("zero_shot", "zero-shot language model", "zero-shot"),
    Reference("champion", "champion", "champion"),
):
    add(each)


def learning_from_train() -> tuple[str, ...]:
    return tuple(rival.name for rival in RIVALS.values() if rival.learns_from_train)


def to_beat() -> tuple[str, ...]:
    """References that the first model of a name must be better than."""
    return tuple(rival.name for rival in RIVALS.values() if rival.must_be_beaten)
