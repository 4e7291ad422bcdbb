"""launch/slurm on a real Slurm: a controller and two nodes on this machine's loopback, without installing anything."""

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from networks import ROOT, tiny_config, tiny_flags
from test_train import leaves_of

from alexnet_jax.run.metrics import reproducible_rows
from alexnet_jax.training import train

missing = [
    name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
]
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(missing), reason=f"Slurm is not installed: {', '.join(missing)}")]
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# At larger rates the loss falls until rounding, which differs among meshes, decides on which side of zero units lie.
RUN = {
    "steps": 60, "log_every": 5, "eval_every": 20, "checkpoint_every": 20, "mesh": "auto", "learning_rate": 0.0001,
}  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("localhost", 0))
        return [probe.getsockname()[1] for probe in probes]


class Slurm:
    """The commands of one cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = f"{os.environ['PATH']}:/usr/sbin"
        coordinator = f"localhost:{free_ports(1)[0]}"  # the nodes' names cannot be looked up here
        self.environment = os.environ | {
            "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "VENV": sys.prefix, "JAX_COORDINATOR_ADDRESS": coordinator
        }  # fmt: skip

    def __call__(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *flags: str, nodes: str = "1", array: str | None = None) -> str:
        """The number of a new job."""
        options = [f"--output={self.folder}/%A.log", f"--nodes={nodes}", *([f"--array={array}"] if array else [])]
        return self("sbatch", "--parsable", *options, "launch/slurm", *flags)

    def said(self, job: str) -> str:
        """The job's output so far, over all its starts."""
        log = self.folder / f"{job}.log"
        return log.read_text() if log.exists() else ""

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def wait(self, job: str, what: str, done: Callable[[], object], seconds: float = 240) -> None:
        """Until `done()`; a job that waits for its turn after a requeue is begun two seconds later, not minutes.

        In the second of its requeue Slurm would take the new start's credential for the old one's, which is revoked.
        """
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"no {what}:\n{self('scontrol', 'show', 'job', job)}\n{self.said(job)}"
            if self.state(job) == "PENDING":
                time.sleep(2)
                self("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.3)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """A cluster of the nodes n1 and n2, which are this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    text = CONFIGURATION.format(folder=folder, user=getpass.getuser(), ports=free_ports(3))
    (folder / "slurm.conf").write_text(text)
    cluster = Slurm(folder)
    daemons = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    with contextlib.ExitStack() as stack:
        for command in daemons:
            daemon = subprocess.Popen(
                [*command, "-f", f"{folder}/slurm.conf"], env=cluster.environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        deadline = time.monotonic() + 60
        while cluster("sinfo", "-h", "-t", "idle", "-o", "%D", check=False) != "2":
            logs = "\n".join(log.read_text() for log in folder.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.3)
        yield cluster
        cluster("scancel", "--user", getpass.getuser(), check=False)


def has_rows(workdir: Path, count: int) -> Callable[[], bool]:
    """Whether a run has written so many rows."""
    metrics = workdir / "metrics.jsonl"
    return lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= count


def trainer(workdir: Path, rank: int) -> int:
    """The process number of one trainer of a run."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_text().split("\0")
            environment = (folder / "environ").read_text().split("\0")
            if f"--workdir={workdir}" in command and "python" in command[0] and f"SLURM_PROCID={rank}" in environment:
                return int(folder.name)
    raise AssertionError(f"no trainer {rank} of {workdir}")


def test_requeued_jobs_resume_on_two_nodes_and_then_on_one(slurm, data_dir, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    train(tiny_config(data_dir, whole, **RUN))
    job = slurm.submit(*tiny_flags(data_dir, workdir, **RUN), nodes="1-2")
    slurm.wait(job, "rows", has_rows(workdir, 2))
    assert "1 per node on n[1-2]" in slurm.said(job)

    slurm("scontrol", "requeue", job)  # what a preemption does: SIGTERM to everything, SIGKILL after KillWait
    slurm.wait(job, "second start", lambda: "start 1 of job" in slurm.said(job))
    assert slurm.said(job).count(": stopped after step") == 2
    rows = len((workdir / "metrics.jsonl").read_text().splitlines())
    slurm.wait(job, "more rows", has_rows(workdir, rows + 1))

    os.kill(trainer(workdir, 1), signal.SIGKILL)
    slurm("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=lost")
    slurm.wait(job, "third start", lambda: "start 2 of job" in slurm.said(job))
    assert "n2: task 1: Killed" in slurm.said(job)  # the host is named
    slurm.wait(job, "end", lambda: slurm.state(job) == "COMPLETED")
    slurm("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert "1 per node on n1\n" in slurm.said(job)

    ours, theirs = reproducible_rows(workdir), reproducible_rows(whole)
    assert [(row["split"], row["step"], row["examples"]) for row in ours] == [
        (row["split"], row["step"], row["examples"]) for row in theirs
    ]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-4)
    for mine, other in zip(leaves_of(workdir, 60), leaves_of(whole, 60), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-3 * np.abs(other).max())


def test_an_error_of_the_users_is_not_tried_again(slurm, data_dir, tmp_path):
    job = slurm.submit(*tiny_flags(data_dir, tmp_path / "run", architecture="alexnet"), nodes="1")
    slurm.wait(job, "end", lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"))
    assert slurm.state(job) == "FAILED"
    assert slurm.said(job).count("launch/slurm: start") == 1
    assert "architecture" in slurm.said(job)


def test_the_elements_of_a_job_array_share_a_study(slurm, data_dir, tmp_path):
    space = tmp_path / "space.toml"
    space.write_text("[learning_rate]\nlog = [0.0003, 0.003]\n")
    flags = tiny_flags(data_dir, tmp_path / "sweep", eval_every=2, checkpoint_every=4)
    job = slurm.submit(*flags, f"--space={space}", "--trials=3", "--prune_after=0", array="1-2")
    slurm.wait(job, "end", lambda: not slurm("squeue", "-h", "-j", job))
    said = slurm.said(job)
    assert (tmp_path / "sweep" / "trials.csv").read_text().count(",complete,") == 3, said
    # Both have tried some, and each said so of its own.
    assert said.count("start 0 of job") == 2
    assert sorted(re.findall(r"^trial +(\d+) ", said, flags=re.MULTILINE)) == ["0", "1", "2"]


def test_slurm_would_take_the_script_with_its_own_options(slurm):
    slurm("sbatch", "--test-only", "--nodes=2", "--time=10", "launch/slurm", "--workdir=w")
