"""`python -m tasks.training.launcher PARENT COUNT FOLDER` is torchrun for tasks/training/rank.py. It ends with PARENT.

The processes find each other by files in FOLDER, which is this user's alone: torchrun's own way listens on all
networks, asks nobody who he is, and unpickles what it is sent. Where a place among several machines follows (`Place`
of machines.py), they meet there by torchrun's static rendezvous, which asks nobody either but unpickles nothing.
"""

import json
import logging
import os
import socket
import sys

from tasks.base.fresh_process import end_with


def main() -> None:
    parent, count, folder, *place = sys.argv[1:]
    end_with(int(parent))
    logging.disable()  # what goes wrong is told by the process that met it

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if place:
        host, port, machines, number, own = place
        network = interface_of(own)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that an address has no name is no news
        among = ["--nnodes", machines, "--node-rank", number, "--local-addr", own]
        meeting = ["--rdzv-backend", "static", "--master-addr", host, "--master-port", port]
    else:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # which would listen for the processes
        network = loopback()
        among = ["--nnodes", "1", "--local-addr", "127.0.0.1"]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", f"{folder}/torchrun"]
    for library in ("GLOO", "NCCL"):
        os.environ[f"{library}_SOCKET_IFNAME"] = network
    options = [*meeting, *among, "--nproc-per-node", count, "--log-dir", os.devnull]
    try:
        run.run(run.parse_args([*options, "-m", "tasks.training.rank", str(os.getpid()), folder]))
    except ChildFailedError as error:
        killed = [-failure.exitcode for failure in error.failures.values() if failure.exitcode < 0]
        if killed:
            print(json.dumps(["killed", killed[0]]), flush=True)
        sys.exit(1)


def loopback() -> str:
    """Name of the network interface that leads to this machine itself."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


def interface_of(address: str) -> str:
    """Name of the network interface that has this address."""
    import psutil

    found = psutil.net_if_addrs().items()
    return next((name for name, ways in found if any(way.address.split("%")[0] == address for way in ways)), "")


if __name__ == "__main__":
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)

    main()
