"""Runs and prepared sets in an object store: a real S3 server on this machine, moto's, in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from networks import SIZE, run, tiny_flags, tiny_source

from alexnet_jax.data.remote import local_store, send
from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.data.writer import write_store
from alexnet_jax.run.metrics import reproducible_rows
from alexnet_jax.system import lease
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.lease import Lease, newest
from alexnet_jax.system.stores import RemoteFolder, is_remote, local_folder

NEEDED = "pip install -r requirements-stores.txt"


@pytest.fixture(scope="module")
def server():
    """The address of a server with the bucket `bucket`."""
    for package in ("s3fs", "moto", "flask_cors"):
        pytest.importorskip(package, reason=f"{package} is not installed: {NEEDED}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """A folder there that no other test has."""
    import fsspec

    settings = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    settings |= {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "home"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def sent(store, tmp_path) -> str:
    """A data_dir in the store that has the tiny set."""
    path = store_path(tmp_path / "data", "tiny", SIZE)
    path.parent.mkdir()
    write_store(tiny_source(), path, SIZE)
    send(f"{store}/data", path)
    return f"{store}/data"


def test_a_prepared_set_is_fetched_once_and_is_the_one_that_was_sent(sent, tmp_path):
    path = local_store(sent, "tiny", SIZE)
    ours, theirs = open_store(store_path(tmp_path / "data", "tiny", SIZE)), open_store(path)
    assert path.is_relative_to(tmp_path / "home")
    assert theirs.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(theirs.splits["train"].images, ours.splits["train"].images)
    before = (path / "train_images.npy").stat().st_ino
    assert local_store(sent, "tiny", SIZE) == path
    assert (path / "train_images.npy").stat().st_ino == before


def test_a_set_that_has_changed_in_the_store_is_refused_and_never_used(sent):
    remote = RemoteFolder.at(f"{sent}/tiny-{SIZE}")
    pixels = bytearray(remote.read("train_images.npy") or b"")
    pixels[-1] ^= 1
    remote.write("train_images.npy", bytes(pixels))
    with pytest.raises(UserError, match="do not match the fingerprint"):
        local_store(sent, "tiny", SIZE)
    assert not store_path(local_folder(sent), "tiny", SIZE).exists()


def test_of_two_writers_the_second_is_refused_until_the_first_is_silent_for_long(store, monkeypatch):
    folder = RemoteFolder.at(f"{store}/run")
    monkeypatch.setattr(lease, "BEAT", 0.05)
    told = []
    first = Lease(folder, "a", told.append)
    with first:
        with pytest.raises(InUse, match="in use by process"), Lease(folder, "b", print):
            pass
        monkeypatch.setattr(lease, "LOST", -1.0)
        with Lease(folder, "b", print) as second:
            assert second.number == 2
            with pytest.raises(InUse, match="was taken over by"):
                first.check()
            for _ in range(100):
                if told:
                    break
                time.sleep(0.05)
            assert "was taken over by" in told[0]
    last = newest(folder)
    assert last is not None
    assert (last.number, last.copy, last.released) == (2, "b", True)


@pytest.mark.slow
def test_a_run_in_a_store_is_resumed_on_another_machine_as_if_it_had_never_moved(sent, store, tmp_path, monkeypatch):
    flags = {"checkpoint_every": 2, "mesh": "1x1"}
    whole = run("train", *tiny_flags(tmp_path / "data", tmp_path / "whole", **flags, steps=6))
    assert whole.returncode == 0, whole.stderr
    url = f"{store}/run"
    first = run("train", *tiny_flags(sent, url, **flags, steps=4))
    assert first.returncode == 0, first.stderr
    assert json.loads(RemoteFolder.at(url).read("checkpoints/4.json") or b"")["folder"] == "4"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    second = run("train", *tiny_flags(sent, url, **flags, steps=6))
    assert second.returncode == 0, second.stderr
    copy = local_folder(url)
    assert copy.is_relative_to(tmp_path / "elsewhere")
    assert reproducible_rows(copy) == reproducible_rows(tmp_path / "whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    scores = [
        json.loads(run("evaluate", f"--workdir={workdir}").stdout.splitlines()[-1]) for workdir in (url, tmp_path / "whole")
    ]
    assert scores[0] == scores[1]
    assert scores[0]["step"] == 6
    assert not (local_folder(url) / "checkpoints" / "4" / "params").exists()  # what is not asked for is not fetched


def test_a_store_that_is_not_there_is_one_line(store, tmp_path, monkeypatch):
    result = run("train", *tiny_flags(tmp_path, "s3://nobucket/run"))
    assert result.returncode == 1
    assert "make the bucket nobucket first" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["az://bucket/run", "s3:/bucket/run", "s3://", "s3://bucket/../run", "s3://bucket//run"])
def test_a_name_that_is_no_folder_of_a_store_makes_no_local_folder(name):
    before = set(os.listdir())
    for command in ("train", "evaluate"):
        result = run(command, f"--workdir={name}")
        assert result.returncode == 1
        assert "is no folder that can be used" in result.stderr
    assert set(os.listdir()) == before


def test_what_has_to_be_local_says_so(tmp_path):
    result = run("sweep", "--workdir=s3://bucket/sweep", "--space=experiments/sweeps/quickstart.toml", "--trials=1")
    assert result.returncode == 1
    assert "--workdir=s3://bucket/sweep is in an object store" in result.stderr
    assert not is_remote("runs/first")
    assert local_folder("runs/first") == Path("runs/first")
