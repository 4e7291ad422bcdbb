"""How a command ends: one line and its status, whatever goes wrong."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from networks import ROOT

from alexnet_jax.system import cli
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.signals import Interrupted


def ends(error: BaseException) -> int:
    """The status of a command whose main raises this."""

    def main(options) -> None:
        raise error

    return cli.Command(None, lambda options: None, main)([])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--mesh=3 is wrong"), 1, "error: --mesh=3 is wrong"),
        (InUse("busy"), 69, "error: busy"),
        (Interrupted("saved"), 75, "saved"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 1, "error: /data/x: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: the disk: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 1, "error: /data/x: Permission denied"),
        (MemoryError(), 1, "error: the memory is exhausted: choose a smaller --batch_size, or --accumulate in training"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1,
         "error: the memory is exhausted: choose a smaller --batch_size, or --accumulate in training"),
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:20381\nmore"), 1,
         "error: another process has ended or cannot be reached: run the command again (INTERNAL: Gloo AllGather failed: "
         "Connection closed by peer [127.0.0.1]:20381)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(capsys, error, status, line):
    assert ends(error) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("a bug"), KeyError("a bug")])
def test_a_mistake_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        ends(error)


PRINTS = """
from alexnet_jax.system import cli
def main(options):
    for _ in range(100_000):
        print("photo \\u00e4 \\udcff")
cli.Command(None, lambda options: None, main).run()
"""


def test_names_in_other_encodings_are_printed_in_a_c_locale_and_a_closed_pipe_is_no_error():
    c = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS], cwd=ROOT, env=c, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"photo \\xe4 \\udcff\n"
    process.stdout.close()  # as `head -1` does
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()


WAITS = """
import time
from pathlib import Path
from alexnet_jax.system import cli
def main(options):
    print("ready", flush=True)
    time.sleep(60)
cli.Command(None, lambda options: None, main).run()
"""


def test_ctrl_c_ends_a_command_with_one_line():
    process = subprocess.Popen([sys.executable, "-c", WAITS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"stopped by Ctrl-C\n"
    assert process.returncode == 130


def test_ctrl_c_while_a_command_is_imported_is_one_line_too():
    process = subprocess.Popen([sys.executable, "-m", "alexnet_jax.train"], cwd=ROOT, stderr=subprocess.PIPE)
    while "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"stopped by Ctrl-C\n"
    assert process.returncode == 130
