"""`python -m tasks.training.launcher PARENT COUNT` is torchrun for tasks/training/rank.py. It ends with PARENT."""

import json
import logging
import os
import socket
import sys

from tasks.base.fresh_process import end_with


def main() -> None:
    parent, count = sys.argv[1:]
    end_with(int(parent))
    logging.disable()  # what goes wrong is told by the process that met it

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for library in ("GLOO", "NCCL"):  # nobody else hears them, and the machine needs no name
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback())
    own = ["-m", "tasks.training.rank", str(os.getpid())]
    alone = ["--standalone", "--local-addr", "127.0.0.1", "--log-dir", os.devnull]
    try:
        run.run(run.parse_args([*alone, "--nproc-per-node", count, *own]))
    except ChildFailedError as error:
        killed = [-failure.exitcode for failure in error.failures.values() if failure.exitcode < 0]
        if killed:
            print(json.dumps(["killed", killed[0]]), flush=True)
        sys.exit(1)


def loopback() -> str:
    """Name of the network interface that leads to this machine itself."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


if __name__ == "__main__":
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)

    main()
