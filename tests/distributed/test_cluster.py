"""The scripts for clusters, as far as that goes without one: two nodes on the loopback interface, a mock Slurm."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from tests.conftest import make_text
from tests.distributed.test_processes import OPTIONS, losses, trained
from tests.zygote import Zygote

from gpt2.files import read_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bash, gloo and signals")
SCRIPTS = Path(__file__).parents[2] / "docs/cluster"
SLURM = SCRIPTS / "slurm.sh"

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


def shellcheck(script: str) -> str:
    """What it objects to."""
    command = ["shellcheck", "--shell=bash", "-"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, input=script, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    ).stdout


def test_shellcheck_has_nothing_to_object_to() -> None:
    sky = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    assert [shellcheck(script) for script in (SLURM.read_text(), sky["setup"], sky["run"])] == ["", "", ""]
    assert "SC2086" in shellcheck("cd $1 || exit")


def of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """A JSON schema of an object that has these and no other."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


NAME, COUNT = {"type": "string", "minLength": 1, "maxLength": 253}, {"type": "integer", "minimum": 1}
WORDS = several({"type": "string"})
RESOURCES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
CONTAINER = of(
    {"name": NAME, "volumeMounts": several(of({"name": NAME, "mountPath": NAME}, "name", "mountPath"))}, "name"
)
VOLUME = of({"name": NAME, "persistentVolumeClaim": of({"claimName": NAME}, "claimName")}, "name")
POD = of(
    {"terminationGracePeriodSeconds": COUNT, "volumes": several(VOLUME), "containers": several(CONTAINER)},
)
JOB = of({"name": NAME, "template": of({"spec": of({"template": of({"spec": POD})})})}, "name")
PATCH = of({"template": of({"spec": of({"replicatedJobs": several(JOB)})})})
TRAINER = of(
    {
        "image": {"type": "string"},
        "command": WORDS,
        "args": WORDS,
        "numNodes": COUNT,
        "numProcPerNode": COUNT,
        "resourcesPerNode": of({"requests": RESOURCES, "limits": RESOURCES}),
    }
)
TRAINJOB = of(
    {
        "apiVersion": {"const": "trainer.kubeflow.org/v1alpha1"},
        "kind": {"const": "TrainJob"},
        "metadata": of({"name": NAME}, "name"),
        "spec": of(
            {
                "runtimeRef": of({"name": NAME}, "name"),
                "trainer": TRAINER,
                "runtimePatches": several(of({"manager": NAME, "trainingRuntimeSpec": PATCH}, "manager")),
            },
            "runtimeRef",
        ),
    },
    "apiVersion", "kind", "metadata", "spec",
)  # fmt: skip
"""What we use of the resource's definition in Kubeflow Trainer 2.3.0, trainer.kubeflow.org_trainjobs.yaml."""


def test_the_trainjob_has_the_names_and_types_of_its_resource() -> None:
    job = yaml.safe_load((SCRIPTS / "trainjob.yaml").read_text())
    jsonschema_rs.validate(TRAINJOB, job)
    job["spec"]["trainer"]["numProcsPerNode"] = job["spec"]["trainer"].pop("numProcPerNode")
    assert not jsonschema_rs.is_valid(TRAINJOB, job)


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
    said = [node.communicate(timeout=180)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert losses(cluster / "runs/two") == pytest.approx(losses(cluster / "runs/one"), rel=1e-6)


RUN = """#!/usr/bin/env bash
# A run that ends as $ENDED says when it is told to, with the exit code that torchrun gives it.
end() {
    mkdir -p runs/web
    [ -z "$ENDED" ] || printf '{\\n  "status": "%s",\\n  "step": 3\\n}\\n' "$ENDED" > runs/web/run_state.json
    exit 1
}
trap end USR1
touch begun
while :; do sleep 0.02; done
"""


@pytest.mark.parametrize("name", [("--run", "web"), ("--run=web",)])
@pytest.mark.parametrize(
    ("ended", "again"),
    [("preempted", True), ("", True), ("failed", False), ("completed", False), ("stopped early", False)],
)
def test_slurms_script_asks_how_the_run_ended(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, ended: str, again: bool, name: tuple[str, ...]
) -> None:
    (cluster / "bin/srun").write_text(RUN)
    (cluster / "bin/scancel").write_text("#!/bin/sh\nexit 1\n")  # the script then signals by itself
    monkeypatch.setenv("ENDED", ended)
    job = subprocess.Popen(["bash", SLURM, "notes.txt", *name, "--train.steps", "9"], cwd=cluster)
    while not (cluster / "begun").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=180) == 1
    assert (cluster / "requeued").exists() == again


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
    _, said = job.communicate(timeout=180)
    assert job.returncode != 0, said
    assert (cluster / "requeued").read_text().strip() == str(os.getpid()), said
    state = read_json(cluster / f"runs/slurm-{os.getpid()}.0/run_state.json")
    assert state["status"] == "preempted", said
    assert 0 < state["step"] < 150
    again = subprocess.run(argv, cwd=cluster, capture_output=True, text=True, check=False, timeout=180)
    assert again.returncode == 0, again.stderr
    assert "Going on from" in again.stderr
    assert read_json(cluster / f"runs/slurm-{os.getpid()}.0/run_state.json") == {"status": "completed", "step": 150}
