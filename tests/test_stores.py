"""Runs and prepared sets in an object store: a real S3 server on this machine, moto's, in a process of its own."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import ROOT, SIZE, Finished, run, tiny_flags
from PIL import Image

from alexnet_jax.data.remote import local_store, send
from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.run import sender
from alexnet_jax.run.metrics import reproducible_rows
from alexnet_jax.run.mirror import MARKER, reading_copy
from alexnet_jax.run.sender import training_copy
from alexnet_jax.system import lease, stores
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.lease import Lease
from alexnet_jax.system.stores import RemoteFolder, copy_folder

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
    point_at(server, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return f"s3://bucket/{tmp_path.name}"


def point_at(address: str, monkeypatch) -> None:
    """From now on s3:// is there."""
    settings = {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget_settings()


def forget_settings() -> None:
    """fsspec keeps the file systems that it has made."""
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def sent(store, data_dir) -> str:
    """A data_dir in the store that has the tiny set."""
    send(f"{store}/data", store_path(data_dir, "tiny", SIZE))
    return f"{store}/data"


def on_another_machine(monkeypatch, tmp_path: Path, name: str) -> None:
    """From now on the copies are elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def write_checkpoint(folder: str, step: int, content: str) -> None:
    """What a sender takes for a checkpoint."""
    path = Path(folder) / "checkpoints" / str(step)
    (path / "params").mkdir(parents=True, exist_ok=True)
    (path / "params" / "data").write_text(content)
    (path / MARKER).write_text(f"marker of {content}")


@pytest.fixture
def killed(store, monkeypatch):
    """A run of which the store has checkpoint 1, and the copy 2 as well, because the process was killed."""
    with training_copy(store) as folder:
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")
        write_checkpoint(folder, 1, "one")
    with monkeypatch.context() as patch:
        patch.setattr(sender._Sender, "__exit__", lambda self, *_: self._closed.set())
        with training_copy(store) as folder:
            write_checkpoint(folder, 2, "two")
    return store


# Prepared sets.


@pytest.mark.slow
def test_a_set_prepared_into_a_store_is_fetched_once_on_another_machine(store, tmp_path, monkeypatch):
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            path = tmp_path / "photos" / split / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number, 7, 7)).save(path)
    command = ("prepare", f"--dataset=folder:{tmp_path / 'photos'}", f"--data_dir={store}", "--image_size=8")
    first = run(*command)
    assert first.returncode == 0, first.stderr
    made = next(copy_folder(store, "sets").glob("*-8"))
    on_another_machine(monkeypatch, tmp_path, "elsewhere")
    second = run(*command)
    assert "already prepared" in second.stderr
    fetched = copy_folder(store, "sets") / made.name
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
    inode = (fetched / "train_images.npy").stat().st_ino
    run(*command)
    assert (fetched / "train_images.npy").stat().st_ino == inode


@pytest.mark.slow
def test_a_fetch_that_was_cut_off_goes_on_where_it_was(store, data_dir, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 100_000)
    send(store, store_path(data_dir, "tiny", SIZE))
    read, whole, asked = RemoteFolder.read, [], []

    def cut(self, name, start=None, end=None):
        asked.append((name, start))
        if name == "train_images.npy" and start == 200_000 and not whole:
            raise KeyboardInterrupt
        return read(self, name, start, end)

    monkeypatch.setattr(RemoteFolder, "read", cut)
    with pytest.raises(KeyboardInterrupt):
        local_store(store, "tiny", SIZE)
    whole.append(True)
    asked.clear()
    path = local_store(store, "tiny", SIZE)
    assert min(start for name, start in asked if name == "train_images.npy") == 200_000
    open_store(path)


@pytest.mark.slow
def test_a_set_that_has_changed_in_the_store_is_refused_and_never_used(sent):
    remote = RemoteFolder.at(f"{sent}/tiny-{SIZE}")
    pixels = bytearray(remote.read("train_images.npy") or b"")
    pixels[-1] ^= 1
    remote.write("train_images.npy", bytes(pixels))
    with pytest.raises(UserError, match="do not match the fingerprint"):
        local_store(sent, "tiny", SIZE)
    assert not store_path(copy_folder(sent, "sets"), "tiny", SIZE).exists()


# Runs.


KILLED = """
import os, signal
from alexnet_jax.run.sender import _Sender
from alexnet_jax.run import sender
sender.LOOK_SECONDS = 0.1
send = _Sender._send_checkpoint
_Sender._send_checkpoint = lambda *of: (send(*of), os.kill(os.getpid(), signal.SIGKILL))
from alexnet_jax.train import COMMAND
COMMAND.run()
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_on_another_machine_as_if_it_had_never_moved(
    sent, store, data_dir, tmp_path, monkeypatch
):
    url, fields = f"{store}/run", {"checkpoint_every": 2, "mesh": "1x1", "steps": 6}
    whole = run("train", *tiny_flags(data_dir, tmp_path / "whole", **fields))
    assert whole.returncode == 0, whole.stderr
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # as here, because XLA's sums go by it
    killed = subprocess.run([sys.executable, "-c", KILLED, *tiny_flags(sent, url, **fields)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    on_another_machine(monkeypatch, tmp_path, "elsewhere")
    refused = run("train", *tiny_flags(sent, url, **fields))
    assert refused.returncode == InUse.status
    assert f"--workdir={url} is in use by process" in refused.stderr
    assert refused.stderr.count("\n") == 1
    monkeypatch.setattr(lease, "LOST", -1.0)
    resumed = run("train", *tiny_flags(sent, url, **fields))
    assert resumed.returncode == 0, resumed.stderr
    assert "fetching" in resumed.stderr
    assert resumed.stderr.splitlines()[-1] == f"{url} has all of the run"
    copy = copy_folder(url, "runs")
    assert copy.is_relative_to(tmp_path / "elsewhere")
    assert reproducible_rows(copy) == reproducible_rows(tmp_path / "whole")

    monkeypatch.chdir(tmp_path)
    results = [run("evaluate", f"--workdir={workdir}") for workdir in (url, tmp_path / "whole")]
    scores = [json.loads(result.stdout.splitlines()[-1]) for result in results]
    assert scores[0] == scores[1]
    assert scores[0]["step"] == 6
    Image.fromarray(np.arange(66 * 66 * 3, dtype=np.uint8).reshape(66, 66, 3)).save(tmp_path / "photo.png")
    tables = [run("predict", f"--workdir={workdir}", str(tmp_path / "photo.png")) for workdir in (url, tmp_path / "whole")]
    assert tables[0].returncode == 0, tables[0].stderr
    assert tables[0].stdout == tables[1].stdout
    tuned = run("train", *tiny_flags(sent, tmp_path / "tuned", init=url, mesh="1x1", steps=1))
    assert tuned.returncode == 0, tuned.stderr
    assert f"from {url}: conv1" in tuned.stdout + tuned.stderr
    assert (tmp_path / "tuned" / "mean.npy").read_bytes() == (tmp_path / "whole" / "mean.npy").read_bytes()


@pytest.mark.slow
def test_a_run_in_a_store_is_exported_on_another_machine(sent, store, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    url = f"{store}/run"
    trained = run("train", *tiny_flags(sent, url, mesh="1x1", steps=1))
    assert trained.returncode == 0, trained.stderr
    here = copy_folder(url, "runs")
    on_another_machine(monkeypatch, tmp_path, "elsewhere")
    found = []
    for number, workdir in enumerate((url, here)):
        path = tmp_path / f"{number}.safetensors"
        exported = run("convert", str(path), f"--workdir={workdir}", "--export=safetensors")
        assert exported.returncode == 0, exported.stderr
        found.append(safetensors.load_file(path))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_what_a_killed_process_had_not_sent_is_sent_by_the_next_one_on_this_machine(killed):
    there = RemoteFolder.at(killed)
    assert "checkpoints/2/params/data" not in there.list()
    with training_copy(killed) as folder:
        assert (Path(folder) / "checkpoints" / "2" / MARKER).exists()
    assert there.read("checkpoints/2/params/data") == b"two"


@pytest.mark.slow
def test_a_copy_that_somebody_has_deleted_deletes_nothing_in_the_store(killed):
    shutil.rmtree(copy_folder(killed, "runs"))
    with training_copy(killed) as folder:
        assert (Path(folder) / "checkpoints" / "1" / "params" / "data").read_text() == "one"
        shutil.rmtree(Path(folder) / "checkpoints")
    with training_copy(killed) as folder:
        (Path(folder) / "config.json").unlink()
        shutil.rmtree(Path(folder) / "checkpoints")
        write_checkpoint(folder, 2, "two")
    assert {"config.json", "checkpoints/1/params/data", "checkpoints/2/params/data"} < RemoteFolder.at(killed).list().keys()


@pytest.mark.slow
def test_what_a_killed_process_had_not_sent_is_kept_when_another_machine_has_trained_since(
    killed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lease, "LOST", -1.0)
    with monkeypatch.context() as patch:
        on_another_machine(patch, tmp_path, "elsewhere")
        with training_copy(killed) as folder:
            assert not (Path(folder) / "checkpoints" / "2").exists()
            write_checkpoint(folder, 3, "three")
    with training_copy(killed) as folder:
        assert sorted(path.name for path in (Path(folder) / "checkpoints").iterdir()) == ["1", "3"]
    kept = Path(f"{folder}.unsent-1")
    assert (kept / "checkpoints" / "2" / "params" / "data").read_text() == "two"
    assert f"what this machine had not sent is in {kept}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_that_is_not_all_there_is_not_read(killed):
    there = RemoteFolder.at(killed)
    there.write("checkpoints/5/params/data", b"half")
    folder = Path(reading_copy(killed))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["1"]
    there.write(f"checkpoints/5/{MARKER}", b"five")
    there.write("checkpoints/1/params/data", b"one again")
    there.write(f"checkpoints/1/{MARKER}", b"another")
    assert reading_copy(killed) == str(folder)
    assert (folder / "checkpoints" / "5" / "params" / "data").read_text() == "half"
    assert (folder / "checkpoints" / "1" / "params" / "data").read_text() == "one again"
    there.delete([f"checkpoints/1/{MARKER}"])
    assert reading_copy(killed) == str(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["5"]


@pytest.mark.slow
def test_the_store_keeps_what_the_run_keeps(store):
    there = RemoteFolder.at(store)
    with training_copy(store) as folder:
        Path(folder).mkdir()
        for name in ("config.json", "unsaved", "lock"):
            (Path(folder) / name).touch()
        write_checkpoint(folder, 1, "one")
        write_checkpoint(folder, 2, "two")
    assert {"config.json", "unsaved", "checkpoints/1/params/data", "checkpoints/2/params/data"} < there.list().keys()
    assert "lock" not in there.list()
    with training_copy(store) as folder:
        (Path(folder) / "unsaved").unlink()
        shutil.rmtree(Path(folder) / "checkpoints" / "1")
        (Path(folder) / "checkpoints" / "2").rename(Path(folder) / "checkpoints" / "2.orbax-checkpoint-tmp")
        (Path(folder) / "replaced" / "2").mkdir(parents=True)  # about to be saved again
    names = {name for name in there.list() if not name.startswith("lock/")}
    assert names == {"config.json", "checkpoints/2/params/data", f"checkpoints/2/{MARKER}"}


@pytest.mark.slow
def test_a_run_that_ends_in_an_error_is_sent_too(store, capsys):
    with contextlib.suppress(InterruptedError), training_copy(store) as folder:
        write_checkpoint(folder, 1, "one")
        raise InterruptedError
    assert RemoteFolder.at(store).read("checkpoints/1/params/data") == b"one"
    assert capsys.readouterr().err == f"{store} has all of the run\n"
    with training_copy(store):  # at once: the lock has been given up
        pass


@pytest.mark.slow
def test_of_two_writers_the_second_is_refused_until_the_first_is_silent_for_long(store, monkeypatch):
    folder = RemoteFolder.at(f"{store}/run")
    monkeypatch.setattr(lease, "BEAT", 0.05)
    told = []
    with Lease(folder, "", told.append) as first:
        with pytest.raises(InUse, match="in use by process"), Lease(folder, "", print):
            pass
        monkeypatch.setattr(lease, "LOST", -1.0)
        with Lease(folder, "", print) as second:
            assert not second.continued
            with pytest.raises(InUse, match="was taken over by"):
                first.check()
            for _ in range(100):
                if told:
                    break
                time.sleep(0.05)
            assert "was taken over by" in told[0]
            second.release()
    monkeypatch.setattr(lease, "LOST", 300.0)
    with Lease(folder, "", print):  # at once
        pass
    with pytest.raises(InUse, match="in use by process"), Lease(folder, "another's", print):
        pass
    (name,) = folder.below("lock").list()
    folder.below("lock").write(name, b"{damaged")
    with pytest.raises(InUse, match="in use by another process"), Lease(folder, "", print):
        pass


@pytest.mark.slow
def test_a_second_trainer_on_this_machine_is_refused_at_once(store):
    with (
        training_copy(store),
        pytest.raises(InUse, match="is in use by another process on this machine"),
        training_copy(store),
    ):
        pass


def test_several_processes_do_not_train_into_a_store(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="only a single process can train"), training_copy("s3://bucket/run"):
        pass


@pytest.mark.slow
def test_of_two_that_take_a_lock_at_once_the_store_lets_one(store):
    folder = RemoteFolder.at(f"{store}/run").below("lock")
    assert [folder.create("000001", content) for content in (b"a", b"b")] == [True, False]
    assert folder.read("000001") == b"a"


# Failures: one line each, and nothing is lost.


def train_while_the_store_goes_away(workdir: str, folders: list[Path], monkeypatch) -> None:
    """Raises UserError at the end. `folders` gets the copy."""
    monkeypatch.setattr(sender, "LOOK_SECONDS", 0.05)
    with training_copy(workdir) as folder:
        folders.append(Path(folder))
        folders[0].mkdir()
        (folders[0] / "config.json").write_text("{}")
        write_checkpoint(folder, 1, "one")
        monkeypatch.setattr(RemoteFolder, "list", gone)
        time.sleep(0.5)


@pytest.mark.slow
def test_a_store_that_goes_away_in_the_middle_leaves_the_run_on_this_machine(store, monkeypatch, capsys):
    folders, wanted = list[Path](), r"it is gone; all of the run is in .*, and the same command sends it"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=wanted):
        train_while_the_store_goes_away(store, folders, patch)
    assert capsys.readouterr().err.count(f"it is gone; the copy in {folders[0]} has everything") == 1
    with training_copy(store) as folder:  # it is back
        assert (Path(folder) / "checkpoints" / "1" / "params" / "data").read_text() == "one"
    assert RemoteFolder.at(store).read("checkpoints/1/params/data") == b"one"


def gone(self, *_):
    """In place of a method of a folder whose store does not answer."""
    raise UserError(f"{self.url} cannot be used: it is gone")


REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Refusing(BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", str(len(REFUSED)))
        self.end_headers()
        self.wfile.write(REFUSED)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def refusing():
    """The address of a server that answers 403."""
    with HTTPServer(("127.0.0.1", 0), Refusing) as there:
        thread = threading.Thread(target=there.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{there.server_port}"
        there.shutdown()
        thread.join()


def says_in_one_line(result: Finished, *wanted: str) -> None:
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1
    for text in wanted:
        assert text in result.stderr


@pytest.mark.slow
def test_a_store_that_refuses_is_one_line(store, refusing, tmp_path, monkeypatch):
    says_in_one_line(run("train", *tiny_flags(tmp_path, "s3://nobucket/run")), "make the bucket nobucket first")
    says_in_one_line(run("evaluate", f"--workdir={store}"), f"--workdir={store} holds no run")
    says_in_one_line(run("train", *tiny_flags(store, tmp_path / "run")), "is not prepared at", f"--data_dir={store}")
    RemoteFolder.at(store).write("photo.jpg", b"a photograph")
    says_in_one_line(run("train", *tiny_flags(tmp_path, store)), "is not a run, such as photo.jpg: choose a new folder")
    assert RemoteFolder.at(store).list().keys() == {"photo.jpg"}
    point_at(refusing, monkeypatch)
    says_in_one_line(run("evaluate", f"--workdir={store}"), f"{store} cannot be used: Access Denied", "AWS_ACCESS_KEY_ID")
    point_at("http://127.0.0.1:1", monkeypatch)
    says_in_one_line(run("predict", f"--workdir={store}", "x.jpg"), "Could not connect", "AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_settings()
    says_in_one_line(run("evaluate", f"--workdir={store}"), "Unable to locate credentials", "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_package_that_is_missing_is_one_line(scheme, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, scheme, raising=False)
    says_in_one_line(run("evaluate", f"--workdir={scheme}://bucket/run"), f"this needs {package}", NEEDED)


@pytest.mark.parametrize("name", ["az://bucket/run", "s3:/bucket/run", "s3://", "s3://bucket/../run", "s3://bucket//run"])
def test_a_name_that_is_no_folder_of_a_store_makes_no_local_folder(name, tmp_path):
    before = set(os.listdir(ROOT))
    for result in (
        run("train", *tiny_flags(tmp_path, name)),
        run("train", *tiny_flags(name, tmp_path / "run")),
        run("evaluate", f"--workdir={name}"),
        run("prepare", f"--data_dir={name}"),
    ):
        says_in_one_line(result, f"{name} is no folder that can be used")
    assert set(os.listdir(ROOT)) == before


def test_what_has_to_be_on_this_machine_says_so(tmp_path):
    before = set(os.listdir(ROOT))
    (tmp_path / "net.safetensors").touch()
    for command, words in {
        "sweep": ("--workdir=s3://bucket/sweep", "--space=experiments/sweeps/quickstart.toml", "--trials=1"),
        "convert": ("safetensors", str(tmp_path / "net.safetensors"), "--workdir=s3://bucket/run"),
        "report": ("--workdir=runs/first", "--out=s3://bucket/report.html"),
    }.items():
        says_in_one_line(run(command, *words), "is in an object store, and this has to be on this machine")
    assert set(os.listdir(ROOT)) == before
