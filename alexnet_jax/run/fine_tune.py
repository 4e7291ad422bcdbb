"""Fine-tuning: a run that starts from the parameters of another."""

from alexnet_jax.layers import Convolution
from alexnet_jax.run.open import Run, open_run
from alexnet_jax.step import Model, TrainState
from alexnet_jax.system.errors import UserError


def transferred_layers(model: Model) -> list[str]:
    """The layers that a run takes over from the one that --init names: --init_layers, or all of the same shapes.

    Without --init_layers, dense layers of other shapes, such as the head for other classes, begin anew.

    Raises:
        UserError: there is no such run, or one of its convolutions or of --init_layers does not fit.
    """
    source, named = _source(model).model, model.config.init_layers
    fitting = [
        layer
        for layer, shapes in model.shapes.items()
        if source.shapes.get(layer) == shapes and (not named or layer in named)
    ]
    for spec in model.config.table().layers:
        needed = spec.name in named if named else isinstance(spec, Convolution)
        if needed and spec.name not in fitting:
            found = source.shapes.get(spec.name)
            raise UserError(
                f"--init={model.config.init} has {found['kernel'].shape if found else 'nothing'} for {spec.name}, where "
                f"--architecture={model.config.architecture} has {model.shapes[spec.name]['kernel'].shape}: choose "
                f"--architecture={source.config.architecture}"
            )
    return fitting


def transfer(model: Model, state: TrainState, layers: list[str]) -> TrainState:
    """A fresh state with these layers from the last checkpoint of the run that --init names.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    params = _source(model).restore().params
    return state._replace(params=state.params | {layer: params[layer] for layer in layers})


def _source(model: Model) -> Run:
    return open_run(model.config.init, on=model.mesh, spmd=model.config.spmd)
