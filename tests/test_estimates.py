"""The table and the picture of the compilers' estimates, from records made by hand and from those that are kept."""

import json
from pathlib import Path

import pytest
from networks import ROOT, run
from pictures import recorded

from alexnet_jax.benchmark.chips import Slice
from experiments import estimates, kernel_cycles

COMPILED = ROOT / estimates.RECORDS


def record(chips: str, mesh: str, batch: int, seconds: float) -> dict:
    """What the table reads of a result of `compile_programs`."""
    train = {
        "estimated_seconds": seconds, "flops_seconds": 0.0012, "bytes_seconds": 0.003, "memory": {"total": 2 * 10**9},
        "unestimated": {"all-reduce": {"bytes_seconds": 0.0001}, "sort": {"bytes_seconds": 0.0004}},
    }  # fmt: skip
    settings = {"architecture": "paper", "batch_size": batch, "crop_size": 224, "precision": "bfloat16", "mesh": mesh}
    programs = {"train": train, "evaluate": {"estimated_seconds": seconds / 4}}
    return {"compiled_for": chips, "settings": settings, "programs": programs}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Records of two chips."""
    files = {
        "v5e_1x2_before": record("v5e:1x2", "1x2", 128, 0.024), "v5e_1x2": record("v5e:1x2", "1x2", 128, 0.006),
        "v6e_2x2_1024": record("v6e:2x2", "2x2", 2048, 1.25),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_the_least_bytes_are_those_of_the_papers_layers():
    """Sizes of Figure 2. Backward a layer's input is read and its gradient written; conv1 has no gradient to write."""
    both = [27 * 27 * 96, 13 * 13 * 256, 13 * 13 * 384, 13 * 13 * 384, 6 * 6 * 256, 4096, 4096]
    one = [size // 2 for size in both]
    crop, params = 224 * 224 * 3, 60_965_224
    whole = 3 * sum(both) + 2 * (sum(both) + 1000)
    # conv3, fc6 and fc7 read both towers.
    half = 3 * (one[0] + both[1] + one[2] + one[3] + both[4] + both[5] + one[6]) + 2 * (sum(one) + 1000)
    for mesh, batch, values, held in (
        ("1x1", 128, whole, params),
        ("1x2", 128, half, params / 2),
        ("2x2", 256, half, params / 2),
    ):
        settings = record("v5e:1x2", mesh, batch, 1.0)["settings"]
        assert estimates.least_bytes(settings) == 128 * (2 * values + 2 * crop) + 20 * held
    settings = record("v5e:1x1", "1x1", 1024, 1.0)["settings"] | {"precision": "float32"}
    assert estimates.least_bytes(settings) == 1024 * (4 * whole + 2 * crop) + 20 * params


def test_the_table_has_a_row_for_each_chip_and_batch(folder):
    done = run("experiments.estimates", f"--records={folder}")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    names = [(chips.replace(":", " "), images) for images in ("128", "1,024") for chips in estimates.CHIPS]
    assert [tuple(row[:2]) for row in rows[2:]] == names
    cells = {name: row[2:] for name, row in zip(names, rows[2:], strict=True)}
    least = estimates.least_bytes(record("v5e:1x2", "1x2", 128, 1.0)["settings"]) / 819e6
    assert cells["v5e 1x2", "128"] == [
        "24", "**6**", "4.0", "0.5", "3", "1.2", f"{least:.3g}", "5.0", "6", "1.5", "2.00 of 16",
        "[before](v5e_1x2_before.json), [now](v5e_1x2.json)",
    ]  # fmt: skip
    least = estimates.least_bytes(record("v6e:2x2", "2x2", 2048, 1.0)["settings"]) / 1640e6
    assert least > 1.2  # the roofline is its bytes here, and its operations above
    assert cells["v6e 2x2", "1,024"] == [
        "none", "**1,250**", "none", "0.5", "3", "1.2", f"{least:.3g}", f"{1250 / least:.1f}", "none", "312", "2.00 of 32",
        "[now](v6e_2x2_1024.json)",
    ]  # fmt: skip
    assert cells["h100 1x1", "1,024"] == ["none"] * 12


def test_the_bars_are_the_table(folder, tmp_path, monkeypatch):
    drawn = recorded(monkeypatch, estimates)
    assert run("experiments.estimates", f"--records={folder}", f"--figure={tmp_path}/f.svg").returncode == 0
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert list(panels)[:3] == ["v5e 1x2, 128 images a row", "v5e 1x2, 1,024 images a row", "v5e 1x1, 128 images a row"]
    axes = panels["v5e 1x2, 128 images a row"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["before", "now", "FLOPs at peak", "least bytes"]
    least = estimates.least_bytes(record("v5e:1x2", "1x2", 128, 1.0)["settings"]) / 819e6
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([24, 6, 1.2, least])
    assert [text.get_text() for text in axes.texts] == [" 24", " 6", " 1.2", f" {least:.3g}"]
    assert axes.get_xlim()[0] == 0
    assert axes.yaxis_inverted()
    assert {text.get_text() for text in panels["h100 1x1, 128 images a row"].texts} == {" none"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no record of --compile_for, such as v5e_1x2.json"),
        ("{", "v5e_1x2.json"),
        (record("v5e:1x1", "1x1", 128, 1.0), "v5e_1x2.json is no record of --compile_for=v5e:1x2"),
        (record("v5e:1x2", "1x2", 64, 1.0), "v5e_1x2.json has 64 images on 1 rows of the mesh, not 128 on each"),
    ],
)
def test_bad_records_are_one_line(tmp_path, content, message):
    if content:
        (tmp_path / "v5e_1x2.json").write_text(content if isinstance(content, str) else json.dumps(content))
    done = run("experiments.estimates", f"--records={tmp_path}", f"--figure={tmp_path}/f.svg")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr
    assert "--records" in done.stderr
    assert not (tmp_path / "f.svg").exists()


def test_the_page_has_the_table_of_the_kept_records():
    assert estimates.table(estimates.read_estimates(COMPILED)) in (COMPILED / "README.md").read_text()


def test_a_record_is_named_by_its_content():
    assert estimates.record_name(Slice.parse("v5p:2x2"), 1024, before=True) == "v5p_2x2_1024_before.json"


def test_the_cycles_of_a_kernel_are_its_bundles_times_the_trips_of_its_loops():
    """55 rows of pixels are 28 steps of two, each with 27 windows."""
    listing = (
        "= control target key start\nLH: loop header\n     0   :  { %s1 = smov 0 }\n   0x1   : > { %v1 = vld }\n"
        "   0x2 LB : > { %v2 = vadd }\n   0x3   : >> { %v3 = vmul }\n   0x4 LE : >> { sbr.rel }\n   0x5   : >> { }\n"
    )
    found = kernel_cycles.bundles(listing)
    assert found == {0: 1, 1: 2, 2: 3}
    assert kernel_cycles.Kernel("conv1", "norm_pool", 55, found[1], found[2]).cycles == 28 * (2 + 27 * 3)


def test_cycles_are_of_tpus_only():
    ended = run("experiments.kernel_cycles", "--compile_for=h100:1x1")
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("--compile_for=h100:1x1: the kernels are for TPUs")
