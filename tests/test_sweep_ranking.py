"""Sweeps whose trials do not train: what the study is told, who is confirmed, and what the summary says."""

import functools
import json
import math
import shutil
import time
from collections.abc import Callable

import optuna
import pytest
from matplotlib.figure import Figure
from networks import SIZE, record_row, run, tiny_flags, tiny_source
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from test_sweep import sweep_flags, trials_of

from alexnet_jax.config import from_words
from alexnet_jax.data.store import store_path
from alexnet_jax.data.writer import write_store
from alexnet_jax.sweep import jobs, summary
from alexnet_jax.sweep import study as studies
from alexnet_jax.sweep.space import as_flags

WIDE = "[learning_rate]\nlog = [0.0001, 1.0]\n"
CHOICES = "[learning_rate]\nchoice = [0.001, 0.002, 0.003, 0.004]\n"


class Stub:
    """Stands for `run_trial`. A trial validates at steps 2 and 4; the second is better by 1 %.

    storage: the one of each URL. It lasts for a test, and is faster than a database.
    error: the lower error of a trial in percent by its values; infinite if it diverges, None if it cannot run.
    tried: the values of all trials, in order.
    """

    def __init__(self) -> None:
        self.storage = functools.cache(lambda url: optuna.storages.InMemoryStorage())
        self.error: Callable[[dict], float | None] = lambda values: 50.0 + values["seed"]
        self.tried: list[dict] = []

    def __call__(self, trial, folder, values, stopping, environment, retries):
        self.tried.append(values)
        error = self.error(values)
        if error is None:
            trial.set_user_attr("error", "status 1: error: --mesh=3x3 is wrong")
            return TrialState.FAIL
        if math.isinf(error):
            trial.set_user_attr("diverged", "step 9: the loss is nan")
            return TrialState.COMPLETE
        folder.mkdir(parents=True, exist_ok=True)  # another job may take up a trial that was not told
        rows = [record_row(4 - 2 * n, "validation", top1_error=error + n) for n in (1, 0)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TrialState.COMPLETE


@pytest.fixture
def stub(monkeypatch) -> Stub:
    """Sweeps whose trials do not train. No pictures are drawn."""
    for name in ("draw_curves", "draw_history", "draw_parallel", "draw_importance"):
        monkeypatch.setattr(summary.plots, name, lambda *_: Figure())
    monkeypatch.setattr(summary, "save_figure", lambda figure, folder, name: folder / name)
    stub = Stub()
    monkeypatch.setattr(jobs, "run_trial", stub)
    monkeypatch.setattr(studies, "_storage", stub.storage)
    return stub


@pytest.mark.slow
def test_sweeps_in_two_folders_share_a_study(stub, data_dir, tmp_path):
    shared = (f"--storage=sqlite:///{tmp_path}/study.db", "--study=towers")
    for name, count in (("one", 2), ("two", 5), ("one", 6)):
        (tmp_path / name).mkdir(exist_ok=True)
        done = run("sweep", *sweep_flags(tmp_path / name, data_dir, *shared, f"--trials={count}"))
        assert done.returncode == 0, done.stderr
    folders = {
        name: sorted(path.name for path in (tmp_path / name / "sweep/trials").glob("????")) for name in ("one", "two")
    }
    assert folders == {"one": ["0000", "0001", "0005"], "two": ["0002", "0003", "0004"]}
    assert [trial["state"] for trial in trials_of(tmp_path / "one" / "sweep")] == ["complete"] * 6
    other = run("sweep", *sweep_flags(tmp_path / "one", data_dir, shared[0], "--study=another"))
    assert other.returncode == 1
    assert "has trials of the study 'towers', not of 'another': use a new --workdir" in other.stderr


def test_a_surplus_trial_is_given_back(stub, data_dir, tmp_path, monkeypatch):
    """Another process asks for a trial after this one has counted the trials."""
    ask = optuna.Study.ask

    def after_another(study):
        ask(study).set_user_attr("sweep", "another")
        return ask(study)

    monkeypatch.setattr(optuna.Study, "ask", after_another)
    done = run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=1", "--confirm=1"))
    assert done.returncode == 0, done.stderr
    assert "other sweeps of this study still run: the one that ends last confirms" in done.stderr
    assert not stub.tried
    (trial,) = trials_of(tmp_path / "sweep")
    assert (trial["trial"], trial["state"]) == ("0", "running")


@pytest.mark.slow
def test_the_sampler_leaves_the_region_where_trials_diverge(stub, data_dir, tmp_path):
    """With seeds 0 to 5 there are 12 to 14 of 40. If they only fail there are 32: all but the random 8."""
    error_of = lambda rate: 30 + 5 * abs(math.log10(rate / 0.01)) if rate < 0.02 else math.inf  # noqa: E731
    stub.error = lambda values: error_of(values["learning_rate"])
    assert run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=40", text=WIDE)).returncode == 0
    assert sum(values["learning_rate"] >= 0.02 for values in stub.tried) <= 20
    study = optuna.load_study(study_name="sweep", storage=stub.storage(f"sqlite:///{tmp_path}/sweep/study.db"))
    diverged = [trial for trial in study.trials if "diverged" in trial.user_attrs]
    assert diverged
    assert {(trial.state, trial.value) for trial in diverged} == {(TrialState.COMPLETE, 100.0)}
    rows = trials_of(tmp_path / "sweep")
    shown = {(row["state"], row["validation_top1_error"], row["error"]) for row in rows if row["state"] != "complete"}
    assert shown == {("diverged", "", "step 9: the loss is nan")}


@pytest.mark.parametrize("error", [None, math.inf])
def test_a_sweep_without_any_result_fails_with_the_first_reason(stub, data_dir, tmp_path, error):
    stub.error = lambda values: error
    done = run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=2"))
    assert done.returncode == 1
    why = "fail, status 1: error: --mesh=3x3 is wrong" if error is None else "diverged, step 9: the loss is nan"
    assert done.stderr.splitlines()[-1] == f"error: no trial in {tmp_path}/sweep has an error to rank by: trial 0 {why}"
    assert not (tmp_path / "sweep" / "best.cfg").exists()
    assert len(trials_of(tmp_path / "sweep")) == 2
    stub.error = lambda values: 50.0
    assert run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=3")).returncode == 0


def test_a_diverged_trial_is_never_the_best(stub, data_dir, tmp_path):
    stub.error = lambda values: {0.001: math.inf, 0.002: 100.0, 0.003: math.inf, 0.004: 99.0}[values["learning_rate"]]
    flags = sweep_flags(tmp_path, data_dir, "--sampler=grid", "--confirm=4", "--confirm_seeds=1", text=CHOICES)
    done = run("sweep", *flags)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in trials_of(tmp_path / "sweep")] == ["diverged", "complete", "diverged", "complete"]
    assert [row["confirmed_seeds"] for row in trials_of(tmp_path / "sweep")] == ["", "1", "", "1"]
    assert "trial   0  diverged  learning_rate=0.001" in done.stderr
    assert (tmp_path / "sweep" / "table.md").read_text().count("\n") == 2 + 2


