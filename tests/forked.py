"""`python forked.py 2 recipe.py …`: a recipe in several processes that share their imports, which take longer than a
tiny run. They get what `accelerate launch` gives its processes."""

import os
import runpy
import socket
import sys

import fl_i2moe.training.experiment

fl_i2moe.training.experiment.save_statistics_figures = lambda *_: None  # drawing takes longer than a tiny run


def run(rank: int, num_processes: int, port: int, arguments: list[str]) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    os.environ |= {name: str(x) for name, x in {**where, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    num_processes = int(sys.argv[1])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = []
    for rank in range(num_processes):
        if (process := os.fork()) == 0:
            run(rank, num_processes, port, sys.argv[2:])
            sys.exit()
        processes.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    sys.exit(max(map(abs, codes)))
