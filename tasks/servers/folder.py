"""Where a deployment's run goes: the folder of the worker that runs it, on whatever machine; prefect.yaml names it."""

import os


def of_worker() -> dict[str, str]:
    """As a pull step of Prefect. It runs in an empty folder, with the environment that the worker was started in."""
    os.chdir(os.environ.get("PWD", "."))
    return {"directory": os.getcwd()}
