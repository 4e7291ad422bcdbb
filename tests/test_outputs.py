"""Files that commands write: whole or not at all, through links, with their permissions, and nothing left beside them."""

import errno
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from matplotlib.figure import Figure

from alexnet_jax import evaluate, predict, scores
from alexnet_jax.convert import exporter
from alexnet_jax.data.splits import whole
from alexnet_jax.data.store import Split
from alexnet_jax.figures.style import write_figure
from alexnet_jax.prediction import FeatureFile
from alexnet_jax.report import __main__ as report
from alexnet_jax.system import cli, files
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output, output_file, replacing, write_json


def names(folder: Path) -> list[str]:
    """Of everything in a folder, hidden files too."""
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_replaced_once_it_is_whole(tmp_path, mode, old):
    path = tmp_path / "naïve name [1]*.txt"
    if old is not None:
        path.write_text(old)
    with replacing(path, mode) as file:
        file.write("näw" if mode == "w" else "näw".encode())
        file.flush()
        assert (path.read_text() if path.exists() else None) == old
    assert path.read_text("utf-8") == "näw"
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("old", [None, "old"])
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)

    def stopped() -> None:
        with replacing(path) as file:
            file.write("half")
            raise error

    with pytest.raises(type(error)) as raised:
        stopped()
    assert raised.value is error
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_text() == old


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_nothing_is_left_when_the_disk_fails_at_the_end(tmp_path, monkeypatch, call):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, broken)
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "file", {})
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"
    with (
        pytest.raises(UserError, match=f"^{tmp_path}/file cannot be written: Input/output error$"),
        output_file(tmp_path / "file"),
    ):
        pass
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("length", [1, 2])
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path, length):
    """A link to a file of another folder, in one step and in two; relative, as `ln -s` makes them."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to("there/real.txt")
    (tmp_path / "b.txt").symlink_to("a.txt")
    link = tmp_path / ("a.txt", "b.txt")[length - 1]
    with replacing(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.txt").read_text() == "new"
    assert not (tmp_path / "there" / "real.txt").is_symlink()
    assert (names(tmp_path), names(tmp_path / "there")) == (["a.txt", "b.txt", "there"], ["real.txt"])


def test_a_link_to_a_file_that_is_not_there_makes_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "later")
    assert check_output("--out=link", tmp_path / "link") == tmp_path / "link"
    with output_file(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "later").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_permissions_stay_and_those_of_a_new_file_are_the_users(tmp_path, mode):
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(mode)
    (tmp_path / "plain").touch()
    for name in ("old", "new"):
        with replacing(tmp_path / name) as file:
            file.write("new")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    """Each writes all of its lines slowly; what stays is whole and of one of them."""

    def write(number: int) -> None:
        with replacing(tmp_path / "file") as file:
            for _ in range(50):
                file.write(f"{number}\n" * 100)
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    lines = (tmp_path / "file").read_text().split()
    assert (len(lines), len(set(lines))) == (5000, 1)
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "metrics.jsonl"):
        raise KeyboardInterrupt
    (name,) = names(tmp_path)
    assert name.startswith("metrics.jsonl.")
    assert name.endswith(".tmp")


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_the_longest_name_that_a_file_may_have_can_be_written(tmp_path, name):
    check_output("--out", tmp_path / name)
    write_json(tmp_path / name, [1])
    assert names(tmp_path) == [name]


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # absolute it may be too long


def to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("other"))
    path.symlink_to("other")


def circle(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def kept(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """What lies in a folder, without the time at which a link was last followed."""
    found = [(name, (folder / name).lstat()) for name in names(folder)]
    return [(name, status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found]


@pytest.mark.parametrize("make", [folder, fifo, listening, to_device, to_fifo, circle])
def test_only_a_regular_file_is_replaced(tmp_path, make):
    path = tmp_path / "x.png"
    make(path)
    before = kept(tmp_path)
    why = "it is a folder" if make is folder else "it is not a regular file"
    with pytest.raises(UserError, match=f"^--figure=x.png cannot be written: {why}$"):
        check_output("--figure=x.png", path, (".png",))
    with pytest.raises(UserError, match=f"^{path} cannot be written: {why}$"), output_file(path):
        raise AssertionError("the block has begun")
    with pytest.raises(FileExistsError, match=why), replacing(path):
        raise AssertionError("the block has begun")
    assert kept(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/x.npz", "--flag: there is no folder .*/none$"),
        ("file.txt/x.npz", "--flag: there is no folder .*/file.txt$"),
        ("dangling/x.npz", "--flag: there is no folder .*/dangling$"),
        ("x.np", "^--flag does not end in .npz$"),
        ("npz", "^--flag does not end in .npz$"),
        ("x.NPZ", "^--flag does not end in .npz$"),
        (".npz", "^--flag does not end in .npz$"),
        ("n" * 252 + ".npz", "^--flag cannot be written: File name too long$"),
        ("a\0b.npz", "^--flag cannot be written: .*null"),
    ],
)
def test_a_place_where_no_file_can_be_is_named_before_the_work(tmp_path, name, message):
    (tmp_path / "file.txt").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = names(tmp_path), tmp_path.stat()
    with pytest.raises(UserError, match=message):
        check_output("--flag", tmp_path / name, (".npz",))
    assert (names(tmp_path), tmp_path.stat()) == before


@pytest.mark.parametrize("protected", ["folder", "file"])
def test_what_may_not_be_written_is_named_before_the_work(tmp_path, monkeypatch, protected):
    """As the system says it for a read-only folder or file: root may write into both."""
    (tmp_path / "x.png").touch()
    shut = tmp_path if protected == "folder" else tmp_path / "x.png"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut)
    with pytest.raises(UserError, match=r"^--figure=x\.png cannot be written: it is write-protected$"):
        check_output("--figure=x.png", tmp_path / "x.png", (".png", ".svg"))


def full(*_: object) -> None:
    """In place of os.fsync: the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_that_names_the_file_whatever_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full)
    split = whole(Split(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32)))
    with (tmp_path / "rows").open("w+b") as rows:
        for name, write in {
            "p.npz": lambda path: scores.write_predictions(path, np.zeros((2, 1)), split, ["a"]),
            "f.npz": FeatureFile(rows).write,
            "f.png": lambda path: write_figure(Figure(), path),
            "f.svg": lambda path: write_figure(Figure(), path),
            "n.stablehlo": lambda path: exporter._write(path, b"abc"),
        }.items():
            with pytest.raises(UserError, match=f"^{tmp_path / name} cannot be written: No space left on device$"):
                write(tmp_path / name)
    assert names(tmp_path) == ["rows"]


@pytest.mark.parametrize(
    ("command", "words", "empty"),
    [
        (predict.COMMAND, ["--features="], "features"),
        (predict.COMMAND, ["--figure", ""], "figure"),
        (evaluate.COMMAND, ["--workdir=a", "--workdir="], "workdir"),
        (report.COMMAND, ["--out="], "out"),
    ],
)
def test_a_flag_from_an_unset_variable_is_refused(command, words, empty):
    options = flags.FlagValues()
    command.define(options)
    with pytest.raises(UserError, match=f"^--{empty} is empty: give it a value, or leave it out$"):
        cli.parse(options, words)


def test_a_flag_whose_default_is_empty_may_be_so():
    options = flags.FlagValues()
    flags.DEFINE_string("init", "", "", flag_values=options)
    flags.DEFINE_list("freeze", [], "", flag_values=options)
    assert cli.parse(options, ["--init=", "--freeze="]) == []
