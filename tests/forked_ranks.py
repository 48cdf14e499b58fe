"""What torchrun is to tasks/training/rank.py, by forks of a process that has the imports done; see forkserver.py."""

import json
import os
import signal
import sys
from collections.abc import Callable


def main() -> None:
    from tasks.base import environment  # noqa: F401
    from tasks.training import fit, rank, trainer  # noqa: F401

    _, here, folder, *place = sys.argv[1:]
    host, port, machines, machine, _ = place or ("", "", "1", "0", "")
    size, first = int(here) * int(machines), int(here) * int(machine)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": here}
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    sys.argv[1:] = [str(os.getpid()), folder]
    alive = {forked(number, first + number, rank.main) for number in range(int(here))}
    failed = False
    while alive:
        child, status = os.wait()
        alive.remove(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = True
            if code < 0:
                print(json.dumps(["killed", -code]), flush=True)
            for other in alive:
                os.kill(other, signal.SIGTERM)
    sys.exit(int(failed))


def forked(place: int, number: int, run: Callable[[], None]) -> int:
    if child := os.fork():
        return child
    code = 0
    try:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(place)}
        run()
    except SystemExit as end:
        code = int(bool(end.code))
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
