"""`imagenet2012` from small tars in the official layout to an evaluated network, by the README's commands.

TFDS needs TensorFlow (requirements-prepare.txt) to build the set, and not to read it.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import networks
import numpy as np
import pytest
from imagenet_tars import TRAIN, VALIDATION, tar_of, write_tars

from alexnet_jax.config import from_words
from alexnet_jax.data.decode import square_rgb
from alexnet_jax.data.store import open_store

ROOT = Path(__file__).parents[1]
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed: requirements-prepare.txt"
)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """The folder above downloads/manual, and the bytes of every image by its class or name."""
    folder = tmp_path_factory.mktemp("tfds")
    return folder, *write_tars(folder)


def run(*command, check=True, **environment):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | environment
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def prepare(folder, data_dir, *flags, **options):
    flags = ("--dataset=imagenet2012", f"--tfds_dir={folder}", f"--data_dir={data_dir}", "--image_size=64", *flags)
    return run("alexnet_jax.prepare", *flags, **options)


@needs_tensorflow
@pytest.mark.slow
def test_from_the_tars_to_an_evaluated_network(tars, tmp_path):
    folder, train, validation = tars
    done = prepare(folder, tmp_path)
    assert "25 train, 5 validation, 64 px, 1,000 classes" in done.stderr
    assert "996 of the classes have no training image" in done.stderr
    store = open_store(tmp_path / "imagenet2012-64")
    assert store.classes[:2] == ("n01440764", "n01443537")
    seen = {}
    for image, label in zip(store.splits["train"].images, store.splits["train"].labels.tolist(), strict=True):
        seen.setdefault(label, []).append(image)
    assert {label: len(images) for label, images in seen.items()} == {0: 6, 1: 6, 230: 7, 999: 6}
    for wnid, label in TRAIN.items():
        for content in train[wnid]:
            # TFDS turns the PNG into a JPEG, so its pixels differ a little.
            distances = [np.abs(square_rgb(content, 64).astype(int) - image).max() for image in seen[label]]
            assert min(distances) <= (40 if content.startswith(b"\x89PNG") else 0)
    by_label = dict(zip(store.splits["validation"].labels.tolist(), store.splits["validation"].images, strict=True))
    assert sorted(by_label) == sorted(VALIDATION)
    for number, label in enumerate(VALIDATION, start=1):
        np.testing.assert_array_equal(by_label[label], square_rgb(validation[f"ILSVRC2012_val_{number:08d}.JPEG"], 64))
    # The rest runs without TensorFlow.
    (tmp_path / "none").mkdir()
    (tmp_path / "none/tensorflow.py").write_text("raise ImportError('not wanted')\n")
    without = {"PYTHONPATH": f"{tmp_path}/none"}
    again = prepare(folder, tmp_path / "again", **without)
    assert "25 train, 5 validation" in again.stderr
    assert open_store(tmp_path / "again/imagenet2012-64").fingerprint == store.fingerprint
    common = (f"--data_dir={tmp_path}", f"--workdir={tmp_path}/run", "--batch_size=5", "--mesh=1x1")
    small = ("--architecture=paper_eighth", "--image_size=64", "--crop_size=63")
    flags = ("--dataset=imagenet2012", *small, "--steps=2", "--learning_rate=0.001")
    trained = networks.run("train", *common, *flags)
    assert trained.returncode == 0, trained.stderr
    judged = networks.run("evaluate", *common, "--split=validation", "--views=10")
    assert judged.returncode == 0, judged.stderr
    score = json.loads(judged.stdout.splitlines()[-1])
    assert (score["examples"], score["views"], score["step"]) == (5, 10, 2)
    assert 6 < score["loss"] < 8  # ln 1,000 is 6.9


@pytest.mark.parametrize(("name", "resize"), [("source2012", "centre"), ("caffe", "warp")])
def test_the_recipes_prepare_images_as_their_sources_did(name, resize):
    config = from_words([f"--flagfile={ROOT}/experiments/imagenet2012_{name}.cfg"])
    assert (config.dataset, config.architecture, config.resize, config.schedule) == ("imagenet2012", name, resize, "steps")


@needs_tensorflow
@pytest.mark.slow
def test_a_set_on_disk_as_tfrecord_is_read_and_not_built_again(tmp_path):
    """TFDS writes the set in its old format. Every image keeps its label."""
    write = f"""
