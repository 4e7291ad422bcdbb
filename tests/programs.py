"""Equal networks share their compiled programs within one process of pytest: to trace them is most of a short run."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

# What a program depends on besides the table. The other fields of a config are about files, intervals and rates, which are
# arguments.
COMPILED_FOR = (
    "precision", "crosstalk_precision", "fuse_norm_pool", "image_size", "crop_size", "flip", "colour_noise", "batch_size",
    "accumulate", "momentum", "rate_in_velocity", "bias_decay", "lars", "ema", "seed",
)  # fmt: skip


def _key(argument: Any) -> Any:
    """What makes two arguments of a maker equal: a model, a mesh, a number or a tree of specs."""
    from alexnet_jax.step import Setup

    if isinstance(argument, Setup):
        config = argument.config
        return argument.mesh, argument.classes, config.table(), *(getattr(config, name) for name in COMPILED_FOR)
    leaves, structure = jax.tree.flatten(argument, is_leaf=lambda node: isinstance(node, P))
    return structure, *leaves


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, called once for each of its arguments."""
    made: dict[Any, Any] = {}

    @functools.wraps(make)
    def shared(*arguments: Any) -> Any:
        key = tuple(_key(argument) for argument in arguments)
        if key not in made:
            made[key] = make(*arguments)
        return made[key]

    return shared


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
    """What trainer, evaluation and checkpoints compile is compiled once. `alexnet_jax.step` itself stays as it is."""
    from alexnet_jax import evaluation, trainer
    from alexnet_jax.run import reader
    from alexnet_jax.step import Setup

    initial_state = _once(Setup.initial_state)
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (trainer, "make_train_step"), (trainer, "make_nonfinite_count"), (trainer, "ParamStatsMeter"),
            (trainer, "Evaluator"), (evaluation, "make_view_step"), (reader, "make_checksum"),
        ):  # fmt: skip
            patch.setattr(module, name, _once(getattr(module, name)))
        # A training step is given the state's memory, so every run gets a copy.
        patch.setattr(Setup, "initial_state", lambda setup: jax.tree.map(lambda x: x.copy(), initial_state(setup)))
        yield
