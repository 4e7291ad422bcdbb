"""Flags and the frozen config: one flag per field, one clear line for what no run can have."""

import dataclasses
import json

import pytest
from absl import flags
from networks import SIZE, run, small_config, tiny_flags

from alexnet_jax.config import Config, changed_flags, check, define_flags, from_dict, from_flags
from alexnet_jax.errors import UserError


def parse(*arguments: str) -> Config:
    """A command line, with flags of its own."""
    values = flags.FlagValues()
    define_flags(flag_values=values)
    values(["program", *arguments])
    return from_flags(values)


def test_every_field_is_a_flag_of_its_own_type():
    assert parse() == Config()
    config = parse(
        "--workdir=W", "--architecture=caffe", "--dropout=0.25", "--nomirror", "--batch_size=64", "--epochs=1.5",
        "--layer_rates=conv1:0.1@20,fc8:10", "--drop_epochs=3,4.5", "--fold=1/5",
    )  # fmt: skip
    assert (config.workdir, config.architecture, config.dropout, config.mirror) == ("W", "caffe", 0.25, False)
    assert (config.batch_size, config.epochs, config.drop_epochs) == (64, 1.5, ("3", "4.5"))
    assert config.layer_rates == ("conv1:0.1@20", "fc8:10")


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.architecture, config.crop, config.image_size) == ("paper", 224, 256)
    assert (config.batch_size, config.momentum, config.weight_decay, config.learning_rate) == (128, 0.9, 5e-4, 0.01)
    assert (config.schedule, config.drop_factor, config.max_drops, config.epochs) == ("plateau", 10, 3, 90)
    assert (config.bias_rate, config.bias_decay) == (2.0, False)
    assert Config(architecture="caffe").crop == 227


def test_a_config_survives_json():
    config = small_config(layer_rates=("conv1:0.5",), freeze=("fc7",), dropout=0.3)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
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
        ({"learning_rate": float("nan")}, "--learning_rate=nan is less than 0"),
        ({"layer_rates": ("conv9:1",)}, "--layer_rates=conv9:1: no layer 'conv9'"),
        ({"layer_rates": ("conv1",)}, "--layer_rates=conv1 is not LAYER:FACTOR"),
        ({"freeze": ("fc9",)}, "--freeze=fc9: no such layer"),
        ({"drop_epochs": ("x",)}, "--drop_epochs=x is not a list of numbers"),
        ({"fold": "5/5"}, "--fold=5/5 is not I/K"),
    ],
)
def test_what_no_run_can_have_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        check(small_config(**fields))


def test_what_alters_a_run():
    old = small_config(schedule="constant", mesh="1x1")
    harmless = {"epochs": 5.0, "steps": 7, "log_every": 9, "mesh": "2x1", "spmd": "pmap", "workdir": "W", "keep": 5}
    assert changed_flags(old, dataclasses.replace(old, **harmless)) == []
    assert changed_flags(old, dataclasses.replace(old, seed=3)) == ["--seed was 0 and is now 3"]
    staged = dataclasses.replace(old, schedule="staged")
    assert changed_flags(staged, dataclasses.replace(staged, epochs=5.0)) == ["--epochs was 90.0 and is now 5.0"]
    plateau = dataclasses.replace(old, schedule="plateau")
    assert changed_flags(plateau, dataclasses.replace(plateau, eval_every=5)) == ["--eval_every was 0 and is now 5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "papier"}, "architecture"),
        ({"dataset": "nothing"}, "error: --dataset=nothing is not prepared at 66 px"),
        ({"workdir": ""}, "error: --workdir is missing"),
        ({"workdir": "FILE/below"}, "error: --workdir=FILE/below cannot be written: Not a directory"),
        ({"workdir": "FULL"}, "error: --workdir=FULL holds something that is not a run"),
        ({"mesh": "2x1"}, "error: --mesh=2x1 needs 2 devices and 1 are present"),
        ({"host_devices": 3, "mesh": "3x1"}, "error: --batch_size=8 cannot be shared evenly by the 3 rows"),
        ({"host_devices": 4, "mesh": "4x1", "accumulate": 4}, "error: --accumulate=4 parts of --batch_size=8"),
        ({"crop_size": 30}, "error: --crop_size=30 is too small for --architecture=paper"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"colour": 1}, "Unknown command line flag 'colour'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(data_dir, tmp_path, fields, message):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    places = {"FILE": str(tmp_path / "file"), "FULL": str(tmp_path / "full")}

    def fill(text):
        for name, place in places.items():
            text = text.replace(name, place) if isinstance(text, str) else text
        return text

    fields = {name: fill(value) for name, value in fields.items()}
    result = run("train", *tiny_flags(data_dir, **{"workdir": tmp_path / "run"} | fields))
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert fill(message) in result.stderr
    assert not (tmp_path / "run").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.txt"]
