"""Which checkpoints --step and --average mean."""

from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.system.errors import UserError


def chosen_steps(checkpoints: Checkpoints, workdir: str, step: str, average: int) -> list[int]:
    """The step that --step means, with those before it that --average wants, ascending.

    Raises:
        UserError: there is no such checkpoint, or there are fewer.
    """
    chosen = chosen_step(checkpoints, workdir, step)
    steps = [one for one in checkpoints.steps() if one <= chosen][-average:]
    if len(steps) < average:
        what = f"{workdir} has {len(steps)} up to step {chosen}"
        raise UserError(f"--average={average}: {what}: average fewer, or train with a larger --keep")
    return steps


def chosen_step(checkpoints: Checkpoints, workdir: str, step: str) -> int:
    """The step that --step means. Raises UserError if there is no such checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"the run in {workdir} has no finished checkpoint yet")
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = checkpoints.best_step()
        if best is None:
            raise UserError(f"--step=best: no checkpoint in {workdir} was validated")
        return best
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"--step={step}: {workdir} has the checkpoints {', '.join(map(str, steps))}, 'latest' and 'best'")
    return int(step)
