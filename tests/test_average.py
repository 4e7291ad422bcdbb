"""`evaluate --average`: the mean of the weights of the last checkpoints."""

import jax
import numpy as np
import pytest
from networks import run, tiny_flags

from alexnet_jax.run.open import open_run
from alexnet_jax.values import MeshShape


@pytest.mark.slow
def test_the_weights_of_the_last_checkpoints_are_averaged(data_dir, tmp_path):
    """Of steps 2, 3 and 4 the last two, or the first two; a fourth was never kept."""
    flags = tiny_flags(data_dir, tmp_path, learning_rate=0.05, checkpoint_every=1, keep=3, mesh="1x1")
    assert run("train", *flags).returncode == 0
    trained = open_run(str(tmp_path), mesh=MeshShape(1, 1))
    kept = {step: jax.device_get(trained.restore(str(step)).params) for step in (2, 3, 4)}
    for chosen, steps in (("latest", (3, 4)), ("3", (2, 3))):
        found = trained.restore(chosen, average=2)
        assert found.step == steps[-1]
        expected = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *(kept[step] for step in steps))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found.params, expected)
        assert not np.allclose(found.params["fc8"]["kernel"], kept[steps[-1]]["fc8"]["kernel"], rtol=1e-4)
    words = ("--mesh=1x1", f"--workdir={tmp_path}", "--split=validation")
    whole = run("evaluate", *words, "--average=3")
    assert f"{tmp_path}: the mean of steps 2, 3, 4" in whole.stderr.splitlines()
    assert (whole.returncode, run("evaluate", *words).returncode) == (0, 0)
    refused = run("evaluate", *words, "--average=4")
    assert refused.returncode > 0
    assert refused.stderr.startswith(f"error: --average=4: {tmp_path} has 3 up to step 4: average fewer")
