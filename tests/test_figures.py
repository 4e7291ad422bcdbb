"""The figures: the right curves, every kernel in its place, and files a person can open."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from networks import run, tiny_config
from PIL import Image

from alexnet_jax.figures import draw_curves, draw_kernels, kernel_images
from alexnet_jax.train import train

mpl.use("agg")


def test_curves_hold_the_rows_of_each_split():
    rows = [
        {"split": split, "epoch": epoch, "loss": 3 - epoch, "top1_error": 90 - epoch, "learning_rate": rate}
        for epoch, rate in ((1, 0.01), (2, 0.001))
        for split in ("train", "validation")
    ]
    figure = draw_curves(rows, "title")
    loss = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert loss["train"] == loss["validation"] == [[1, 2], [2, 1]]
    assert [line.get_xdata()[0] for line in figure.axes[1].get_lines()[2:]] == [2]  # where the rate dropped
    plt.close(figure)


def test_kernels_are_scaled_one_by_one_and_laid_out_by_tower():
    kernel = np.zeros((2, 3, 3, 3, 20))
    kernel[0, 0, 0, 0, 0] = 4.0  # red, top left, first kernel of tower 0
    kernel[1, 2, 2, 2, 17] = -0.5  # anti-blue, bottom right, second row of tower 1
    pictures = kernel_images(kernel)
    np.testing.assert_array_equal(pictures[0, 0, 0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(pictures[1, 17, 2, 2], [0.5, 0.5, 0])
    figure = draw_kernels(kernel, "title", columns=16)
    top, bottom = (axis.images[0].get_array() for axis in figure.axes)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["tower 0", "tower 1"]
    np.testing.assert_array_equal(top[0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(bottom[4 + 2, 4 + 2], [0.5, 0.5, 0])
    plt.close(figure)


@pytest.mark.slow
def test_the_command_line(data_dir, tmp_path):
    train(tiny_config(data_dir, tmp_path / "run", log_every=1))
    result = run("figures", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    paths = result.stdout.splitlines()
    assert [path.rpartition("/")[2] for path in paths] == ["curves.png", "conv1_kernels.png"]
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        assert min(image.shape[:2]) > 100
        assert len(np.unique(image)) > 20  # not a blank sheet
        assert "<svg" in Path(path.replace(".png", ".svg")).read_text()
    missing = run("figures", f"--workdir={tmp_path / 'none'}")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: --workdir=")
