"""`python -m tasks.training.launcher PARENT COUNT FOLDER` is torchrun for tasks/training/rank.py. It ends with PARENT.

The processes find each other by files in FOLDER, which is this user's alone: torchrun's own way listens on all
networks, asks nobody who he is, and unpickles what it is sent.
"""

import json
import logging
import os
import socket
import sys

from tasks.base.fresh_process import end_with


def main() -> None:
    parent, count, folder = sys.argv[1:]
    end_with(int(parent))
    logging.disable()  # what goes wrong is told by the process that met it

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # which would listen for the processes
    for library in ("GLOO", "NCCL"):
        os.environ[f"{library}_SOCKET_IFNAME"] = loopback()
    by_files = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", f"{folder}/torchrun"]
    here = ["--nnodes", "1", "--nproc-per-node", count, "--local-addr", "127.0.0.1", "--log-dir", os.devnull]
    try:
        run.run(run.parse_args([*by_files, *here, "-m", "tasks.training.rank", str(os.getpid()), folder]))
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
