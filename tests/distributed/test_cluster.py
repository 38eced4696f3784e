"""The scripts for clusters, as far as they run without one: two nodes on the loopback interface, a mock Slurm."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import make_text
from tests.distributed.test_processes import OPTIONS, losses, trained
from tests.zygote import Zygote

from gpt2.files import read_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bash, gloo and signals")
SLURM = Path(__file__).parents[2] / "docs/cluster/slurm.sh"

SRUN = """#!/usr/bin/env bash
# Both nodes are this machine.
for node in 0 1; do SLURM_NODEID=$node "$@" & done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
show) printf 'localhost\\nother\\n' ;;
requeue) echo "$2" > requeued ;;
esac
"""
SCANCEL = """#!/usr/bin/env bash
pkill "-${1#--signal=}" -f "[t]orchrun .*run slurm-$2"
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("localhost", 0))
        return made.getsockname()[1]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, and Slurm's commands before all others."""
    (tmp_path / "notes.txt").write_text(make_text(400))
    (tmp_path / "bin").mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    paths = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    values = {
        "PATH": ":".join(paths),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    for name, value in {**values, "SLURM_JOB_NODELIST": "node[0-1]", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_two_nodes_train_as_one_process(zygote: Zygote, cluster: Path) -> None:
    trained(zygote, cluster, "notes.txt", "--run", "one", *OPTIONS)
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node),
             "--master-addr", "localhost", "--master-port", port, "-m", "--", "gpt2", "train", "notes.txt",
             "--run", "two", "--auto-resume", *OPTIONS],
            cwd=cluster, stderr=subprocess.PIPE, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert losses(cluster / "runs/two") == pytest.approx(losses(cluster / "runs/one"), rel=1e-6)


@pytest.mark.slow
def test_slurms_script_saves_before_the_time_is_up_and_goes_on(zygote: Zygote, cluster: Path) -> None:
    script = cluster / "slurm.sh"
    script.write_text(SLURM.read_text().replace("29500", str(free_port())))
    argv = [
        "bash",
        "slurm.sh",
        "notes.txt",
        "--run",
        f"slurm-{os.getpid()}.0",
        *OPTIONS,
        "--train.steps",
        "150",
        "--train.eval-every",
        "50",
    ]
    job = subprocess.Popen(argv, cwd=cluster, stderr=subprocess.PIPE, text=True)
    metrics = cluster / f"runs/slurm-{os.getpid()}.0/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1 sends it
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0, said
    assert (cluster / "requeued").read_text().strip() == str(os.getpid()), said
    state = read_json(cluster / f"runs/slurm-{os.getpid()}.0/run_state.json")
    assert state["status"] == "preempted", said
    assert 0 < state["step"] < 150
    again = subprocess.run(argv, cwd=cluster, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "Going on from" in again.stderr
    assert read_json(cluster / f"runs/slurm-{os.getpid()}.0/run_state.json") == {"status": "completed", "step": 150}
