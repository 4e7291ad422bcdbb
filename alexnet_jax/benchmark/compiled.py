"""--compile_for: what the compilers for TPUs and GPUs make of a run's programs, on a machine without either.

Every time here is an estimate of the compiler, or follows from bytes and rates. Nothing is run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from alexnet_jax.benchmark.chips import GB, Slice
from alexnet_jax.benchmark.results import OTHER_COLOUR, OUR_COLOUR, new_table
from alexnet_jax.config import Config, as_dict
from alexnet_jax.figures.style import write_figure
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json

PLACES = 12  # shown; the record has all
LINE = re.compile(r":\d+")


def compile_programs(config: Config, chips: Slice) -> dict[str, Any]:
    """The programs of a run, compiled for `chips` in a process of its own, as the JSON object to print. Takes minutes.

    Raises:
        UserError: a compiler is missing or fails, or the mesh or the batch does not fit.
    """
    if config.spmd == "pmap":
        raise UserError("--spmd=pmap: only the shard_map form can be compiled for devices that are not here")
    chips.check_packages()
    command = [sys.executable, "-m", "alexnet_jax.benchmark.programs", str(chips), json.dumps(as_dict(config))]
    programs, about = {}, {}
    console = Console(stderr=True)
    with tempfile.TemporaryFile("w+", errors="replace") as log, console.status("") as status:
        status.update(f"compiling for {chips}: minutes")
        environment = os.environ | chips.environment()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    said = json.loads(line)
                    if "error" in said:
                        raise UserError(said["error"])
                    about |= said.get("about", {})
                    if "program" in said:
                        programs[said["program"]] = said["record"]
                        status.update(f"compiling for {chips}: {', '.join(programs)} done")
            except BaseException:
                process.kill()  # it has no files to save
                raise
        if not about:
            log.seek(0)
            last = " ".join(([*log] or ["nothing"])[-1].split())
            raise UserError(
                f"--compile_for={chips}: the compiler's process ended with {process.returncode}; it said: {last[:300]}"
            )
    return {
        "estimated_seconds": programs["train"]["estimated_seconds"],
        "nothing_was_run": True,
        "compiled_for": str(chips),
        "programs": programs,
        **about,
    }


def read_record(path: str) -> dict[str, Any]:
    """An earlier result of `compile_programs`. Raises UserError if the file is no such thing."""
    try:
        record = read_json(Path(path))
    except UserError as error:  # it begins with the file
        raise UserError(f"--against={error}") from error
    if not isinstance(record, dict) or "compiled_for" not in record:
        raise UserError(f"--against={path} is no record of --compile_for")
    return record


def by_function(places: dict[str, float]) -> dict[str, float]:
    """Seconds by 'augment.py crops': lines move from one version to the next."""
    total: dict[str, float] = {}
    for place, seconds in places.items():
        name = LINE.sub("", place)
        total[name] = total.get(name, 0.0) + seconds
    return total


def compared(result: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, tuple[float, float | None]]:
    """Estimated seconds of the training step by place, the longest first, with those of an earlier record."""
    now = result["programs"]["train"]["places"]
    if earlier is None:
        return {place: (seconds, None) for place, seconds in now.items()}
    now, then = by_function(now), by_function(earlier["programs"]["train"]["places"])
    longest = sorted(now | then, key=lambda place: -max(now.get(place, 0.0), then.get(place, 0.0)))
    return {place: (now.get(place, 0.0), then.get(place, 0.0)) for place in longest}


def publish_compiled(result: dict[str, Any], earlier: dict[str, Any] | None, figure: Path | None) -> None:
    """Prints the tables on stderr and the result on stdout, as JSON; draws the places of the training step."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    for table in (_programs_table(result, earlier), _places_table(result, earlier), _exchange_table(result)):
        if table.row_count:
            console.print(table)
    if figure:
        draw_places(result, earlier, figure)
    print(json.dumps(result))


def title(result: dict[str, Any]) -> str:
    """What was compiled for what."""
    settings = result["settings"]
    network = (
        f"{settings['architecture']}, batch {settings['batch_size']}, {settings['crop_size']} px, {settings['precision']}"
    )
    return f"{network}, mesh {settings['mesh']} of {result['compiled_for']}"


