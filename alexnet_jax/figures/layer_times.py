"""Where the time of a training step goes: milliseconds of each layer, forward and backward, from a trace."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alexnet_jax.figures.style import NEUTRAL, PALETTE
from alexnet_jax.layers import Architecture
from alexnet_jax.run.trace import Scope, Trace
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import three_digits

OTHER = "other"  # what belongs to no part
FORWARD, BACKWARD = PALETTE[:2]
INSIDE = "//"  # hatches what a layer has beside its product

Times = Mapping[str, Mapping[Scope, float]]


def times_by_part(trace: Trace) -> Times:
    """Milliseconds of computing per traced step, for each part in the order of the step. They add up over devices."""
    steps = max(1, len(trace.steps()))
    times = {part: defaultdict[Scope, float](float) for part in (*trace.parts, OTHER)}
    for operation in trace.operations():
        scope = operation.scope or Scope(OTHER, "", False)
        times[scope.part][scope] += operation.milliseconds / steps
    return times


def draw_layer_times(folder: Path, table: Architecture, title: str) -> Figure:
    """Two bars for each part of a step: forward above, backward below.

    Args:
        folder: of the traces; the newest one is drawn.
        table: of the network.
        title: of the figure; what was traced is added.

    Raises:
        UserError: there is no trace, it cannot be read, or it was not made by --profile.
    """
    trace = Trace(folder, table)
    times, steps = times_by_part(trace), sorted(trace.steps())
    if not steps or not any(times[part] for part in trace.parts):
        raise UserError(f"{trace.path} has no names of steps and layers: train with --profile=START:STOP again")
    total = sum(sum(scopes.values()) for scopes in times.values())
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(times) + 1.6), layout="constrained")
    widest = 0.0
    for place, scopes in enumerate(times.values()):
        for backward, colour in ((False, FORWARD), (True, BACKWARD)):
            mine = {scope: ms for scope, ms in scopes.items() if scope.backward == backward}
            inside = sum(ms for scope, ms in mine.items() if scope.inner)
            whole, height = sum(mine.values()), place + (0.19 if backward else -0.19)
            if not mine:
                continue
            axis.barh(height, whole - inside, 0.36, color=colour)
            axis.barh(height, inside, 0.36, left=whole - inside, color=colour, alpha=0.45, hatch=INSIDE, edgecolor="white")
            axis.text(whole, height, f" {three_digits(whole)}", va="center", fontsize=7.5)
            widest = max(widest, whole)
    axis.set_yticks(range(len(times)), list(times))
    axis.set(xlabel="milliseconds of computing in a step", xlim=(0, widest * 1.08 or 1), ylim=(len(times) - 0.4, -0.6))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    hatched = Patch(facecolor=NEUTRAL, hatch=INSIDE, edgecolor="white", label="ReLU, norm, pooling, dropout, cross-talk")
    colours = [Patch(color=FORWARD, label="forward"), Patch(color=BACKWARD, label="backward")]
    axis.legend(handles=[*colours, hatched], frameon=False, loc="lower right")
    figure.suptitle(f"{title}\nsteps {steps[0]} to {steps[-1]}: {total:,.0f} ms of computing in each", fontsize=11)
    return figure
