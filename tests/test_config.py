"""Flags and the frozen config: one flag per field, one clear line for what no run can have."""

import dataclasses
import json
import re
import subprocess

import pytest
from networks import SIZE, run, small_config, start, tiny_config, tiny_flags

from alexnet_jax.config import Config, as_dict, check, from_dict, from_words
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.system.errors import UserError
from alexnet_jax.training import train
from alexnet_jax.values import LayerDecay, LayerRate, MeshShape


def test_every_field_is_a_flag_of_its_own_type():
    assert from_words([]) == Config()
    config = from_words([
        "--workdir=W", "--architecture=caffe", "--dropout=0.25", "--nomirror", "--batch_size=64", "--epochs=1.5",
        "--layer_rates=conv1:0.1@20,fc8:10", "--layer_decays=fc8:0.01", "--drop_epochs=3,4.5", "--fold=1/5",
    ])  # fmt: skip
    assert (config.workdir, config.architecture, config.dropout, config.flip) == ("W", "caffe", 0.25, False)
    assert (config.batch_size, config.epochs, config.drop_epochs) == (64, 1.5, (3.0, 4.5))
    assert config.layer_rates == (LayerRate("conv1", 0.1, 20.0), LayerRate("fc8", 10.0))
    assert config.layer_decays == (LayerDecay("fc8", 0.01),)


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.architecture, config.crop, config.image_size) == ("paper", 224, 256)
    assert (config.batch_size, config.momentum, config.learning_rate) == (128, 0.9, 0.01)
    assert {layer.weight_decay for layer in config.table().layers} == {5e-4}
    assert (config.schedule, config.drop_factor, config.max_drops, config.epochs) == ("plateau", 10, 3, 90)
    assert (config.bias_rate, config.bias_decay) == (2.0, False)
    assert Config(architecture="caffe").crop == 227


def test_a_config_survives_json():
    config = small_config(
        layer_rates=["conv1:0.5"], freeze=["fc7"], mesh="4x2", fold="1/5", drop_epochs=["3", "4.5"], dropout=0.3
    )
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config
    with pytest.raises(UserError, match="unknown fields colour"):
        from_dict({"colour": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "papier"}, r"--architecture=papier is not one of paper, source2012"),
        ({"crop_size": SIZE + 1}, f"--crop_size={SIZE + 1} is larger than --image_size={SIZE}"),
        ({"batch_size": 0}, "--batch_size=0 is less than 1"),
        ({"batch_size": 9, "accumulate": 2}, r"--batch_size=9 does not divide into 2 parts \(--accumulate\)"),
        ({"epochs": 0.0}, "leave nothing to do"),
        ({"learning_rate": float("nan")}, "--learning_rate=nan is not a finite number"),
        ({"layer_rates": ("conv9:1",)}, "--layer_rates=conv9: no such layer"),
        ({"layer_rates": ("conv1",)}, "--layer_rates=conv1 is not LAYER:FACTOR"),
        ({"layer_decays": ("fc9:1",)}, "--layer_decays=fc9: no such layer"),
        ({"layer_decays": ("fc8",)}, "--layer_decays=fc8 is not LAYER:DECAY, such as fc10:0.01"),
        ({"layer_decays": ("fc8:-1",)}, "--layer_decays=fc8:-1 has a number that is negative or not finite"),
        ({"layer_decays": ("fc8:1", "fc8:2")}, "--layer_decays names fc8 twice"),
        ({"init_velocity": True}, "--init_velocity needs --init"),
        ({"freeze": ("fc9",)}, "--freeze=fc9: no such layer"),
        ({"init": "W", "init_layers": ("fc9",)}, "--init_layers=fc9: no such layer"),
        ({"init_layers": ("conv1",)}, "--init_layers needs --init"),
        ({"drop_epochs": ("x",)}, "--drop_epochs=x is not a list of numbers"),
        ({"fold": "5/5"}, "--fold=5/5 is not I/K"),
    ],
)
def test_what_no_run_can_have_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        check(small_config(**fields))


