"""The plots of a sweep: each trial where it belongs, with its error."""

import json

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from matplotlib import pyplot as plt
from networks import record_row, small_config
from optuna.trial import TrialState
from test_sweep import space_file

from alexnet_jax.sweep import plots, summary
from alexnet_jax.sweep.space import read_space
from alexnet_jax.sweep.trials import WORST

mpl.use("agg")


@pytest.fixture
def tried(tmp_path):
    """A space and a study of five trials: one failed, pruned and diverged, two complete with errors of 60 and 40 %."""
    space = read_space(space_file(tmp_path), small_config())
    study = optuna.create_study()
    for number, (state, chosen, errors) in enumerate([
        (TrialState.FAIL, {"learning_rate": 0.003, "schedule": "constant"}, []),
        (TrialState.COMPLETE, {"learning_rate": 0.0003, "schedule": "constant"}, [80, 60]),
        (TrialState.PRUNED, {"learning_rate": 0.001, "schedule": "plateau", "patience": 1}, [90]),
        (TrialState.COMPLETE, {"learning_rate": 0.003, "schedule": "plateau", "patience": 3}, [70, 40]),
        (TrialState.COMPLETE, {"learning_rate": 0.002, "schedule": "constant"}, [75, WORST]),
    ]):  # fmt: skip
        study.enqueue_trial(chosen)
        trial = study.ask()
        assert space.suggest(trial) == chosen
        if WORST in errors:
            trial.set_user_attr("diverged", "step 9: the loss is nan")
        study.tell(trial, errors[-1] if state is TrialState.COMPLETE else None, state=state)
        errors = [error for error in errors if error != WORST]
        folder = tmp_path / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        rows = [record_row(n, "validation", epoch=n / 2, top1_error=error) for n, error in enumerate(errors, 1)]
        rows.append(record_row(9, "train", top1_error=0))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield space, study
    plt.close("all")


def test_the_curves_of_a_sweep_are_the_validations_of_every_trial(tried, tmp_path):
    _, study = tried
    (axis,) = plots.draw_curves(study.trials, 3, tmp_path).axes
    curves = [line for line in axis.get_lines() if line.get_linestyle() != "None"]
    ends = [line for line in axis.get_lines() if line.get_linestyle() == "None" and line.get_label()[0] == "_"]
    # By state: finished, pruned, diverged, failed.
    points = [[[0.5, 80], [1, 60]], [[0.5, 70], [1, 40]], [[0.5, 90]], [[0.5, 75]], []]
    assert [line.get_xydata().tolist() for line in curves] == points
    assert [line.get_xydata().tolist() for line in ends] == [line[-1:] for line in points]
    assert [line.get_linestyle() for line in curves] == ["-", "-", ":", ":", ":"]
    assert [line.get_marker() for line in ends] == ["o", "o", "o", "X", "x"]
    assert (curves[1].get_label(), curves[1].get_color()) == ("best: trial 3", plots.BEST)
    legend = ["best: trial 3", "finished (2)", "pruned (1)", "diverged (1)", "failed (1)"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == legend
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "validation top-1 error (%)")


def test_the_history_of_a_sweep_gives_a_height_only_to_finished_trials(tried):
    _, study = tried
    study.add_trial(optuna.trial.create_trial(value=50.0, intermediate_values={1: 70.0, 2: 50.0}))
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values={1: 99.0, 2: 98.0, 3: 97.0}))
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values={1: 20.0}))
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    errors, lengths = plots.draw_history(study.trials).axes
    best, finished = errors.get_lines()
    assert finished.get_xydata().tolist() == [[1, 60], [3, 40], [5, 50]]
    assert best.get_xydata().tolist() == [[1, 60], [3, 40], [5, 40]]
    assert best.get_drawstyle() == "steps-post"
    assert errors.get_ylim()[1] < 70  # none of the others stretches the axis
    shown = {line.get_label(): line.get_xydata().tolist() for line in lengths.get_lines()}
    assert shown == {
        "finished (3)": [[1, 0], [3, 0], [5, 2]],
        "pruned (2)": [[2, 0], [6, 3]],
        "diverged (1)": [[4, 0]],
        "failed (1)": [[0, 0]],
        "running (1)": [[7, 1]],
    }
    assert len({(line.get_marker(), line.get_markerfacecolor()) for line in lengths.get_lines()}) == 5
    (legend,) = errors.get_figure().legends
    assert [text.get_text() for text in legend.get_texts()] == ["best so far", *shown]
    assert (errors.get_ylabel(), lengths.get_ylabel()) == ("validation top-1 error (%)", "validations")


