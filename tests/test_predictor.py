"""A trained network from Python: any number of images, one at a time or many, and what is refused by name."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CLASSES, CROP, SIZE, small_batch, small_mean, small_setup

from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Subset, whole
from alexnet_jax.data.store import Split
from alexnet_jax.evaluation import Evaluator, make_eval_fn
from alexnet_jax.inference.analysis import confusion, judge, nearest
from alexnet_jax.inference.predictor import Classification, Features, top_classes
from alexnet_jax.network import merge
from alexnet_jax.prediction import FeatureFile
from alexnet_jax.run.open import Trained
from alexnet_jax.run.workdir import Stored
from alexnet_jax.scores import write_predictions
from alexnet_jax.system.errors import UserError

NAMES = tuple(f"class {number}" for number in range(CLASSES))
BATCH = 8


def trained_on(spmd: str = "shard_map", mesh: str = "1x1") -> Trained:
    """Fresh parameters whose classifier is scaled until it tells images of noise apart."""
    setup = small_setup(spmd, mesh)
    params = jax.device_get(small_setup().initial_state().params)
    params["fc8"] |= {"kernel": 300 * params["fc8"]["kernel"]}
    return Trained(setup, Stored(setup.config, NAMES, ""), small_mean(), setup.mesh.put(params, setup.specs), 0)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return trained_on()


@pytest.fixture(scope="module")
def classify(trained):
    return Classification(trained)


@pytest.fixture(scope="module")
def features(trained):
    return {layer: Features(trained, layer) for layer in ("conv5", "fc7")}


@functools.cache
def images(count: int = 20) -> np.ndarray:
    return small_batch(count).images


def test_any_number_of_images_has_the_answers_of_smaller_batches(classify):
    """Bit for bit those of calls with up to one batch of images, and the network's own."""
    apart = np.concatenate([classify(images()[first : first + BATCH]) for first in range(0, 20, BATCH)])
    assert len(np.unique(apart, axis=0)) == 20
    for count in (0, 1, 7, 8, 9, 16, 17, 20):
        found = classify(images()[:count])
        assert (found.shape, found.dtype) == ((count, CLASSES), np.float32)
        np.testing.assert_array_equal(found, apart[:count])
    np.testing.assert_allclose(apart.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_answers_are_those_of_the_network(trained, classify, features):
    """Of 20 images at once, in float64 from the logits on."""
    start = (SIZE - CROP) // 2
    pixels = (images().astype(np.float32) - small_mean())[:, start : start + CROP, start : start + CROP]

    @jax.jit
    def network(params, pixels):
        graph = merge(trained.setup.graph, params)
        return graph(pixels), {layer: graph.activations(pixels, layer) for layer in features}

    logits, activations = network(trained.params, jnp.asarray(pixels))
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(classify(images()), odds / odds.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)
    for layer, look in features.items():
        towers = np.concatenate([np.asarray(x) for x in activations[layer]], axis=-1)
        np.testing.assert_allclose(look(images()), towers, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", ["conv5", "fc7"])
def test_features_of_any_number_of_images(features, layer):
    look = features[layer]
    apart = np.concatenate([look(images()[first : first + BATCH]) for first in range(0, 20, BATCH)])
    assert apart.ndim == (4 if layer == "conv5" else 2)
    for count in (0, 1, 8, 9, 20):
        found = look(images()[:count])
        assert (found.shape, found.dtype) == ((count, *apart.shape[1:]), np.float32)
        np.testing.assert_array_equal(found, apart[:count])
    np.testing.assert_array_equal(look(images()[3]), look(images()[3:4])[0])


def test_one_image_has_one_answer(classify):
    one = classify(images()[5])
    assert one.shape == (CLASSES,)
    np.testing.assert_array_equal(one, classify(images()[5:6])[0])
    best = top_classes(one, NAMES)[0]
    assert (best["index"], best["probability"]) == (one.argmax(), one.max())


def test_images_of_any_kind_of_array(classify):
    """A list, a view with other strides, a read-only one, and one on the devices."""
    wanted = classify(images()[:4])
    odd = np.asfortranarray(images()[:4])
    shut = images()[:4].copy()
    shut.flags.writeable = False
    for same in (list(images()[:4]), odd, shut, jnp.asarray(images()[:4]), images()[3::-1][::-1]):
        np.testing.assert_array_equal(classify(same), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "2x1"), ("shard_map", "4x2"), ("pmap", "2x2")])
def test_any_number_of_images_on_every_mesh(classify, spmd, mesh):
    there = Classification(trained_on(spmd, mesh))
    for count in (0, 1, 9):
        np.testing.assert_allclose(there(images()[:count]), classify(images()[:count]), rtol=1e-4, atol=1e-7)
    assert there(images()[0]).shape == (CLASSES,)


