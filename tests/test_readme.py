"""The pages: their commands word for word, and what they say about files and tests."""

import ast
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from imagenet_tars import photograph, write_tars
from networks import CROP, ROOT, SIZE
from test_launch import shell
from test_sources import write_tfds

from alexnet_jax.data.sources import open_source

TFDS = ROOT.parent / "shared" / "data" / "tfds"
PREFIX = Path(sys.prefix)
NETWORK = f"--architecture=paper_eighth --image_size={SIZE} --crop_size={CROP}"
TINY = {"ALEXNET_FLAGS": f"{NETWORK} --batch_size=8 --epochs=0.1 --log_every=1 --trials=1"}


def blocks(page: str) -> list[str]:
    """The bash blocks of a page, in order, but for the one that runs this."""
    found = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [block for block in found if block != "./launch/test\n"]


def clone(folder: Path, photographs: int | None) -> Path:
    """The repository as git would hand it out, with this environment as its .venv and a folder of photographs."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(PREFIX)
    for number, example in zip(
        range(photographs or sys.maxsize), open_source("groceries", None).splits["train"].read(0), strict=False
    ):
        path = folder / "photos" / f"class {example.label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(example.image)
    return folder


def small_cifar10(folder: Path) -> Path:
    """A TFDS set of that name with 40 training and 10 test images."""
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
    splits = {
        split: [{"image": io.BytesIO(photograph(n, "PNG")), "label": n % 10} for n in range(count)]
        for split, count in (("train", 40), ("test", 10))
    }
    write_tfds(folder, "cifar10", features, splits)
    written = (folder / "cifar10" / "1.0.0").rename(folder / "cifar10" / "3.0.2")  # the version that TFDS looks for
    info = written / "dataset_info.json"
    info.write_text(info.read_text().replace("1.0.0", "3.0.2"))
    return folder


def run_blocks(copy: Path, page: str, timeout: float, **environment: str) -> dict[str, str]:
    """What each block of a page says on stdout."""
    said = {}
    path = f"{PREFIX}/bin:{os.environ['PATH']}"  # activated once, in an earlier block
    for block in blocks(page):
        result = shell(block, copy, timeout, PATH=path, **environment)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        said[block] = result.stdout
    return said


def run_python(copy: Path, page: str) -> str:
    """What the first Python block of a page says of a photograph."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    shutil.copy2(next((copy / "photos").rglob("*.jpg")), copy / "apple.jpg")
    result = subprocess.run([PREFIX / "bin" / "python", "-c", code], cwd=copy, capture_output=True, text=True, check=True)
    return result.stdout


def steps(run: Path) -> list[int]:
    """The steps that a run has rows of training for."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["split"] == "train"]


def check_readme(copy: Path, said: dict[str, str]) -> None:
    """What every run of the README's blocks leaves."""
    lines = said["./launch/quickstart\n"].splitlines()
    scores = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(score["views"], score["examples"]) for score in scores] == [(1, 661), (10, 661)]
    assert all((copy / line).exists() for line in lines if line.endswith(".png"))
    assert sum(line.endswith(".png") for line in lines) == 8
    assert "probability=" in run_python(copy, "README.md")
    for workdir, last in {"towers": 6, "pair": 3, "photos": 3, "cifar10": 3, "tuned": 3}.items():
        assert steps(copy / "runs" / workdir)[-1] == last
    for file in ("report.html", "both.npz", "fc7.npz", "predictions.png", "seed1.safetensors", "sweep/best.cfg"):
        assert (copy / "runs" / file).exists()


@pytest.mark.slow
def test_the_readme_word_for_word_with_a_tiny_network(tmp_path):
    copy = clone(tmp_path / "alexnet_jax", 40)
    tfds_dir = str(small_cifar10(tmp_path / "tfds"))
    without = tmp_path / "without"  # PyTorch, which the page does not ask for, and which takes a second to import
    without.mkdir()
    (without / "torch.py").write_text("raise ImportError\n")
    said = run_blocks(copy, "README.md", 240, TFDS_DATA_DIR=tfds_dir, PYTHONPATH=str(without), **TINY)
    check_readme(copy, said)
    assert steps(copy / "runs" / "quickstart") == list(range(1, 10))  # a tenth of an epoch of 675 images
    assert (copy / "runs" / "sweep" / "trials.csv").read_text().count(",complete,") == 1
    config = json.loads((copy / "runs" / "best" / "config.json").read_text())["config"]
    assert (config["architecture"], config["image_size"], config["seed"]) == ("paper_eighth", SIZE, 101)


@pytest.mark.nightly
def test_the_readme_word_for_word_at_full_length(tmp_path):
    copy = clone(tmp_path / "alexnet_jax", None)
    tfds_dir = str(TFDS if (TFDS / "cifar10").is_dir() else small_cifar10(tmp_path / "tfds"))
    check_readme(copy, run_blocks(copy, "README.md", 4 * 3600, TFDS_DATA_DIR=tfds_dir))
    assert (copy / "runs" / "sweep" / "trials.csv").read_text().count(",complete,") >= 5


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize(
    "tiny", [pytest.param(TINY, marks=pytest.mark.slow), pytest.param({}, marks=pytest.mark.nightly)], ids=["tiny", "full"]
)
def test_the_road_of_imagenet_word_for_word(tmp_path, tiny):
    copy = clone(tmp_path / "alexnet_jax", 1)
    write_tars(copy / "tfds")
    (said,) = run_blocks(copy, "alexnet_jax/data/README.md", 240 if tiny else 3600, **tiny).values()
    score = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    assert (score["split"], score["views"], score["examples"]) == ("validation", 10, 5)
    assert json.loads((copy / "runs" / "imagenet2012" / "config.json").read_text())["dataset"]["classes"][999] == "n15075141"


def test_the_packages_page_names_every_module_and_folder_once_and_no_other():
    package = ROOT / "alexnet_jax"
    there = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    there += [path.parent.name for path in package.glob("*/__init__.py")]
    linked = re.findall(r"\]\(([a-z_]+(?:\.py)?)\)", (package / "README.md").read_text())
    assert sorted(linked) == sorted(there)


def test_the_tests_that_the_pages_name_exist():
    """An expression after -k selects by names of files and tests; without --all a nightly one would not run."""
    nodes = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                nodes.append(f"{path.name} {node.name}")
    pages = [path.read_text() for path in (*ROOT.glob("*/README.md"), *ROOT.glob("*/*.md"), ROOT / "README.md")]
    expressions = {words for page in pages for words in re.findall(r"`\./launch/test ([^`]*-k [^`]*)`", page)}
    assert len(expressions) >= 10
    for expression in expressions:
        words = shlex.split(expression)
        for word in words[words.index("-k") + 1].split(" or "):
            assert any(word in node for node in nodes), f"./launch/test {expression}: nothing is called {word}"