def test_an_outlier_of_a_history_is_named_above_the_axis():
    trials = [optuna.trial.create_trial(value=value) for value in (30.0, 89.6, 32.0, 31.0, 33.0)]
    for number, trial in enumerate(trials):
        trial.number = number
    errors, _ = plots.draw_history(trials).axes
    best, finished, above = errors.get_lines()
    assert finished.get_xydata().tolist() == [[0, 30], [2, 32], [3, 31], [4, 33]]
    assert best.get_ydata().tolist() == [30] * 5
    assert (above.get_marker(), above.get_xdata().tolist()) == ("^", [1])
    assert [text.get_text() for text in errors.texts] == ["89.6"]
    low, high = errors.get_ylim()
    assert 28 < low < 30 < 33 < high < 36


def test_a_history_without_a_finished_trial_says_so():
    trial = optuna.trial.create_trial(state=TrialState.FAIL)
    trial.number = 0
    errors, lengths = plots.draw_history([trial]).axes
    assert [text.get_text() for text in errors.texts] == ["no trial has finished"]
    assert [line.get_label() for line in lengths.get_lines()] == ["failed (1)"]


def test_a_trial_is_a_line_across_an_axis_for_each_flag(tried):
    space, study = tried
    axis, bar = plots.draw_parallel(study.trials, space.parameters).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["learning_rate", "schedule", "patience"]
    lines = [line for line in axis.get_lines() if line.get_marker() == "o"]
    middle = (np.log(0.001) - np.log(0.0003)) / np.log(10)
    high = (np.log(0.002) - np.log(0.0003)) / np.log(10)
    # Failed, pruned, diverged, then the best on top.
    expected = [[1, 0, np.nan], [middle, 1, 0], [high, 0, np.nan], [0, 0, np.nan], [1, 1, 1]]
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected, atol=1e-12)
    assert [line.get_color() for line in lines[:3]] == ["0.88"] * 3
    assert tuple(lines[3].get_color()) != tuple(lines[4].get_color())
    assert [text.get_text() for text in axis.texts] == ["0.0003", "0.003", "constant", "plateau", "1", "3"]
    assert bar.get_ylabel() == "validation top-1 error (%)"
    assert bar.get_ylim() == (40, 60)
    assert axis.get_title() == "2 finished, 1 pruned, 1 diverged, 1 failed; grey: no final error"


def test_the_importances_of_flags_are_shares_of_one():
    study = optuna.create_study()
    rate = optuna.distributions.FloatDistribution(0, 1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        params = {"matters": rng.uniform(), "idle": rng.uniform()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=dict.fromkeys(params, rate), value=params["matters"])
        )
    (axis,) = plots.draw_importance(study).axes
    shares = {label.get_text(): bar.get_width() for label, bar in zip(axis.get_yticklabels(), axis.patches, strict=True)}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matters"] > 0.8
    assert axis.get_xlabel() == "importance for the validation top-1 error (%), of 1 in all"
    assert axis.get_title() == "ped-ANOVA over 40 finished or diverged trials"
    plt.close("all")


@pytest.mark.parametrize(("finished", "written"), [(9, False), (10, True)])
def test_importances_take_ten_finished_trials(tmp_path, monkeypatch, finished, written):
    """A diverged and a pruned one do not count. A plot of an earlier version goes away."""
    monkeypatch.setattr(summary, "save_figure", lambda figure, folder, name: folder / f"{name}.png")  # the slow part
    space = read_space(space_file(tmp_path), small_config())
    study = optuna.create_study()
    for number in range(finished + 2):
        trial = study.ask()
        space.suggest(trial)
        if number == finished:
            trial.set_user_attr("diverged", "step 9: the loss is nan")
        pruned = number == finished + 1
        study.tell(trial, None if pruned else 50.0 + number, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)
    old = [tmp_path / f"importance{suffix}" for suffix in (".png", ".svg")]
    for path in old:
        path.touch()
    files, why = summary.write_summary(study, small_config(), space, tmp_path, {})
    assert why == ("" if written else "no importance of flags: 9 finished trials are too few, it takes 10")
    assert [path.exists() for path in old] == [written] * 2
    drawn = ["history", "learning_curves", "parallel_coordinates", *["importance"] * written]
    assert [path.stem for path in files if path.suffix == ".png"] == drawn
    plt.close("all")
