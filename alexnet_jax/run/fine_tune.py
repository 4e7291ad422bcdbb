"""A run that starts from the parameters of another: fine-tuning, or with its velocity the same training on other images."""

import optax

from alexnet_jax.layers import Convolution
from alexnet_jax.run.open import Run, open_run
from alexnet_jax.step import Setup, TrainState
from alexnet_jax.system.errors import UserError


def transferred_layers(setup: Setup) -> list[str]:
    """The layers that a run takes over from the one that --init names: --init_layers, or all of the same shapes.

    Without --init_layers, dense layers of another shape are re-initialised, such as the head for other classes.

    Raises:
        UserError: there is no such run, one of its convolutions or of --init_layers does not fit, or its velocity, where
            --init_velocity wants it, is of another kind.
    """
    source, named = _source(setup).setup, setup.config.init_layers
    if setup.config.init_velocity and source.config.rate_in_velocity != setup.config.rate_in_velocity:
        there = "" if source.config.rate_in_velocity else "no"
        raise UserError(
            f"--init_velocity: --init={setup.config.init} was trained with --{there}rate_in_velocity: choose it too"
        )
    fitting = [
        layer
        for layer, shapes in setup.shapes.items()
        if source.shapes.get(layer) == shapes and (not named or layer in named)
    ]
    for spec in setup.config.table().layers:
        needed = spec.name in named if named else isinstance(spec, Convolution)
        if needed and spec.name not in fitting:
            found = source.shapes.get(spec.name)
            raise UserError(
                f"--init={setup.config.init} has {found['kernel'].shape if found else 'nothing'} for {spec.name}, where "
                f"--architecture={setup.config.architecture} has {setup.shapes[spec.name]['kernel'].shape}: choose "
                f"--architecture={source.config.architecture}"
            )
    return fitting


def transfer(setup: Setup, state: TrainState, layers: list[str]) -> TrainState:
    """A fresh state with these layers of the last checkpoint that --init has, and with --init_velocity their velocity.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    source = _source(setup).restore()
    state = state._replace(params=state.params | {layer: source.params[layer] for layer in layers})
    if not setup.config.init_velocity:
        return state
    taken, fresh = source.velocity(source.step), optax.tree.get(state.optimizer, "trace")
    velocity = fresh | {layer: taken[layer] for layer in layers}
    return state._replace(optimizer=optax.tree.set(state.optimizer, trace=velocity))


def _source(setup: Setup) -> Run:
    return open_run(setup.config.init, on=setup.mesh, flag="init", spmd=setup.config.spmd)