def lucky(values: dict) -> float:
    """The rate 0.003 wins the search by luck. With fresh seeds 0.002 is the best; 0.004 diverges with one of them."""
    rate, seed = values["learning_rate"], values["seed"]
    if seed < 10_000:
        return {0.001: 45.0, 0.002: 34.0, 0.003: 27.0, 0.004: 30.0}[rate]
    if rate == 0.004 and seed == 10_002:
        return math.inf
    return {0.001: 1.0, 0.002: 33.0, 0.003: 36.0, 0.004: 30.0}[rate] + (seed - 10_001)


def test_confirmation_ranks_the_best_by_fresh_seeds(stub, data_dir, tmp_path):
    stub.error = lucky
    sweep = tmp_path / "sweep"
    flags = sweep_flags(tmp_path, data_dir, "--sampler=grid", "--jobs=2", text=CHOICES)
    assert run("sweep", *flags).returncode == 0
    assert "learning_rate=0.003\n" in (sweep / "best.cfg").read_text()
    stub.tried.clear()
    done = run("sweep", *flags, "--confirm=3", "--confirm_seeds=3")
    assert done.returncode == 0, done.stderr
    runs = {(values["learning_rate"], values["seed"], values["workdir"]) for values in stub.tried}
    best = {1: 0.002, 2: 0.003, 3: 0.004}  # number and rate
    wanted = {(n, seed) for n in best for seed in (10_000, 10_001, 10_002)}
    assert runs == {(best[n], seed, f"{sweep}/confirm/{n:04d}-{seed}") for n, seed in wanted}
    rows = trials_of(sweep)
    assert [row["validation_top1_error"] for row in rows] == ["45.0", "34.0", "27.0", "30.0"]
    assert [row["best_step"] for row in rows] == ["4"] * 4
    assert [row["confirmed_top1_error"][:5] for row in rows] == ["", "33.0", "36.0", "53.0"]
    assert [row["confirmed_highest"] for row in rows] == ["", "34.0", "37.0", "100.0"]
    assert [row["confirmed_seeds"] for row in rows] == ["", "3", "3", "3"]
    table = [[cell.strip() for cell in line.split("|")[1:4]] for line in (sweep / "table.md").read_text().splitlines()]
    assert table[0] == ["trial", "validation error", "with fresh seeds"]
    assert table[2] == ["1", "34.00 %", "33.00 % (32.00 to 34.00, 3 seeds)"]
    assert [row[0] for row in table[2:]] == ["1", "2", "3", "0"]  # one without fresh seeds comes last
    best_lines = (sweep / "best.cfg").read_text().splitlines()
    assert best_lines[0].endswith("34.00 % top-1 error on validation. With fresh seeds: 33.00 % (32.00 to 34.00, 3 seeds).")
    assert f"--workdir={sweep}/trials/0001 --step=best --split=validation" in best_lines[1]
    said = [line for line in done.stderr.splitlines() if "confirmed" in line]
    assert "trial 1-10000  32.00 %  learning_rate=0.002  34.00 % in the search" in done.stderr
    assert said[0] == "trial   1  confirmed 33.00 % (32.00 to 34.00, 3 seeds)  34.00 % in the search"
    # The same command has nothing left to do. More seeds and more of the best add to it.
    stub.tried.clear()
    assert run("sweep", *flags, "--confirm=3", "--confirm_seeds=3").returncode == 0
    assert stub.tried == []
    assert run("sweep", *flags, "--confirm=4", "--confirm_seeds=4").returncode == 0
    assert sorted((v["learning_rate"], v["seed"]) for v in stub.tried) == sorted(
        [(0.001, seed) for seed in range(10_000, 10_004)] + [(rate, 10_003) for rate in best.values()]
    )
    assert "learning_rate=0.001\n" in (sweep / "best.cfg").read_text()


