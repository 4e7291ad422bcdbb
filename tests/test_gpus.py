"""The share of this machine's GPUs that a process gets. nvidia-smi is a stand-in: there is none here."""

import pytest

from alexnet_jax.system.gpus import share_of_gpus


@pytest.mark.parametrize(
    ("gpus", "jobs", "shares"),
    [
        (0, 3, [("", ""), ("", ""), ("", "")]),
        (4, 1, [("", "")]),
        (4, 2, [("0,2", ""), ("1,3", "")]),
        (4, 4, [("0", ""), ("1", ""), ("2", ""), ("3", "")]),
        (1, 2, [("0", "0.400"), ("0", "0.400")]),
        (2, 3, [("0", "0.400"), ("1", "0.400"), ("0", "0.400")]),
    ],
)
def test_gpus_and_their_memory_are_shared_out(gpus, jobs, shares, tmp_path, monkeypatch):
    listing = tmp_path / "nvidia-smi"
    listing.write_text(f'#!/bin/bash\nfor ((n = 0; n < {gpus}; n++)); do echo "GPU $n: H100"; done\n')
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    found = [share_of_gpus(job, jobs) for job in range(jobs)]
    assert [tuple(one.get(name, "") for name in names) for one in found] == shares


def test_what_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert share_of_gpus(0, 2) == {}
