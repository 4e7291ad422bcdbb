"""Parquet files and tars of images, in the layouts of Hugging Face's `datasets` and of `webdataset`."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from pictures import encode, smooth

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def photograph(seed):
    """A small JPEG file, higher than wide."""
    return encode(smooth(20, 30, seed=seed), "JPEG")


def hub_metadata(names):
    """What `datasets` writes into the schema of images with a ClassLabel."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_parquet(path, images, labels, names=("a", "b"), *, rows_per_group=4):
    """Bytes in the column `image`, labels in `label`; no metadata if there are no names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.array([None if image is None else {"bytes": image, "path": "x.jpg"} for image in images], IMAGE)
    table = pa.table({"image": rows, "label": pa.array(labels)})
    pq.write_table(
        table.replace_schema_metadata(hub_metadata(names) if names else None), path, row_group_size=rows_per_group
    )


def write_tar(path, members):
    """A tar of (name, content). A content that is a TarInfo goes in as it is, without one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname = len(content), 0o444, "bigdata"
            tar.addfile(info, io.BytesIO(content))


def samples(images, labels, form="json"):
    """The members of a tar: `000.jpg` and `000.json` or `000.cls` for each image."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{number:03}.jpg", image
        yield f"{number:03}.{form}", json.dumps({"label": label}).encode() if form == "json" else str(label).encode()
