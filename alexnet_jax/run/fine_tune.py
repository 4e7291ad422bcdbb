"""Fine-tuning: a run that starts from the parameters of another."""

from alexnet_jax.layers import Convolution
from alexnet_jax.run.open import Run, open_run
from alexnet_jax.step import Setup, TrainState
from alexnet_jax.system.errors import UserError


def transferred_layers(setup: Setup) -> list[str]:
    """The layers that a run takes over from the one that --init names: --init_layers, or all of the same shapes.

    Without --init_layers, dense layers of another shape are re-initialised, such as the head for other classes.

    Raises:
        UserError: there is no such run, or one of its convolutions or of --init_layers does not fit.
    """
    source, named = _source(setup).setup, setup.config.init_layers
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
    """A fresh state with these layers from the last checkpoint of the run that --init names.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    params = _source(setup).restore().params
    return state._replace(params=state.params | {layer: params[layer] for layer in layers})


def _source(setup: Setup) -> Run:
    return open_run(setup.config.init, on=setup.mesh, flag="init", spmd=setup.config.spmd)