def basis(result: dict[str, Any]) -> str:
    """Where the estimate comes from."""
    if Slice.parse(result["compiled_for"]).is_tpu:
        return "the compiler's own estimate"
    return "all bytes at the bandwidth of the memory"


def _milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{1e3 * seconds:,.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _programs_table(result: dict[str, Any], earlier: dict[str, Any] | None) -> Table:
    chip = Slice.parse(result["compiled_for"]).chip
    before = ("earlier",) if earlier else ()
    rest = ("no estimate", "FLOPs at peak", "bytes at bandwidth", "memory, GB", "copied, GB", "padding")
    table = new_table(title(result), "estimate", *before, *rest)
    for name, each in result["programs"].items():
        then = (earlier["programs"][name]["estimated_seconds"],) if earlier else ()
        beside = sum(one["bytes_seconds"] for one in each["unestimated"].values())
        times = (each["estimated_seconds"], *then, beside, each["flops_seconds"], each["bytes_seconds"])
        memory = f"{each['memory']['total'] / GB:.2f} of {chip.memory / GB:.0f}"
        copied, padding = each["copies"].get("bytes", 0) / GB, 100 * each["padding"]
        table.add_row(name, *map(_milliseconds, times), memory, f"{copied:.3f}", f"{padding:.0f} %")
    table.caption = f"Times in ms on one device, {basis(result)}. Nothing was run."
    return table


def _places_table(result: dict[str, Any], earlier: dict[str, Any] | None) -> Table:
    columns = ("ms", "earlier", "share") if earlier else ("ms", "share")
    table = new_table("the training step by place in the package", *columns)
    total = result["programs"]["train"]["estimated_seconds"] or 1.0
    for place, (now, then) in list(compared(result, earlier).items())[:PLACES]:
        before = (_milliseconds(then),) if earlier else ()
        table.add_row(place, _milliseconds(now), *before, f"{100 * now / total:.0f} %")
    return table


def _exchange_table(result: dict[str, Any]) -> Table:
    table = new_table("between devices, and loops", "how often", "MB")
    for name, each in result["programs"].items():
        for opcode, one in each["collectives"].items():
            table.add_row(f"{name}: {opcode}", str(one["count"]), f"{one['bytes'] / 1e6:,.2f}")
        for loop in each["loops"]:
            table.add_row(
                f"{name}: loop at {loop['place']}, largest copy in it",
                str(loop["trips"]),
                f"{loop['largest_copy'] / 1e6:,.2f}",
            )
    if result["tower_pairs_adjacent"] is False:
        table.caption = "The towers of a pair are not neighbours on the chips' network."
    return table


def draw_places(result: dict[str, Any], earlier: dict[str, Any] | None, path: Path) -> None:
    """Bars of the estimated time of a training step by place, with those of the earlier record in grey above."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places = dict(list(compared(result, earlier).items())[:PLACES][::-1])
    height, rows = (0.4 if earlier else 0.8), np.arange(len(places))
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(places) + 1.4), layout="constrained")
    for series, colour, shift, label in ((0, OUR_COLOUR, 0.0, "now"), (1, OTHER_COLOUR, height, "earlier"))[
        : 2 if earlier else 1
    ]:
        values = [1e3 * (pair[series] or 0.0) for pair in places.values()]
        bars = axes.barh(rows + shift - (height / 2 if earlier else 0), values, height, color=colour, label=label)
        axes.bar_label(bars, [f" {value:.2g}" for value in values], fontsize=8)
    axes.set_yticks(rows, list(places), fontsize=8)
    totals = [_milliseconds(each["estimated_seconds"]) for each in (result, earlier) if each]
    axes.set_xlabel(f"ms: {basis(result)}. Nothing was run.")
    axes.set_title(
        f"{title(result)}\na training step in {' ms, earlier '.join(totals)} ms, by place in the package", fontsize=10
    )
    axes.margins(y=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    if earlier:
        axes.legend(loc="lower right")
    write_figure(figure, path)
    plt.close(figure)
