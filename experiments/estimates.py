"""What the compilers for TPUs and for an H100 expect of the training step, before and now, beside its roofline.

    python -m experiments.estimates --figure=estimates.png
    python -m experiments.estimates --records=FOLDER

Reads records of `python -m alexnet_jax.benchmark --compile_for=...`, by the names of their files. Nothing is compiled or
run. Prints the table as Markdown, and draws it. Where there is no record it says "none".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from absl import flags

from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.benchmark.chips import GB, Slice
from alexnet_jax.benchmark.results import OTHER_COLOUR, OUR_COLOUR, figure_path
from alexnet_jax.figures.style import PALETTE, write_figure
from alexnet_jax.layers import Classifier, LayerShapes, trace
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json

RECORDS = "experiments/results/compiled"
CHIPS = ("v5e:1x2", "v5e:1x1", "v5e:16x16", "v5p:2x2", "v6e:2x2", "h100:1x2", "h100:1x1")
BATCHES = (128, 1024)  # images on a row of the mesh
VALUE_BYTES = {"bfloat16": 2, "float32": 4}
PARAMETER_BYTES = 20  # float32: read forward; read backward, with its velocity; both written
NOTHING = "none"
COLOURS = (OTHER_COLOUR, OUR_COLOUR, PALETTE[1], PALETTE[3])


@dataclass(frozen=True)
class Estimate:
    """The training step on some chips, before and now, as records. None: there is no record."""

    chips: Slice
    images: int  # on a row of the mesh
    before: Mapping[str, Any] | None
    now: Mapping[str, Any] | None

    @property
    def milliseconds(self) -> dict[str, float | None]:
        """Of a training step on one device: as estimated, and the two sides of the roofline."""
        least = least_bytes(self.now["settings"]) / self.chips.chip.bytes_per_second if self.now else None
        return {
            "before": _milliseconds(self.before),
            "now": _milliseconds(self.now),
            "FLOPs at peak": _milliseconds(self.now, "flops_seconds"),
            "least bytes": least and 1e3 * least,
        }


def _milliseconds(
    record: Mapping[str, Any] | None, field: str = "estimated_seconds", program: str = "train"
) -> float | None:
    return 1e3 * record["programs"][program][field] if record else None


def least_bytes(settings: Mapping[str, Any]) -> float:
    """Bytes that one device moves in a step with one kernel a layer forward, and one backward that updates it too.

    Forward such a kernel reads its input and weights, and writes its output. Backward it reads the gradient of the output,
    the input and the weights, and writes the gradient of the input and the new weights. The crop is read from uint8. The
    exchange between devices is left out. Real kernels do less at once, so real steps move more.

    Args:
        settings: of a record.
    """
    table, (rows, columns) = ARCHITECTURES[settings["architecture"]], map(int, settings["mesh"].split("x"))
    layers, held = trace(table, settings["crop_size"]), table.towers // columns
    values = -3 * _inputs(layers[0], held) + sum(3 * _inputs(each, held) + 2 * _outputs(each, held) for each in layers)
    an_image = VALUE_BYTES[settings["precision"]] * values + 2 * _inputs(layers[0], held)
    parameters = sum(layer.parameters for layer in layers) / columns
    return settings["batch_size"] / rows * an_image + PARAMETER_BYTES * parameters


def _inputs(layer: LayerShapes, held: int) -> int:
    """Values of an image that a device reads for the towers that it holds. What they share is read once."""
    shared = not isinstance(layer.layer, Classifier) and layer.layer.reads != "own"
    return layer.in_side**2 * layer.in_maps * (1 if shared else held)


def _outputs(layer: LayerShapes, held: int) -> int:
    return layer.out_side**2 * layer.out_maps * (1 if isinstance(layer.layer, Classifier) else held)


def record_name(chips: Slice, images: int, before: bool) -> str:
    """The file of a record: v5e_1x2.json, v5e_1x2_1024_before.json."""
    return f"{str(chips).replace(':', '_')}{'_1024' * (images == 1024)}{'_before' * before}.json"


def read_estimates(folder: Path) -> list[Estimate]:
    """The estimates of all chips and batches. Raises UserError if there is no record, or one is of something else."""
    pairs = [(Slice.parse(chips), images) for images in BATCHES for chips in CHIPS]
    found = [Estimate(*pair, *(_record(folder, *pair, before) for before in (True, False))) for pair in pairs]
    if not any(each.before or each.now for each in found):
        raise UserError(f"--records={folder} has no record of --compile_for, such as {record_name(*pairs[0], False)}")
    return found


def _record(folder: Path, chips: Slice, images: int, before: bool) -> Mapping[str, Any] | None:
    path = folder / record_name(chips, images, before)
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError as error:  # it begins with the file
        raise UserError(f"--records: {error}") from error
    if not isinstance(record, dict) or record.get("compiled_for") != str(chips):
        raise UserError(f"--records: {path} is no record of --compile_for={chips}")
    rows, batch = int(record["settings"]["mesh"].partition("x")[0]), record["settings"]["batch_size"]
    if batch != rows * images:
        raise UserError(f"--records: {path} has {batch:,} images on {rows} rows of the mesh, not {images:,} on each")
    return record


def table(estimates: Sequence[Estimate]) -> str:
    """The estimates in Markdown, in ms of one device. Links to the records are those of a page in their folder."""
    titles = (
        "chips", "images a row", "train, before", "train, now", "before / now", "no estimate", "its bytes", "FLOPs at peak",
        "least bytes", "now / roofline", "evaluate, before", "evaluate, now", "memory, GB", "records",
    )  # fmt: skip
    lines = [titles, ("---",) * len(titles), *map(_cells, estimates)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(each: Estimate) -> tuple[str, ...]:
    before, now, flops, least = each.milliseconds.values()
    files = {"before": each.before, "now": each.now}
    links = [f"[{word}]({record_name(each.chips, each.images, word == 'before')})" for word in files if files[word]]
    views = [_number(_milliseconds(record, program="evaluate")) for record in files.values()]
    beside = memory = NOTHING
    if each.now:
        train = each.now["programs"]["train"]
        beside = _number(1e3 * sum(one["bytes_seconds"] for one in train["unestimated"].values()))
        memory = f"{train['memory']['total'] / GB:.2f} of {each.chips.chip.memory / GB:.0f}"
    return (
        _name(each), f"{each.images:,}", _number(before), f"**{_number(now)}**" if now else NOTHING, _quotient(before, now),
        beside, _number(_milliseconds(each.now, "bytes_seconds")), _number(flops), _number(least),
        _quotient(now, max(flops or 0.0, least or 0.0)), *views, memory, ", ".join(links) or NOTHING,
    )  # fmt: skip


def _name(each: Estimate) -> str:
    return str(each.chips).replace(":", " ")


def _number(value: float | None) -> str:
    """Three digits, without an exponent: 0.0941, 66.7, 512."""
    return NOTHING if value is None else f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _quotient(above: float | None, below: float | None) -> str:
    return f"{above / below:.1f}" if above and below else NOTHING


def draw_estimates(estimates: Sequence[Estimate], path: Path) -> None:
    """Four bars for each of the chips, top to bottom, and each batch, left to right. Every panel has its own axis."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(CHIPS), len(BATCHES), figsize=(9, 1.15 * len(CHIPS) + 0.9), layout="constrained")
    for each, axes in zip(estimates, panels.T.flat, strict=True):
        bars = each.milliseconds
        drawn = axes.barh(list(bars), [value or 0.0 for value in bars.values()], color=COLOURS)
        axes.bar_label(drawn, [f" {_number(value)}" for value in bars.values()], fontsize=8)
        axes.set_title(f"{_name(each)}, {each.images:,} images a row", fontsize=9, loc="left")
        axes.set_xlim(0, 1.15 * max((value for value in bars.values() if value), default=1.0))
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "ms of a training step on one device, as its compiler expects (h100: by the program's bytes). Nothing was run.",
        fontsize=9,
    )
    write_figure(figure, path)
    plt.close(figure)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    figure, estimates = figure_path(options.figure), read_estimates(Path(options.records))
    if figure:
        draw_estimates(estimates, figure)
    print(table(estimates))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("records", RECORDS, "`folder` of the records", flag_values=options)
    flags.DEFINE_string("figure", None, "draw the estimates into this .png or .svg", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