WRONG = [
    (lambda x: x.astype(np.float32), TypeError, "expected uint8 pixels, from 0 to 255; found float32"),
    (lambda x: x / 255, TypeError, "found float64"),
    (lambda x: x.astype(np.int64), TypeError, "found int64"),
    (lambda x: x > 127, TypeError, "found bool"),
    (lambda x: x.astype(np.int8), TypeError, "found int8"),
    (lambda x: x.astype(np.uint16), TypeError, "found uint16"),
    (lambda x: x.astype(object), TypeError, "found object"),
    (lambda x: [], TypeError, "found float64"),
    (lambda x: np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), ValueError, r"66 x 66 pixels, .*; found \(3, 68, 68, 3\)"),
    (lambda x: x[:, 3:, 3:], ValueError, r"found \(3, 63, 63, 3\)"),
    (lambda x: x[:, :60], ValueError, r"found \(3, 60, 66, 3\)"),
    (lambda x: x[..., :1], ValueError, r"found \(3, 66, 66, 1\)"),
    (lambda x: x[..., [0, 1, 2, 2]], ValueError, r"found \(3, 66, 66, 4\)"),
    (lambda x: x[..., 0], ValueError, r"found \(3, 66, 66\)"),
    (lambda x: x.transpose(0, 3, 1, 2), ValueError, r"found \(3, 3, 66, 66\)"),
    (lambda x: x[None], ValueError, r"found \(1, 3, 66, 66, 3\)"),
    (lambda x: x[0, 0], ValueError, r"found \(66, 3\)"),
    (lambda x: x[0, 0, 0, 0], ValueError, r"found \(\)"),
    (lambda x: x.reshape(3, -1), ValueError, r"found \(3, 13068\)"),
    (lambda x: x[:0, 1:], ValueError, r"found \(0, 65, 66, 3\)"),
]


@pytest.mark.parametrize(("change", "error", "found"), WRONG)
def test_other_pixels_and_shapes_are_refused_by_name(trained, classify, features, change, error, found):
    wrong, split = change(images()[:3]), whole(Split(images(), np.zeros(20, np.int32)))
    for look in (classify, features["fc7"], features["conv5"], lambda x: nearest(features["fc7"], x, split, 8)):
        with pytest.raises(error, match=found):
            look(wrong)


def noise_split(count: int = 5, size: int = SIZE, labels: tuple[int, ...] = ()) -> Subset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return whole(Split(pixels, np.array(labels or [0] * count, np.int32)))


@pytest.fixture(scope="module")
def evaluate(trained):
    """Evaluates a split with so many members."""
    evaluator = Evaluator(trained.setup.mesh, BATCH)
    member = make_eval_fn(trained.setup, trained.mean), trained.params
    return lambda split, members=1: evaluator([member] * members, Loader(trained.setup.mesh, split))


@pytest.mark.parametrize(
    ("split", "members", "found"),
    [
        (noise_split(labels=(0, 1, CLASSES, 2, 3)), 1, "labels from 0 to 13; found 0 to 14"),
        (noise_split(labels=(0, 1, -1, 2, 3)), 1, "labels from 0 to 13; found -1 to 3"),
        (noise_split(size=SIZE + 2), 1, r"66 x 66 pixels.*; found \(8, 68, 68, 3\)"),
        (noise_split(size=CROP), 1, r"66 x 66 pixels.*; found \(8, 63, 63, 3\)"),
        (noise_split(), 0, "expected networks and examples; found 0 and 5"),
        (Subset(noise_split().parts, np.arange(0)), 1, "found 1 and 0"),
    ],
)
def test_a_split_that_is_not_the_networks_is_not_evaluated(evaluate, split, members, found):
    with pytest.raises(ValueError, match=found):
        evaluate(split, members)
    assert evaluate(noise_split(labels=(0, 13, 5, 2, 3)))[0].examples == 5


def test_a_batch_of_floats_on_the_devices_is_refused(trained):
    member = make_eval_fn(trained.setup, trained.mean), trained.params
    for pixels, error in ((images(8).astype(np.float32), TypeError), (images(8)[:, 1:], ValueError)):
        with pytest.raises(error, match="expected"):
            Evaluator(trained.setup.mesh, BATCH).judge_batch([member], (jnp.asarray(pixels), jnp.zeros(8, np.int32)), 1)


def test_a_network_that_answers_nan_is_named(trained, tmp_path):
    """Its parameters are finite, so that the training has kept them."""
    huge = jax.tree.map(lambda x: x * 1e30, trained.params)
    diverged = replace(trained, params=huge, step=7)
    said = r"^--workdir= at step 7 answers with numbers that are not finite: choose an earlier checkpoint with --step$"
    with pytest.raises(UserError, match=said):
        Classification(diverged)(images()[0])
    with pytest.raises(UserError, match=said):
        judge(diverged, noise_split())