@pytest.mark.slow
def test_confirmations_are_shared_and_an_unfinished_one_ranks_nothing(stub, data_dir, tmp_path):
    """A confirmation that runs in another sweep's folder is waited for by no one, and is not counted without the others."""
    stub.error = lucky
    shared = (f"--storage=sqlite:///{tmp_path}/study.db", "--study=rates", "--sampler=grid", "--confirm_seeds=2")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (sweep_flags(tmp_path / name, data_dir, *shared, text=CHOICES) for name in ("one", "two"))
    assert run("sweep", *first, "--confirm=1").returncode == 0
    storage = stub.storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.load_study(study_name="rates, trial 2", storage=storage)
    assert [trial.value for trial in study.trials] == [35.0, 36.0]
    stub.tried.clear()
    done = run("sweep", *second, "--confirm=2")
    assert [(values["learning_rate"], values["seed"]) for values in stub.tried] == [(0.004, 10_000), (0.004, 10_001)]
    assert "trial   3  confirmed 29.50 % (29.00 to 30.00, 2 seeds)" in done.stderr
    optuna.create_study(study_name="rates, trial 1", storage=storage).ask()
    waiting = run("sweep", *second, "--confirm=3")
    assert waiting.returncode == 0
    assert "the ranking is that of the search" in waiting.stderr
    assert "learning_rate=0.003\n" in (tmp_path / "two/sweep/best.cfg").read_text()


