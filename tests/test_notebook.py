"""The notebook runs from its first cell to its last, and what it cuts is cut."""

import contextlib
import io
import json
import re

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from networks import CLASSES, CROP, ROOT, SIZE, tiny_config

from alexnet_jax.network import merge, split
from alexnet_jax.training import train

mpl.use("agg")
NOTEBOOK = ROOT / "experiments" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def after(data_dir, tmp_path_factory):
    """What the cells have defined and printed for a short run. The cell of the folders is left out."""
    workdir = tmp_path_factory.mktemp("notebook") / "run"
    train(tiny_config(data_dir, workdir))
    names = {"workdir": str(workdir), "data_dir": str(data_dir)}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for cell in CODE:
            if "parameters" not in cell["metadata"].get("tags", ()):
                exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {cell['id']}", "exec"), names)
    plt.close("all")
    return names, printed.getvalue()


def apart(table, params, pixels):
    """The logits of the network whose conv3 is made to read its own tower, with its own part of the kernel."""
    graph, _ = split(table.changed("conv3", reads="own"), classes=CLASSES, crop_size=CROP, dtype=jnp.dtype(jnp.float32))
    both = np.asarray(params["conv3"]["kernel"])
    half = both.shape[-2] // 2
    own = np.stack([both[0][:, :, :half], both[1][:, :, half:]])
    params = params | {"conv3": params["conv3"] | {"kernel": own}}
    return jax.jit(lambda params, pixels: merge(graph, params)(pixels))(params, pixels)


@pytest.mark.slow
def test_the_cells_cut_what_they_say(after):
    """conv3's cross-talk cut by zeros, beside a table that has none there."""
    names, printed = after
    trained, networks, test = names["trained"], names["networks"], names["test"]
    assert list(networks) == ["nothing", "conv3", "fc6", "fc7", "all of them"]
    pictures, labels = test.read(np.arange(len(test)))
    start = (SIZE - CROP) // 2
    pixels = (pictures.astype(np.float32) - trained.mean)[:, start : start + CROP, start : start + CROP]
    logits = np.asarray(apart(names["table"], trained.params, jnp.asarray(pixels)), np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    wanted, found = odds / odds.sum(1, keepdims=True), names["judged"]["conv3"].probabilities
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert np.abs(found - names["judged"]["nothing"].probabilities).max() > 1e-3
    error = 100 * (wanted.argmax(1) != labels).mean()
    assert f"conv3          {error:5.1f} %" in printed.splitlines()


@pytest.mark.slow
def test_a_tower_that_is_cut_off_keeps_its_own_weights(after):
    """In fc6 too, which reads both towers' maps position by position."""
    names, _ = after
    for layer in ("fc6", "fc7", "conv3"):
        whole = np.asarray(names["trained"].params[layer]["kernel"])
        cut = np.asarray(names["networks"][layer].params[layer]["kernel"])
        maps = names["shapes"][layer].in_maps // 2
        rows = np.arange(whole.shape[-2]) // maps % 2  # the tower of each input
        for tower in range(2):
            np.testing.assert_array_equal(cut[tower][..., rows == tower, :], whole[tower][..., rows == tower, :])
            assert not cut[tower][..., rows != tower, :].any()


@pytest.mark.slow
def test_every_figure_of_the_notebook_is_drawn(after):
    names, printed = after
    assert names["kernel"].shape == (2, 11, 11, 3, 6)
    assert "logits: (1, 1000)" in printed
    assert len(names["queries"]) == 3
    assert len(names["figure"].axes) == 1


def test_the_notebook_is_small_and_plain():
    """Nothing but Python, so that its cells run anywhere; only one cell has names of folders, none of them a whole path."""
    assert NOTEBOOK.stat().st_size < 300_000
    assert [cell["id"] for cell in CODE if "parameters" in cell["metadata"].get("tags", ())] == ["run"]
    for cell in CODE:
        assert not re.search(r"^[%!]", "".join(cell["source"]), re.MULTILINE)
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data")
            assert output.get("name") != "stderr"
    assert not re.search(r"/(home|root|work|tmp|Users)/", NOTEBOOK.read_text())
