"""The page of real runs, through the command line. What is missing or damaged is refused, or said in its place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from networks import run, tiny_flags
from reports import cells, read

from alexnet_jax.figures.kernels import kernel_images, tiled
from alexnet_jax.inference import analysis
from alexnet_jax.inference.analysis import judge
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.report import gather
from alexnet_jax.report.page import render
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system.errors import UserError


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory) -> Path:
    """Two short runs that differ in their seed, and their report."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        every = {"log_every": 1, "eval_every": 2, "checkpoint_every": 4}
        result = run("train", *tiny_flags(data_dir, folder / str(seed), seed=seed, mesh="1x1", **every))
        assert result.returncode == 0, result.stderr
    result = run("report", f"--workdir={folder / '0'}", f"--workdir={folder / '1'}", f"--out={folder / 'report.html'}")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{folder / 'report.html'}\n", "")
    return folder


@pytest.mark.slow
def test_the_page_is_that_of_the_runs(runs, data_dir):
    text = (runs / "report.html").read_text()
    page = read(text)
    record = json.loads((runs / "1" / "config.json").read_text())
    flags = ("--seed=1", "--bias_init=0.1")
    for told in (record["commit"], record["versions"]["jax"], *flags, "8 x cpu", "colour 3", "tower 1"):
        assert told in page.text
    trained = [load_trained(str(runs / seed)) for seed in "01"]
    judged = [judge(one, one.data(str(data_dir)).split("test")) for one in trained]
    for row, one in zip(cells(text)[1:3], judged, strict=True):
        assert f"{one.score.top1_error:.2f} %" in row[1]
        assert f"{one.score.loss:.4f}" in row[3]
    for series in page.curves["charts"][0]["series"]:
        track = page.curves["tracks"][series["track"]]
        rows = [row for row in read_rows(runs / track["run"][-1]) if row["split"] == track["split"]]
        assert series["values"] == [row["loss"] for row in rows]
    images = iter(page.images)
    for one in trained:
        for tower, mine in enumerate(kernel_images(np.asarray(one.params["conv1"]["kernel"]))):
            words, image = next(images)
            assert words == f"conv1, tower {tower}"
            sheet = 255 * tiled(mine, 16 if len(mine) >= 16 else len(mine), 1.0)
            np.testing.assert_array_equal(np.asarray(image), sheet.round())
    shown = np.random.default_rng(0).permutation(33)
    test = judged[0].split
    for number in shown[:8]:
        words, image = next(images)
        assert words == trained[0].classes[test.labels[number]]
        grey = [np.asarray(pixels, float).mean(-1).ravel() for pixels in (image, test.read(np.array([number])).images[0])]
        assert np.corrcoef(grey)[0, 1] > 0.6
    assert len(list(images)) == 4 * 2 * (1 + 6)  # queries with their neighbours, for each run
    assert not list(runs.glob("*.tmp"))


def broken_runs(runs: Path, folder: Path) -> dict[str, str]:
    """Folders of runs that lack something or are damaged, each with what is said of it."""
    names = ("bare", "lost", "older", "damaged")
    for name in names:
        (folder / name).mkdir()
        for file in ("config.json", "mean.npy", "metrics.jsonl"):
            shutil.copy(runs / "0" / file, folder / name)
        if name != "lost":
            shutil.copytree(runs / "0" / "checkpoints", folder / name / "checkpoints")
    (folder / "bare" / "metrics.jsonl").unlink()
    record = json.loads((runs / "0" / "config.json").read_text())
    record["config"]["warp_drive"] = 9
    (folder / "older" / "config.json").write_text(json.dumps(record))
    (folder / "damaged" / "metrics.jsonl").write_text("text\n")
    return {
        "bare": "--workdir={} has no metrics yet: train longer than --log_every=1 steps",
        "lost": "the run in {} has no finished checkpoint yet",
        "older": "{}/config.json: config has unknown fields warp_drive: it was written by another version",
        "damaged": "{}/metrics.jsonl: line 1 is no row of a record",
    }


@pytest.mark.slow
def test_a_broken_run_is_refused_alone_and_noted_beside_another(runs, data_dir, tmp_path, monkeypatch):
    """Alone it is refused before its network looks at anything. Beside another it has its row, and what is left of it."""
    options = {"step": "latest", "split": "test", "data_dir": str(data_dir), "batch_size": 16, "sample_seed": 0}
    broken = broken_runs(runs, tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(analysis, "judge")
        for name, message in broken.items():
            with pytest.raises(UserError) as caught:
                gather.gather([str(tmp_path / name)], **options)
            assert str(caught.value).startswith(message.format(tmp_path / name))
    found = gather.gather([str(runs / "0"), *(str(tmp_path / name) for name in broken)], **options)
    assert [one.problems for one in found[:1]] == [()]
    for (name, message), one in zip(broken.items(), found[1:], strict=True):
        assert [problem.startswith(message.format(tmp_path / name)) for problem in one.problems] == [True]
        assert (one.config is None) == (name == "older")
        assert (one.results is None) == (name in ("older", "lost"))
        assert (len(one.rows) == 0) == (name != "lost")
    page = read(render(found))
    assert all(problem in page.text for one in found for problem in one.problems)


@pytest.mark.slow
def test_several_runs_without_results_are_refused(runs, tmp_path, data_dir):
    broken_runs(runs, tmp_path)
    options = {"step": "latest", "split": "test", "data_dir": str(data_dir), "batch_size": 16, "sample_seed": 0}
    with pytest.raises(UserError, match="none holds no run: there is no "):
        gather.gather([str(runs / "0"), str(tmp_path / "none")], **options)
    with pytest.raises(UserError, match="lost has no finished checkpoint yet"):
        gather.gather([str(tmp_path / "lost"), str(tmp_path / "older")], **options)
    with pytest.raises(UserError, match="--dataset=tiny is not prepared at 66 px under --data_dir=/nowhere"):
        gather.gather([str(runs / "0"), str(runs / "1")], **options | {"data_dir": "/nowhere"})


@pytest.mark.slow
def test_a_damaged_run_costs_a_note_and_no_page(runs, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"config": 5}')
    out = tmp_path / "report.html"
    result = run("report", f"--workdir={runs / '0'}", f"--workdir={tmp_path / 'damaged'}", f"--out={out}")
    note = f"{tmp_path / 'damaged' / 'config.json'} is not the config of a run: 'dataset' is missing or of the wrong type"
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{out}\n", f"note: {note}\n")
    assert note in read(out.read_text()).text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is missing: name the folder of a run; repeat it to see several side by side"),
        (["--workdir=w", "--out=/nowhere/r.html"], "--out=/nowhere/r.html: there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    result = run("report", *flags)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"error: {message}\n")
