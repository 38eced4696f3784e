"""The same command in several processes of this machine, by torchrun."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gpt2.errors import ConfigError

PROCESSES_TO_TRY_OUT = 8
"""So many may be started on any machine, to see how a larger one would do it; more than cores only wait."""

SECONDS_TO_SAVE = 600
"""From a signal until what still runs is killed: for the longest step, and the checkpoint after it.

A process that hangs because another has failed is killed after as long.
"""


def launch(argv: Sequence[str], processes: int, command: str = "train") -> None:
    """Run `gpt2 train` with these arguments in so many processes, and end as they end.

    torchrun's launcher stops all when one fails; its own report is not shown: the process that failed has said why.

    Raises:
        ConfigError: more processes than this machine has cores.
    """
    cores = os.cpu_count() or 1
    if processes > max(cores, PROCESSES_TO_TRY_OUT):
        raise ConfigError(
            f"distributed.processes is {processes:,}, but this machine has {cores} cores.",
            "Start one process for each GPU; without GPUs one for every few cores.",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )
    logging.disable(logging.CRITICAL)  # torchrun's own lines about a process that has already said why it failed
    try:
        elastic_launch(config, sys.executable)("-m", "gpt2", command, *argv)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code >= 0 else 128 - code) from None  # negative: the signal that killed it
    except SignalException as error:  # it was passed on to the processes, which have saved
        raise SystemExit(128 + error.sigval) from None
