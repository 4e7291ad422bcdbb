"""The scaling model's traffic against what the compiled training step exchanges."""

import pytest
from networks import MESHES, small_config

from alexnet_jax.config import Config
from experiments.scaling_model import Machine, network, predictions, step_seconds, traffic


def test_the_papers_exchange():
    """13 x 13 x 128 values before conv3, 6 x 6 x 128 before fc6, 2,048 before fc7 from the other tower; 1,000 logits."""
    net = network(Config(crop_size=227))
    assert net.gathered == 13 * 13 * 128 + 6 * 6 * 128 + 2048
    assert net.summed == 1000
    assert net.params == 60_965_224  # Section 3: 60 million


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_compiled_step_exchanges_what_the_model_says(mesh):
    found = traffic(small_config(mesh=mesh), network(small_config(mesh="1x1")))
    assert found["counted"] == found["model"]
    rows, towers = map(int, mesh.split("x"))
    exchanged = {kind for kind, values in found["counted"].items() if values}
    assert exchanged >= ({"all-reduce"} if rows > 1 else set())
    assert exchanged >= ({"all-gather", "reduce-scatter"} if towers > 1 else set())
    assert exchanged or mesh == "1x1"


def test_one_device_is_the_modelled_limit_and_more_are_never_faster_than_in_proportion():
    """128 images on one H200: 107,000 images/s, all kernels fused."""
    net, machine = network(Config(crop_size=227)), Machine()
    assert 128 / step_seconds(machine, net, 1, 1, 128)["step"] == pytest.approx(107_000, rel=0.01)
    for row in predictions(machine, net, 128, weak=True):
        assert row["images_per_second"] <= row["images_per_second_overlapped"] <= row["devices"] * 112_000
