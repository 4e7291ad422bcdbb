"""Spaces of a sweep, and the flags that its trials get."""

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import optuna
import pytest
from networks import small_config
from PIL import Image
from test_sweep import SPACE, space_file

from alexnet_jax.config import Config, as_dict, from_words
from alexnet_jax.sweep.space import as_flags, read_space, with_values
from alexnet_jax.system.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: it needs a table for each flag"),
        ("[learning_rate\n", "cannot be read: "),
        ("[learning_rat]\nlog = [1, 2]\n", r"\[learning_rat\] is not a flag of the trainer"),
        ("[workdir]\nchoice = ['a']\n", r"\[workdir\] is given by the sweep, or is the same for all trials"),
        ("[seed]\nchoice = [1, 2]\n", r"\[seed\] is given by the sweep"),
        ("[dataset]\nchoice = ['cifar10', 'synthetic']\n", r"\[dataset\] is given by the sweep, or is the same"),
        ("[learning_rate]\nlog = [0.1, 0.01]\n", r"\[learning_rate\] log = \[0.1, 0.01\] is an empty range"),
        ("[learning_rate]\nlog = [0, 0.01]\n", r"log = \[0, 0.01\] goes through zero"),
        ("[learning_rate]\nuniform = ['a', 'b']\n", r"is not a range \[low, high\]"),
        ("[learning_rate]\nlog = [0.1, 0.2]\nint = [1, 2]\n", "needs exactly one of log, uniform, int, choice"),
        ("[learning_rate]\nlogarithmic = [0.1, 0.2]\n", "needs exactly one of"),
        ("[batch_size]\nuniform = [8, 64]\n", "flag --batch_size=8.0"),
        ("[batch_size]\nint = [8, 0]\n", "is an empty range"),
        ("[batch_size]\nint = [0, 8]\n", "--batch_size=0 is less than 1"),
        ("[schedule]\nchoice = []\n", "is empty or not a list"),
        ("[schedule]\nchoice = ['plateau', 'cosine']\n", "cosine"),
        ("[patience]\nint = [1, 3]\nwhen = {schedule = 'plateau'}\n", "its conditions are not in the space"),
        # Types that TOML has and flags do not
        ("learning_rate = 0.1\n", "needs exactly one of"),
        ("[[learning_rate]]\nlog = [0.1, 0.2]\n", "needs exactly one of"),
        ("[learning_rate]\nlog = 0.1\n", "log = 0.1 is empty or not a list"),
        ("[learning_rate]\nlog = {low = 0.1, high = 1}\n", "is empty or not a list"),
        ("[learning_rate]\nuniform = [0.1, 0.2, 0.3]\n", r"is not a range \[low, high\]"),
        ("[learning_rate]\nlog = [true, 2]\n", r"is not a range \[low, high\]"),
        ("[learning_rate]\nchoice = [2026-01-01, 2026-01-02]\n", "may have texts, numbers and booleans"),
        ("[drop_epochs]\nchoice = [['17', '21'], ['9']]\n", "a list is a text such as '17,21'"),
        ("[learning_rate]\nchoice = [{a = 1}]\n", "may have texts, numbers and booleans"),
        ("[learning_rate]\nchoice = [true]\n", "learning_rate=True"),
        ("[schedule]\nchoice = [true]\n", "schedule=True"),
        ("[flip]\nchoice = [1.5]\n", "flip=1.5"),
        ("[flip]\nchoice = [true, 'perhaps']\n", "perhaps"),
        ("[patience]\nchoice = ['many']\n", "patience=many"),
        # Numbers that no sampler can work with
        ("[learning_rate]\nlog = [0.1, inf]\n", "not finite or too large"),
        ("[learning_rate]\nuniform = [nan, 1.0]\n", "not finite or too large"),
        ("[learning_rate]\nchoice = [0.1, -inf]\n", "not finite or too large"),
        ("[batch_size]\nint = [1, 100000000000000000000]\n", "not finite or too large"),
        ("[batch_size]\nint = [8, 8]\n", "is an empty range"),
        ("[batch_size]\nint = [8.0, 64.0]\n", "has ends that are not integers"),
        ("[batch_size]\nchoice = [8, 16, 8]\n", "has a value twice"),
        ("[flip]\nchoice = [true, 1]\n", "has a value twice"),
        # Conditions
        ("[patience]\nint = [1, 3]\nwhen = 'plateau'\n", "when = 'plateau' is not a table"),
        ("[patience]\nint = [1, 3]\nwhen = ['schedule']\n", "is not a table"),
        ("[patience]\nint = [1, 3]\nwhen = {patience = 2}\n", "depend on each other"),
        (SPACE.replace('= "plateau"}', '= "steps"}'), r"\[patience\] when = .*: no trial has these values"),
        (SPACE.replace('{schedule = "plateau"}', "{learning_rate = 0.001}"), "no trial has these values"),
        (SPACE + "[max_drops]\nint = [1, 2]\nwhen = {patience = 4}\n", "no trial has these values"),
        (SPACE + "[max_drops]\nint = [1, 2]\nwhen = {patience = 2, schedule = 'constant'}\n", "no trial has these values"),
        # What is no TOML
        ("learning_rate: 0.1\n", "cannot be read: "),
        ("[learning_rate]\nlog = [0.1, 0.2]\n[learning_rate]\nlog = [0.1, 0.2]\n", "cannot be read: "),
        ("[a]\nb = " + 3000 * "[" + 3000 * "]" + "\n", "cannot be read: "),
    ],
)
def test_a_bad_space_gets_one_line_with_the_file_and_the_entry(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        read_space(space_file(tmp_path, text), small_config())
    assert f"--space={tmp_path}/space.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trials_stay_in_the_space_and_conditions_hold(tmp_path):
    space = read_space(space_file(tmp_path), small_config())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(60)]
    assert all(0.0003 <= chosen["learning_rate"] <= 0.003 for chosen in drawn)
    assert {chosen["schedule"] for chosen in drawn} == {"constant", "plateau"}
    assert {chosen.get("patience") for chosen in drawn if chosen["schedule"] == "plateau"} == {1, 2, 3}
    assert all("patience" not in chosen for chosen in drawn if chosen["schedule"] == "constant")
    below = sum(chosen["learning_rate"] < 0.00095 for chosen in drawn)  # the middle of the logarithms
    assert 20 <= below <= 40