class MeanColour(Features):
    """Features that can be computed by hand."""

    def __init__(self): ...

    def __call__(self, images):
        return np.asarray(images, np.float32).mean((-3, -2))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
@pytest.mark.parametrize("queries", [0, 1, 3, 20])
def test_the_nearest_of_any_number_of_queries(batch_size, queries):
    among = noise_split(7)
    colours = among.parts[0].images.mean((1, 2))
    apart = np.linalg.norm(colours[None] - images()[:queries].mean((1, 2))[:, None], axis=2)
    for count in (1, 6, 7, 50):
        places, distances = nearest(MeanColour(), images()[:queries], among, batch_size, count)
        assert places.shape == distances.shape == (queries, min(count, 7))
        np.testing.assert_array_equal(places, np.argsort(apart, axis=1)[:, :count])
        np.testing.assert_allclose(distances, np.sort(apart, axis=1)[:, :count], rtol=1e-4)
    if queries:
        place, distance = nearest(MeanColour(), images()[0], among, batch_size, 2)
        np.testing.assert_array_equal(place, np.argsort(apart[0])[:2])
        assert distance.shape == (2,)


@pytest.mark.parametrize(("batch_size", "count"), [(0, 6), (-1, 6), (8, 0), (8, -1)])
def test_the_nearest_of_no_batch_or_no_count_are_refused(batch_size, count):
    with pytest.raises(ValueError, match=f"found {batch_size} and {count}"):
        nearest(MeanColour(), images()[:2], noise_split(), batch_size, count)


def test_nothing_is_near_in_an_empty_split():
    places, distances = nearest(MeanColour(), images()[:2], Subset(noise_split().parts, np.arange(0)), 8)
    assert places.shape == distances.shape == (2, 0)


@pytest.mark.parametrize(
    ("probabilities", "count", "found"),
    [
        ([0.5, np.nan, 0.5], 5, "NaN or infinity"),
        ([0.5, np.inf, 0.5], 5, "NaN or infinity"),
        ([0.5, 0.5], 5, r"3 probabilities, shape \(3,\); found \(2,\)"),
        ([[0.5, 0.5, 0.0]], 5, r"found \(1, 3\)"),
        ([0.1, 0.2, 0.3, 0.4], 5, r"found \(4,\)"),
        (0.5, 5, r"found \(\)"),
        ([0.5, 0.2, 0.3], -1, "count of at least 0; found -1"),
    ],
)
def test_likeliest_classes_of_anything_else_are_refused(probabilities, count, found):
    with pytest.raises(ValueError, match=found):
        top_classes(np.array(probabilities, np.float32), ["a", "b", "c"], count)


def test_likeliest_classes_of_a_list_or_whole_numbers():
    assert [row["class"] for row in top_classes([0.2, 0.5, 0.3], ["a", "b", "c"], 2)] == ["b", "c"]
    assert [row["class"] for row in top_classes(np.array([0, 1, 2], np.uint8), ["a", "b", "c"])] == ["c", "b", "a"]
    assert top_classes([0.2, 0.8], ["a", "b"], 0) == []


@pytest.mark.parametrize(("labels", "guesses"), [([0, 3], [0, 0]), ([0, 0], [0, 3]), ([-1, 0], [0, 0]), ([0, 0], [1, -1])])
def test_a_class_that_is_not_there_is_not_counted_for_another(labels, guesses):
    with pytest.raises(ValueError, match="from 0 to 2; found"):
        confusion(np.array(labels), np.array(guesses), 3)
    assert confusion(np.array([], np.int64), np.array([], np.int64), 3).tolist() == [[0] * 3] * 3


def test_a_file_of_features_has_a_name_for_each_row(tmp_path):
    with (tmp_path / "rows").open("w+b") as rows:
        file, colours = FeatureFile(rows), images()[:3].mean((1, 2), dtype=np.float32)
        for names, pixels in ((["a"], colours[:2]), (["a", "b"], colours[:1]), ([], colours[:1])):
            with pytest.raises(ValueError, match="each with a name; found"):
                file.add(names, pixels)
        file.add(["a", "b"], colours[:2])
        file.add([], colours[:0])
        file.add(["c"], colours[2:])
        file.write(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as written:
        assert written["images"].tolist() == ["a", "b", "c"]
        np.testing.assert_allclose(written["features"], images()[:3].mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (5,), (5, 3, 1)])
def test_predictions_of_other_examples_or_classes_are_not_written(tmp_path, shape):
    with pytest.raises(ValueError, match=r"expected log probabilities \(5, 3\); found"):
        write_predictions(Path(tmp_path / "p.npz"), np.zeros(shape), noise_split(), ["a", "b", "c"])
    assert not list(tmp_path.iterdir())