def test_what_alters_a_run():
    old = small_config(schedule="constant", mesh="1x1")
    harmless = {
        "epochs": 5.0,
        "steps": 7,
        "log_every": 9,
        "mesh": MeshShape(2, 1),
        "spmd": "pmap",
        "workdir": "W",
        "keep": 5,
        "step_timeout": 60.0,
    }
    assert changed_flags(old, dataclasses.replace(old, **harmless)) == []
    assert changed_flags(old, dataclasses.replace(old, seed=3)) == ["--seed was 0 and is now 3"]
    staged = dataclasses.replace(old, schedule="staged")
    assert changed_flags(staged, dataclasses.replace(staged, epochs=5.0)) == ["--epochs was 90.0 and is now 5.0"]
    plateau = dataclasses.replace(old, schedule="plateau")
    assert changed_flags(plateau, dataclasses.replace(plateau, eval_every=5)) == ["--eval_every was 0 and is now 5"]


@pytest.fixture
def places(tmp_path):
    """A file and a folder in use, which have to stay as they are."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    yield {"RUN": tmp_path / "run", "FILE": tmp_path / "file", "FULL": tmp_path / "full"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.txt"]


@pytest.mark.parametrize(
    ("workdir", "fields", "message"),
    [
        ("RUN", {"dataset": "nothing"}, "--dataset=nothing is not prepared at 66 px under --data_dir=.*: run python -m"),
        ("FILE/below", {}, "--workdir=.*file/below cannot be written: Not a directory"),
        ("FULL", {}, "--workdir=.*full holds something that is not a run"),
        ("", {}, "--workdir is missing"),
        ("RUN", {"mesh": "9x1"}, "--mesh=9x1 needs 9 devices and 8 are present"),
        ("RUN", {"mesh": "3x1"}, "--batch_size=8 cannot be shared evenly by the 3 rows"),
        ("RUN", {"mesh": "4x1", "accumulate": 4}, "--accumulate=4 parts of --batch_size=8"),
        ("RUN", {"crop_size": 30}, "--crop_size=30 is too small for --architecture=paper_eighth: conv5"),
    ],
)
def test_bad_input_stops_before_anything_is_written(data_dir, places, workdir, fields, message):
    for name, place in places.items():
        workdir = workdir.replace(name, str(place))
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(tiny_config(data_dir, places["RUN"], **fields), workdir=workdir))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "papier"}, "error: flag --architecture=papier: value should be one of <paper|source2012|.*>"),
        (
            {"colour": 1},
            "error: --colour is not a flag of this command: did you mean --colour_noise or --colour_noise_epochs.*",
        ),
        ({"batch_size": "many"}, "error: flag --batch_size=many: invalid literal for int.*"),
        ({"fold": "5/5"}, "error: --fold=5/5 is not I/K with 0 <= I < K, such as 0/5"),
        ({"mesh": "two"}, "error: --mesh=two is not of the form DATAxTOWER, such as 4x2, nor 'auto'"),
        ({"flagfile": "/nowhere.cfg"}, "error: .*/nowhere.cfg.*"),
    ],
)
def test_bad_flags_end_with_one_line(data_dir, places, fields, message):
    result = run("train", *tiny_flags(data_dir, places["RUN"], **fields))
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(message + "\n", result.stderr)


@pytest.mark.slow
def test_more_devices_than_are_forced_are_refused_in_a_process_of_its_own(data_dir, places):
    flags = tiny_flags(data_dir, places["RUN"], host_devices=2, mesh="2x2")
    process = start("train", *flags, stderr=subprocess.PIPE)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert said.startswith("error: --mesh=2x2 needs 4 devices and 2 are present")


def test_old_names_of_flags_still_open_flag_files_and_runs():
    assert not from_words(["--nomirror"]).flip
    values = as_dict(Config())
    assert not from_dict({"mirror": False} | {name: value for name, value in values.items() if name != "flip"}).flip
    assert "mirror" not in values
    assert from_words(["--architecture=cifar_no_lrn"]).architecture == "cifar_13pct"
    assert from_dict(values | {"architecture": "cifar_tanh", "image_size": 24}).architecture == "cifar_13pct_tanh"


def test_a_decay_that_is_the_tables_own_is_no_change():
    """An earlier version wrote the paper's decay into config.json."""
    old, cifar = small_config(weight_decay=5e-4), small_config(architecture="cifar_13pct", weight_decay=5e-4)
    assert changed_flags(old, dataclasses.replace(old, weight_decay=None)) == []
    assert changed_flags(old, dataclasses.replace(old, weight_decay=0.1)) == ["--weight_decay was 0.0005 and is now 0.1"]
    changed = ["--weight_decay was 0.0005 and is now not given"]
    assert changed_flags(cifar, dataclasses.replace(cifar, weight_decay=None)) == changed
