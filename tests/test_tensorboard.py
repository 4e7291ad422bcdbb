"""What TensorBoard shows: every number at its step, also after a resume; the config, and pictures."""

import io
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import ROOT, recording
from networks import recorded as row
from PIL import Image
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from alexnet_jax.inference.pictures import COLUMNS, confusion_sheet, kernel_sheet
from alexnet_jax.run.intervals import Progress


def events_in(workdir: Path) -> list[list[event_pb2.Event]]:
    """What TensorBoard would read, a list for each file in the order of their names.

    A record is its length in eight bytes, their checksum in four, the content, and its checksum in four.
    """
    files = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, found = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        files.append(found)
    return files


def scalars(events: list[event_pb2.Event]) -> dict[tuple[str, int], float]:
    """The curves."""
    return {key: value.simple_value for key, value in values(events).items() if value.HasField("simple_value")}


def values(events: list[event_pb2.Event]) -> dict[tuple[str, int], Any]:
    """Everything by tag and step."""
    return {(value.tag, event.step): value for event in events for value in event.summary.value}


def test_tensorboard_shows_every_number_at_its_step(tmp_path):
    magnitudes = {"conv1": {"kernel": 0.25, "kernel_update": 0.125}, "fc8": {"bias": 2.0}}
    with recording(tmp_path) as recorder:
        recorder.write(row(3))
        recorder.write(row(4, "validation", magnitudes=magnitudes))
    (events,) = events_in(tmp_path)
    numbers = {"loss": 2.5, "top1_error": 50.0, "top5_error": 10.0, "images_per_second": pytest.approx(123.4)}
    expected = {(f"train/{name}", 3): value for name, value in numbers.items()}
    expected |= {(f"validation/{name}", 4): value for name, value in numbers.items()}
    expected[("train/learning_rate", 3)] = pytest.approx(0.01)
    expected |= {(f"weights/{key}", 4): value for key, value in
                 {"conv1/kernel": 0.25, "conv1/kernel_update": 0.125, "fc8/bias": 2.0}.items()}  # fmt: skip
    assert scalars(events) == expected


def test_tensorboard_forgets_what_a_resume_writes_again(tmp_path, monkeypatch):
    """It drops what it has read from the step of a START on. A file's name has the second of its making."""
    for now, resumed, steps in ((1e9, 0, (2, 4, 6)), (2e9, 4, (6, 8))):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with recording(tmp_path, Progress(resumed)) as recorder:
            for step in steps:
                recorder.write(row(step))
    first, second = events_in(tmp_path)
    starts = [[event.step for event in events if event.session_log.status == event_pb2.SessionLog.START]
              for events in (first, second)]  # fmt: skip
    assert starts == [[1], [5]]
    assert [[step for tag, step in scalars(events) if tag == "train/loss"] for events in (first, second)] == [
        [2, 4, 6],
        [6, 8],
    ]


def test_the_config_is_a_table_and_hyper_parameters_beside_the_last_errors(tmp_path):
    """All in the folder of the run itself: no run of another name appears."""
    with recording(tmp_path, Progress(4), freeze=["conv1", "fc8"], flip=False) as recorder:
        recorder.write(row(5, "validation"))
    assert [path.is_file() for path in (tmp_path / "tensorboard").iterdir()] == [True]
    found = values(events_in(tmp_path)[0])
    (table,) = found[("config/text_summary", 4)].tensor.string_val
    lines = table.decode().splitlines()
    assert {"| **freeze** | `conv1,fc8` |", "| **flip** | `False` |", "| momentum | `0.9` |"} <= set(lines)
    metadata = {tag: value.metadata.plugin_data for (tag, _), value in found.items() if "_hparams_" in tag}
    assert {data.plugin_name for data in metadata.values()} == {"hparams"}
    start, experiment = (plugin_hparams_pb2.HParamsPluginData.FromString(metadata[f"_hparams_/{name}"].content)
                         for name in ("session_start_info", "experiment"))  # fmt: skip
    flags = start.session_start_info.hparams
    assert (flags["momentum"].number_value, flags["flip"].bool_value) == (0.9, False)
    assert flags["freeze"].string_value == "conv1,fc8"
    assert "log_every" not in flags  # which alters nothing
    shown = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert shown <= {tag for tag, _ in found}  # curves that are there
    assert "validation/top1_error" in shown


def test_the_groups_that_tensorboard_opens_are_train_and_validation(tmp_path):
    """It opens the first two in the order of the alphabet."""
    with recording(tmp_path) as recorder:
        recorder.write(row(3))
        recorder.write(row(4, "validation", magnitudes={"conv1": {"kernel": 0.25}}))
    groups = sorted({tag.split("/")[0] for tag, _ in scalars(events_in(tmp_path)[0])})
    assert groups == ["train", "validation", "weights"]


def test_a_picture_is_there_as_it_was_drawn(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    with recording(tmp_path) as recorder:
        recorder.picture("train/conv1_kernels", pixels, 3)
    image = values(events_in(tmp_path)[0])[("train/conv1_kernels", 3)].image
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), pixels)


def test_kernels_stand_tower_over_tower():
    """Two towers of 17 kernels of 3 x 3, 16 in a row: the last one of each tower begins its second row."""
    kernel = np.zeros((2, 3, 3, 3, 17), np.float32)
    kernel[0, ..., 16] = 2.0
    kernel[1, 0, 0, 0, 0] = -3.0
    sheet = kernel_sheet(kernel)
    height, width = 2 * 4 - 1, COLUMNS * 4 - 1
    assert sheet.shape == (3 * (2 * height + 1), 3 * width, 3)
    pixels = sheet[1::3, 1::3]  # one of each weight
    assert (pixels[4:7, :3] == 255).all()  # its largest weight is white
    assert (pixels[:3, :3] == 128).all()  # zero is mid-grey
    assert pixels[height + 1, 0].tolist() == [0, 128, 128]


def test_confusions_are_dark_by_their_share_of_the_row():
    sheet = confusion_sheet(np.array([[3, 1], [0, 0]]))
    assert sheet.shape == (480, 480, 3)
    cells = sheet[120::240, 120::240, 0]
    assert cells.tolist() == [[64, 191], [255, 255]]
    assert (sheet[[0, 240]] == 216).all()
    assert (sheet[:, [0, 240]] == 216).all()


def test_a_record_loads_no_pytorch(tmp_path):
    """tensorboardX would, for two seconds of every start."""
    script = f"""
import pathlib, sys
from alexnet_jax.config import Config
from alexnet_jax.run.tensorboard import Events
events = Events(pathlib.Path({str(tmp_path)!r}), 0, silent=False)
events.config(Config(), 0)
events.close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