import io, sys, numpy as np, tensorflow_datasets as tfds
from PIL import Image
class Old(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name, VERSION = "old", tfds.core.Version("1.0.0")
    def _info(self):
        features = {{"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, downloads):
        return {{"train": self._generate_examples()}}
    def _generate_examples(self):
        for n in range(300):
            yield n, {{"image": np.full((16, 16, 3), n % 256, np.uint8), "label": n % 3}}
Old(data_dir={str(tmp_path)!r}, file_format="tfrecord").download_and_prepare()
from alexnet_jax.prepare import COMMAND
sys.exit(COMMAND(["--dataset=old", "--tfds_dir={tmp_path}", "--data_dir={tmp_path}/data", "--image_size=16"]))
"""
    subprocess.run([sys.executable, "-c", write], check=True, capture_output=True, cwd=ROOT)
    split = open_store(tmp_path / "data/old-16").splits["train"]
    values = split.images[:, 0, 0, 0]
    assert sorted(values.tolist()) == sorted(n % 256 for n in range(300))
    numbers = [{n % 3 for n in range(300) if n % 256 == value} for value in values]
    assert all(label in allowed for label, allowed in zip(split.labels.tolist(), numbers, strict=True))
    assert np.bincount(split.labels).tolist() == [100, 100, 100]
    assert not list(tmp_path.rglob("*.array_record*"))


FAULTS = {
    "no train": "downloads/manual/ILSVRC2012_img_train.tar is missing: put",
    "no validation": "downloads/manual/ILSVRC2012_img_val.tar is missing: put",
    "cut": "ILSVRC2012_img_train.tar ends early, after 15,000 bytes",
    "between files": "ILSVRC2012_img_val.tar ends early",
    "a class is no tar": "TFDS could not prepare it",
}
# Each fault has a folder. One process tries them all, because importing TensorFlow takes seconds.
_PREPARE_ALL = """
import contextlib, io, json, sys
from alexnet_jax.prepare import COMMAND
for folder in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        flags = ("--dataset=imagenet2012", f"--tfds_dir={folder}", f"--data_dir={folder}/data", "--image_size=64")
        status = COMMAND(flags)
    print("found", json.dumps([status, said.getvalue().splitlines()[-1]]))
"""


@needs_tensorflow
@pytest.mark.slow
def test_tars_that_are_missing_or_damaged_are_named(tars, tmp_path):
    for fault in FAULTS:
        manual = tmp_path / fault / "downloads" / "manual"
        manual.mkdir(parents=True)
        for name, content in damaged(tars[0] / "downloads/manual", fault).items():
            (manual / name).write_bytes(content)
    folders = [str(tmp_path / fault) for fault in FAULTS]
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE_ALL, *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")]
    assert len(found) == len(FAULTS)
    for (fault, said), (status, line) in zip(FAULTS.items(), found, strict=True):
        assert status == 1
        assert line.startswith("error: --dataset=imagenet2012")
        assert said in line
        assert not (tmp_path / fault / "data").exists()


def damaged(manual: Path, fault: str) -> dict[str, bytes]:
    """The tars with one fault."""
    content = {name: (manual / name).read_bytes() for name in os.listdir(manual)}
    train, validation = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
    match fault:
        case "no train":
            del content[train]
        case "no validation":
            del content[validation]
        case "cut":
            content[train] = content[train][:15_000]
        case "between files":
            with tarfile.open(fileobj=io.BytesIO(content[validation])) as tar:
                content[validation] = content[validation][: tar.getmembers()[3].offset]
        case "a class is no tar":
            content[train] = tar_of({"n01440764.tar": b"nothing of the kind" * 100})
    return content


@pytest.mark.slow
def test_without_tensorflow_it_says_what_to_install(tars, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not wanted')\n")
    done = prepare(tmp_path / "nothing", tmp_path / "data", check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install -r requirements-prepare.txt" in line