def test_a_grid_has_every_combination_once(tmp_path):
    text = SPACE.replace("log = [0.0003, 0.003]", "choice = [0.001, 0.002]")
    combinations = read_space(space_file(tmp_path, text), small_config()).grid()
    assert len(combinations) == 2 * (1 + 3)
    assert {"learning_rate": 0.002, "schedule": "plateau", "patience": 2} in combinations
    with pytest.raises(UserError, match="--sampler=grid: learning_rate is a range"):
        read_space(space_file(tmp_path), small_config()).grid()


# A value for each kind of flag that is not its default, as `from_dict` takes it.
OTHER = {
    "workdir": "runs/x[1] 'é' #?", "architecture": "caffe", "bias_init": 0.3, "dropout": 0.0, "precision": "bfloat16",
    "init": "runs/a,b", "init_layers": ["conv1", "conv2"], "init_velocity": True, "dataset": "folder:a b",
    "data_dir": "--data", "image_size": 256, "resize": "warp", "crop_size": None, "mean": "image", "flip": False,
    "colour_noise": "none", "colour_noise_epochs": 0.1, "fold": "1/3", "batch_size": 6, "accumulate": 3, "epochs": 1e-3,
    "steps": None, "learning_rate": 1e-17, "momentum": 0.0, "rate_in_velocity": False, "weight_decay": 1 / 3,
    "layer_decays": ["fc8:0.1"], "ablate": ["lrn", "conv4"], "bias_decay": True,
    "layer_rates": ["conv1:0.1@20", "fc8:10"], "freeze": ["conv2"],
    "schedule": "steps", "drop_epochs": [], "seed": 123456789, "mesh": "2x1", "host_devices": 8, "spmd": "pmap",
    "log_examples": True, "eval_every": 3,
}  # fmt: skip
NEEDED = {"init_layers": ["init"], "init_velocity": ["init"], "crop_size": ["image_size"], "accumulate": ["batch_size"]}


@pytest.mark.parametrize("name", [*(field.name for field in fields(Config)), "all of them"])
def test_the_flags_of_a_config_make_the_same_config(name):
    """Whatever the defaults are: each flag is among the words, also one that equals its default."""
    names = OTHER.keys() if name == "all of them" else {name, *NEEDED.get(name, ())}
    config = small_config(**{name: OTHER[name] for name in OTHER.keys() & names})
    words, given = as_flags(as_dict(config)), [key for key, text in as_dict(config).items() if text is not None]
    assert [word.partition("=")[0][2:] for word in words] == given
    assert from_words(words) == with_values(config, {}) == config
    assert with_values(config, {"learning_rate": 0.7, "flip": True}).learning_rate == 0.7


def test_a_flag_file_gives_every_flag_back(tmp_path):
    config = small_config(**OTHER)
    path = tmp_path / "all.cfg"
    path.write_text("".join(f"{word}\n" for word in as_flags(as_dict(config))))
    assert from_words([f"--flagfile={path}"]) == config


@pytest.mark.parametrize("text", ["a\nb", " a", "a ", "a\tb", "a\r", os.fsdecode(b"a\xff"), "\x1b[31m"])
@pytest.mark.parametrize("name", ["data_dir", "dataset", "init"])
def test_a_value_that_no_flag_file_can_hold_is_refused(name, text):
    with pytest.raises(UserError, match=f"--{name}=.* cannot stand in a flag file") as caught:
        with_values(small_config(**{name: text}), {})
    assert str(caught.value).isprintable()


def latin1(path: Path) -> None:
    path.write_bytes("# größer\n[learning_rate]\nlog = [0.1, 0.2]\n".encode("latin-1"))


def photograph(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(path, "JPEG")


UNREADABLE = {
    "missing": lambda path: None,
    "empty": Path.touch,
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a circle of links": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "Latin-1": latin1,
    "UTF-16": lambda path: path.write_text("[learning_rate]\nlog = [0.1, 0.2]\n", encoding="utf-16"),
    "a photograph": photograph,
    "NULs": lambda path: path.write_bytes(bytes(100)),
    "JSON": lambda path: path.write_text('{"learning_rate": {"log": [0.1, 0.2]}}'),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_is_no_space_is_refused_in_one_line(what, tmp_path):
    path = tmp_path / "space.toml"
    UNREADABLE[what](path)
    with pytest.raises(UserError, match=r"space\.toml (cannot be read|is empty)") as caught:
        read_space(path, small_config())
    assert "\n" not in str(caught.value)


def test_a_space_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE, encoding="utf-8-sig")
    assert len(read_space(tmp_path / "space.toml", small_config()).parameters) == 3


def test_a_grid_that_is_too_large_is_refused_at_once(tmp_path):
    text = "[patience]\nint = [1, 1000000000]\n[max_drops]\nint = [1, 1000000000]\n"
    with pytest.raises(UserError, match="--sampler=grid: with patience it has more than 10,000 combinations"):
        read_space(space_file(tmp_path, text), small_config()).grid()
