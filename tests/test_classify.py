"""The Python side: what `from alexnet_jax import ...` gives, and images of every kind in two lines."""

import doctest
import inspect
import io
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import CLASSES, ROOT, SIZE
from pictures import broken, encode, smooth
from PIL import Image
from test_predictor import BATCH, NAMES, images, trained_on

import alexnet_jax
from alexnet_jax import network as network_module
from alexnet_jax.inference import predictor
from alexnet_jax.inference.images import encoded
from alexnet_jax.inference.predictor import Classification, Guess, Predictor
from alexnet_jax.system.errors import UserError


@pytest.fixture(scope="module")
def trained() -> Predictor:
    found = trained_on()
    return Predictor(found.setup, found.stored, found.mean, found.params, found.step)


@pytest.fixture(scope="module")
def expected(trained):
    """The probabilities of the twenty images by the function below."""
    return Classification(trained)(images())


def test_the_public_names_come_without_jax():
    """In a process of its own: here all is imported already."""
    code = "import sys, alexnet_jax as a; print('jax' in sys.modules, *a.__all__, set(a.__all__) - set(dir(a)))"
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split(maxsplit=1) == ["False", "ARCHITECTURES Network __version__ load_trained set()\n"]
    assert alexnet_jax.load_trained is predictor.load_trained
    assert alexnet_jax.Network is network_module.Network
    assert alexnet_jax.ARCHITECTURES["paper"].towers == 2
    with pytest.raises(AttributeError, match="module 'alexnet_jax' has no attribute 'load_model'"):
        _ = alexnet_jax.load_model
    with pytest.raises(ImportError):
        exec("from alexnet_jax import load_model")


def test_an_image_of_every_kind_has_the_answer_of_its_pixels(trained, expected, tmp_path):
    pixels = images()[3]
    content = encode(Image.fromarray(pixels), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    kinds = [str(tmp_path / "a.png"), tmp_path / "a.png", content, pixels, jnp.asarray(pixels), opened, opened]
    together = trained.probabilities(kinds)
    np.testing.assert_array_equal(together, np.stack([expected[3]] * len(kinds)))
    for one in kinds:
        np.testing.assert_array_equal(trained.probabilities(one), expected[3:4])
    np.testing.assert_array_equal(np.asarray(opened), pixels)  # it is as it was
    grey, clear = pixels[..., :1], np.concatenate([pixels, np.full((SIZE, SIZE, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(trained.probabilities([clear])[0], expected[3])
    np.testing.assert_array_equal(trained.probabilities(grey), trained.probabilities(np.repeat(grey, 3, axis=-1)))


def test_other_sizes_are_resized_as_the_run_says(trained):
    wide = smooth(120, 80)
    centre = wide.crop((20, 0, 100, 80)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    warped = wide.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    config = replace(trained.config, resize="warp")
    fc8 = trained.params["fc8"] | {"kernel": trained.params["fc8"]["kernel"] / 100}  # unsure, so that small changes show
    unsure = replace(trained, params=trained.params | {"fc8": fc8})
    warp = replace(unsure, setup=replace(trained.setup, config=config))
    assert np.abs(unsure.probabilities(centre) - unsure.probabilities(warped)).max() > 5e-3
    for network, square in ((unsure, centre), (warp, warped)):
        for form in (wide, np.asarray(wide), encode(wide, "PNG")):
            np.testing.assert_allclose(network.probabilities(form), unsure.probabilities(np.asarray(square)), atol=1e-3)


def test_the_likeliest_classes_are_named_best_first(trained, expected):
    for guesses, row in zip(trained.classify(images()[:4], top=3), expected, strict=False):
        order = sorted(range(CLASSES), key=lambda number: -row[number])[:3]
        assert guesses == [Guess(NAMES[number], number, float(row[number])) for number in order]
    assert [len(guesses) for guesses in trained.classify(images()[0])] == [5]
    assert len(trained.classify(images()[0], top=99)[0]) == CLASSES


def test_any_number_of_images_is_looked_at_in_batches(trained, expected):
    assert len(expected) > 2 * BATCH
    np.testing.assert_array_equal(trained.probabilities(images()), expected)
    np.testing.assert_array_equal(trained.probabilities(image for image in images()), expected)
    assert trained.classify([]) == []
    assert trained.probabilities(images()[:0]).shape == (0, CLASSES)


def test_the_program_is_compiled_once_for_each_network(trained, monkeypatch):
    made = []
    monkeypatch.setattr(predictor, "Classification", lambda network: made.append(network) or Classification(network))
    fresh = replace(trained)
    for _ in range(3):
        fresh.classify(images()[:2])
    assert made == [fresh]


def test_other_parameters_give_other_answers(trained):
    silent = trained.params | {"fc8": {name: 0 * value for name, value in trained.params["fc8"].items()}}
    np.testing.assert_allclose(replace(trained, params=silent).probabilities(images()[:2]), 1 / CLASSES, rtol=1e-6)


def test_an_image_that_cannot_be_read_is_named(trained, tmp_path):
    (tmp_path / "good.png").write_bytes(encode(smooth(9, 9), "PNG"))
    (tmp_path / "bad.png").write_bytes(broken("png"))
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    wrong = [
        ([good, bad], f"{bad}: "),
        (str(tmp_path / "none.png"), f"{tmp_path}/none.png: No such file or directory"),
        (tmp_path, f"{tmp_path}: it is no regular file"),
        ([good, b"text"], "image 1: in no image format"),
        ([good, good, Image.open(io.BytesIO(broken("png")))], "image 2: "),
        (images()[0].astype(np.float32), "image 0: float32 pixels of shape (66, 66, 3): they must be uint8"),
        (images()[0][..., 0], "image 0: uint8 pixels of shape (66, 66)"),
        (Image.new("F", (9, 9)), "image 0: mode F"),
    ]
    for given, said in wrong:
        with pytest.raises(UserError) as caught:
            trained.classify(given)
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="count of at least 0; found -1"):
        trained.classify(good, top=-1)


def test_what_is_no_image_is_a_mistake_of_the_caller(trained):
    with pytest.raises(TypeError):
        trained.classify([images()[0], 7])
    with pytest.raises(TypeError, match="expected a path, bytes, an array or an image of Pillow's; found int"):
        inspect.unwrap(encoded)(7)  # without the tests' own check of types


def test_a_network_has_the_inputs_and_classes_of_its_table():
    """As shapes: nothing is allocated or compiled."""
    table = alexnet_jax.ARCHITECTURES["paper"]
    network = nnx.eval_shape(lambda: alexnet_jax.Network(table, rngs=nnx.Rngs(0)))
    assert network.layers["fc8"].kernel.shape == (2, 2048, 1000)
    assert network.layers["fc6"].kernel.shape == (2, 6 * 6 * 256, 2048)
    logits = nnx.eval_shape(lambda: alexnet_jax.Network(table, rngs=nnx.Rngs(0))(jnp.ones((1, 224, 224, 3))))
    assert logits.shape == (1, 1000)
    small = nnx.eval_shape(
        lambda: alexnet_jax.Network(alexnet_jax.ARCHITECTURES["cifar_11pct"], classes=10, rngs=nnx.Rngs(0))
    )
    assert small.layers["fc10"].kernel.shape == (1, 6 * 6 * 32, 10)  # of 24 px


@pytest.mark.slow
def test_the_example_of_the_network_is_true():
    """The paper's network, full size."""
    found = doctest.DocTestFinder(recurse=False).find(network_module.Network, "Network", globs=vars(network_module).copy())
    (example,) = [one for one in found if one.examples]
    assert doctest.DocTestRunner().run(example) == (0, 4)