def test_an_explicit_flag_that_equals_a_default_reaches_trials_and_best_cfg(stub, data_dir, tmp_path):
    """With --init the trainer's own default of --mean is another one."""
    flags = sweep_flags(tmp_path, data_dir, "--trials=1", "--init=runs/other", "--mean=image", momentum=0.9)
    assert run("sweep", *flags).returncode == 0
    (values,) = stub.tried
    assert {"--mean=image", "--momentum=0.9", "--init=runs/other"} <= set(as_flags(values))
    assert "--mean=image\n" in (tmp_path / "sweep" / "best.cfg").read_text()
    again = from_words([f"--flagfile={tmp_path}/sweep/best.cfg", f"--workdir={values['workdir']}", "--seed=0"])
    assert again == from_words(as_flags(values))


@pytest.mark.slow
def test_trials_under_other_flags_do_not_join_a_study(stub, data_dir, tmp_path):
    assert run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=1")).returncode == 0
    # What a space tries, and what a machine needs, may differ.
    fields = {"mesh": "auto", "learning_rate": 0.5, "checkpoint_every": 1, "log_every": 3}
    assert run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=2", **fields)).returncode == 0
    for change, said in (
        ({"epochs": 3, "steps": 0}, "--epochs was 90.0 and is now 3.0"),
        ({"steps": 9}, "--steps was 4 and is now 9"),
        ({"eval_every": 1}, "--eval_every was 2 and is now 1"),
        ({"weight_decay": 0.1}, "--weight_decay was not given and is now 0.1"),
        ({"seed": 1}, "--seed was 0 and is now 1"),
        ({"precision": "bfloat16"}, "--precision was float32 and is now bfloat16"),
    ):
        other = run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=3", **change))
        assert other.returncode == 1
        (line,) = other.stderr.splitlines()
        assert f"has trials with other flags: {said}" in line
    assert len(stub.tried) == 2


def test_data_that_was_prepared_anew_does_not_join_a_study(stub, data_dir, tmp_path):
    assert run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=1")).returncode == 0
    write_store(tiny_source(1), store_path(tmp_path / "data", "tiny", SIZE), SIZE)
    other = run("sweep", *sweep_flags(tmp_path, tmp_path / "data", "--trials=2"))
    assert other.returncode == 1
    assert "--dataset=tiny is not what the study 'sweep' in sqlite:///" in other.stderr


def test_a_sweep_and_a_run_do_not_share_a_folder(stub, data_dir, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text("{}")
    flags = sweep_flags(tmp_path, data_dir, "--trials=1")
    assert f"--workdir={tmp_path}/sweep holds a run" in run("sweep", *flags).stderr
    (tmp_path / "sweep" / "config.json").rename(tmp_path / "sweep" / "notes.txt")
    assert f"--workdir={tmp_path}/sweep holds something that is not a sweep" in run("sweep", *flags).stderr
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["notes.txt"]
    shutil.rmtree(tmp_path / "sweep")
    assert run("sweep", *flags).returncode == 0
    trained = run("train", *tiny_flags(data_dir, tmp_path / "sweep", mesh="1x1"))
    assert trained.returncode == 1
    assert "holds something that is not a run" in trained.stderr


def test_a_storage_that_goes_away_ends_the_sweep_in_one_line(stub, data_dir, tmp_path, monkeypatch):
    """The other job stops. Nothing is called a failed trial."""

    def tried(trial, folder, values, stopping, *others):
        deadline = time.monotonic() + 20
        while trial.number and not stopping():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return TrialState.RUNNING if trial.number else stub(trial, folder, values, stopping, *others)

    def away(*arguments, **options):
        raise OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))

    flags = sweep_flags(tmp_path, data_dir, "--trials=3", "--jobs=2")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run_trial", tried)
        patch.setattr(optuna.Study, "tell", away)
        done = run("sweep", *flags)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --storage=sqlite:///{tmp_path}/sweep/study.db cannot be used: ")
    assert "server closed the connection" in line
    assert {row["state"] for row in trials_of(tmp_path / "sweep")} == {"running"}


@pytest.mark.slow
def test_a_workdir_may_have_any_name_that_trainers_take(stub, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_storage", optuna.storages.RDBStorage)
    folder = tmp_path / "y#%41 'é' {z}&=;"
    folder.mkdir()
    assert run("sweep", *sweep_flags(folder, data_dir, "--trials=1")).returncode == 0
    assert (folder / "sweep" / "study.db").stat().st_size > 1000
    assert [row["state"] for row in trials_of(folder / "sweep")] == ["complete"]
