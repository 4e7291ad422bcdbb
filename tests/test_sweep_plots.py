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

from alexnet_jax.figures.style import COLOURS
from alexnet_jax.sweep import plots
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
    failed, complete, pruned, best, diverged = axis.get_lines()
    assert failed.get_xydata().tolist() == []
    assert complete.get_xydata().tolist() == [[0.5, 80], [1, 60]]
    assert pruned.get_xydata().tolist() == [[0.5, 90]]
    assert best.get_xydata().tolist() == [[0.5, 70], [1, 40]]
    assert diverged.get_xydata().tolist() == [[0.5, 75]]
    assert [line.get_linestyle() for line in (complete, pruned, best, diverged)] == ["-", ":", "-", ":"]
    assert (best.get_label(), best.get_color()) == ("best: trial 3", COLOURS["validation"])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["best: trial 3"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "validation top-1 error (%)")
    assert axis.get_title() == "5 trials (dotted: ended early)"


def test_the_history_of_a_sweep_shows_the_best_so_far(tried):
    _, study = tried
    study.add_trial(optuna.trial.create_trial(value=50.0))
    (axis,) = plots.draw_history(study.trials).axes
    assert axis.collections[0].get_offsets().tolist() == [[1, 60], [3, 40], [5, 50]]
    best, pruned, diverged = axis.get_lines()
    assert best.get_xydata().tolist() == [[1, 60], [3, 40], [5, 40]]
    assert best.get_drawstyle() == "steps-post"
    assert pruned.get_xydata().tolist() == [[2, 60]]
    assert diverged.get_xydata().tolist() == [[4, 60]]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["trial", "best so far", "pruned (no value)", "diverged (no value)"]


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
    assert axis.get_xlabel() == "importance of 1, by ped-ANOVA over 40 complete trials"
    plt.close("all")
