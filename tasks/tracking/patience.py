"""An MLflow that does not answer: whether and how long to wait, and what to tell the user."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tasks.base.disk import causes
from tasks.base.trouble import ask_again, first_line, growing_pauses, is_network_trouble
from tasks.settings.fields import InputError
from tasks.tracking.address import public_uri, store_is_ours


def told_to_stop(error: BaseException) -> bool:
    """Whether a signal or a cancelled flow is at the bottom of it: then Prefect's server may be gone first, and
    what is raised on the way out says only that it does not answer."""
    return any(not isinstance(cause, Exception) for cause in causes(error))


def reason(error: BaseException) -> str:
    """In a few words: `Connection refused` is at the bottom of three exceptions, each of which quotes the next."""
    told = [cause.strerror for cause in causes(error) if isinstance(cause, OSError) and cause.strerror]
    return told[-1] if told else first_line(error)


T = TypeVar("T")


def answered(ask: Callable[[], T], seconds: float, waiting: Callable[[Exception], None]) -> T:
    """What `ask` gives; where MLflow does not answer, `waiting` is told and it is asked again, for so many seconds."""
    return ask_again(ask, growing_pauses(seconds), lambda error: not why_refused(error) and may_recover(error), waiting)


def may_recover(error: Exception) -> bool:
    """Whether waiting may help: a server that is gone, overloaded or starting, a database that is locked.

    Or a row that another run has just added: two runs on the same data log the same data set, and MLflow looks for it
    before it adds it. The next time it is found.
    """
    from mlflow.exceptions import MlflowException

    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    return is_network_trouble(error) or status >= 500 or status == 429 or "IntegrityError" in str(error)


def why_refused(error: Exception) -> str:
    """What to say where MLflow turns us away for good."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        return (
            f"MLFLOW_TRACKING_URI: {public_uri()} refuses access; check MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    return ""


# --- what others have told --------------------------------------------------------------------------------------------


class Refused(InputError):
    """MLflow knows us and does not let us."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """A server that does not answer is the user's to start, one that turns us away the user's to ask: InputError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if refusal := why_refused(error):
            raise Refused(refusal) from error
        if not store_is_ours() and is_network_trouble(error):
            raise InputError(f"MLFLOW_TRACKING_URI: {public_uri()} does not answer; start it or unset it") from error
        raise


ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers where it does not have what it is asked for."""
