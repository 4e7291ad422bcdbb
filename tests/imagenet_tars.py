"""ILSVRC-2012 in small: tars in the official layout with the official names."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# WordNet numbers of the 1000 classes with their places in the alphabetical order, and the labels of the first five
# validation images as the challenge published them.
TRAIN = {"n01440764": 0, "n01443537": 1, "n02105855": 230, "n15075141": 999}
VALIDATION = [65, 970, 230, 809, 516]
PNG_IN_DISGUISE = "n02105855_2933.JPEG"  # the one file of the official set that is none


def photograph(seed, file_format="JPEG"):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(70, 120)), int(rng.integers(70, 120)))
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def tar_of(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def write_tars(folder: Path) -> tuple[dict[str, list[bytes]], dict[str, bytes]]:
    """Writes both below `folder`/downloads/manual; returns the training images of each class, and the validation images."""
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    train = {wnid: {f"{wnid}_{n}.JPEG": photograph(50 * label + n) for n in range(6)} for wnid, label in TRAIN.items()}
    train["n02105855"][PNG_IN_DISGUISE] = photograph(7, "PNG")
    validation = {f"ILSVRC2012_val_{n:08d}.JPEG": photograph(9000 + n) for n in (3, 1, 2, 5, 4)}
    (manual / "ILSVRC2012_img_train.tar").write_bytes(
        tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in train.items()})
    )
    (manual / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
    return {wnid: list(files.values()) for wnid, files in train.items()}, validation
