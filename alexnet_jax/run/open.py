"""The one door into a run: what was typed (`Config`) becomes what it means (`Run`). Nothing is compiled here."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from alexnet_jax.config import Config, check
from alexnet_jax.data.dataset import Dataset, open_dataset
from alexnet_jax.mesh import TowerMesh, make_mesh
from alexnet_jax.network import Params
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.chosen import chosen_steps
from alexnet_jax.run.workdir import Stored, read_mean, read_stored
from alexnet_jax.step import Setup, make_setup
from alexnet_jax.system import processes
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.memory import physical_memory
from alexnet_jax.values import MeshShape, Spmd, Weights


@dataclass(frozen=True)
class Run:
    """A run: its table traced to shapes on a mesh, what its folder says of it, and the mean image that it subtracts."""

    setup: Setup
    stored: Stored
    mean: Float32[np.ndarray, "size size 3"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the network's outputs."""
        return self.stored.classes

    @property
    def config(self) -> Config:
        """The flags of the run."""
        return self.setup.config

    @property
    def title(self) -> str:
        """One line for a figure."""
        return f"{self.config.architecture} on {self.config.dataset}, seed {self.config.seed}"

    def data(self, data_dir: str | None = None) -> Dataset:
        """The run's data set, under `data_dir` if that is given, with the run's own mean image.

        Raises:
            UserError: it is not there, or it is not the one that the run was trained on.
        """
        config = replace(self.config, data_dir=data_dir or self.config.data_dir)
        return replace(_own_data(replace(self.stored, config=config)), mean=self.mean)

    def restore(self, step: str = "latest", *, weights: Weights = "last", average: int = 1) -> "Trained":
        """The network of a checkpoint: a step, 'latest', or 'best', the one with the lowest validation error.

        Args:
            step: of the checkpoint.
            weights: 'last', the parameters after that step, or 'ema', the average that a run with --ema keeps of them.
            average: how many checkpoints to take, that one and those before it; the parameters are their mean.

        Raises:
            UserError: there is no such checkpoint, it cannot be read, there are fewer than `average`, or the run has no
                'ema'.
        """
        if weights == "ema" and not self.config.ema:
            raise UserError(f"--weights=ema: {self.config.workdir} was trained without --ema: leave it out")
        with Checkpoints(Path(self.config.workdir), keep=self.config.keep, writable=False) as checkpoints:
            with processes.together():
                steps = chosen_steps(checkpoints, self.config.workdir, step, average)
            steps = tuple(processes.of_first(one) for one in steps)  # a trainer may be saving another one
            read = checkpoints.restore_ema if weights == "ema" else checkpoints.restore_params
            params = read(self.setup, steps[0])
            for other in steps[1:]:
                params = jax.tree.map(jnp.add, params, read(self.setup, other))
        if average > 1:
            params = jax.tree.map(lambda total: total / average, params)
        return Trained(self.setup, self.stored, self.mean, params, steps[-1], weights, steps)

    def velocity(self, step: int) -> Params:
        """The velocity of a checkpoint, shaped as the parameters. Raises UserError as `restore`."""
        with Checkpoints(Path(self.config.workdir), keep=self.config.keep, writable=False) as checkpoints:
            return checkpoints.restore_velocity(self.setup, step)


@dataclass(frozen=True)
class Trained(Run):
    """A run with the parameters of one of its checkpoints, or with the mean of several."""

    params: Params
    step: int  # the last of them
    weights: Weights = "last"
    averaged: tuple[int, ...] = ()  # the steps of all of them

    @property
    def title(self) -> str:
        """One line for a figure."""
        return ", ".join(filter(None, (super().title, f"step {self.step}", self.which_weights)))

    @property
    def which_weights(self) -> str:
        """What the parameters are: 'ema', 'mean of steps 2, 3, 4', both, or '' for those after the step itself."""
        mean = f"mean of steps {', '.join(map(str, self.averaged))}" if len(self.averaged) > 1 else ""
        return ", ".join(filter(None, ("ema" if self.weights == "ema" else "", mean)))


class Machine(TypedDict, total=False):
    """The fields of `Config` that say how a run is looked at here, not what it is."""

    mesh: MeshShape | None
    spmd: Spmd
    batch_size: int
    precision: str
    data_dir: str


def open_run(workdir: str, *, on: TowerMesh | None = None, flag: str = "workdir", **machine: Unpack[Machine]) -> Run:
    """The run in a folder, to look at; no data set is needed.

    Args:
        workdir: folder of the run.
        on: the mesh to use, such as that of another run; None makes one as the config says.
        flag: that names the folder.
        machine: in place of what the config says.

    Raises:
        UserError: there is no run, or it does not fit the machine.
    """
    stored = read_stored(workdir, flag)
    config = replace(stored.config, accumulate=1, **machine)
    check(config)
    mesh = on or make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd)
    stored, mean = replace(stored, config=config), read_mean(config)
    if mean is None:  # an earlier version trained it
        mean = _own_data(stored).mean
    setup = make_setup(config, len(stored.classes), mesh)
    check_memory(setup)
    return Run(setup, stored, mean)


def start_run(config: Config) -> tuple[Run, Dataset]:
    """The run that a config describes, to train it, with its data set. Nothing is written.

    Raises:
        UserError: the data set is missing, or the flags do not fit it, the devices or the network.
    """
    if config.init:
        read_stored(config.init, "init")
    mesh = make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd)
    if config.batch_size // config.accumulate % mesh.data_size:
        raise UserError(
            f"--accumulate={config.accumulate} parts of --batch_size={config.batch_size} cannot be shared evenly by the "
            f"{mesh.data_size} rows of the mesh"
        )
    dataset = processes.first_alone(lambda: open_data(config))  # it may have to prepare them
    if config.schedule == "plateau" and "validation" not in dataset.splits:
        raise UserError(
            f"--schedule=plateau needs a validation split and {config.dataset} has none: "
            "hold out a tenth of train with --fold=0/10, or choose --schedule=steps"
        )
    setup = make_setup(config, len(dataset.classes), mesh)
    check_memory(setup)
    return Run(setup, Stored(config, dataset.classes, dataset.fingerprint), dataset.mean), dataset


def check_memory(setup: Setup) -> None:
    """Before anything is allocated, by the images of a batch alone: the network needs more.

    Raises:
        UserError: they do not fit into the memory of this machine.
    """
    config, share = setup.config, setup.config.batch_size // jax.process_count()
    needed = share * (3 * config.image_size**2 + 3 * 4 * config.crop**2 // config.accumulate)  # uint8, and float32 crops
    memory = physical_memory()
    if needed > memory:
        raise UserError(
            f"--batch_size={config.batch_size}: its images alone take {needed / 1e9:,.1f} GB, and this machine has "
            f"{memory / 1e9:,.1f} GB: choose a smaller batch, or --accumulate"
        )


def _own_data(stored: Stored) -> Dataset:
    """The data set of a run. Raises UserError if it is not the one that the run was trained on."""
    dataset = open_data(stored.config)
    stored.check_data(dataset.fingerprint, dataset.classes)
    return dataset


def open_data(config: Config) -> Dataset:
    """The data set of a config, with the mean image that the run subtracts.

    Raises:
        UserError: it is missing, not prepared or damaged.
    """
    return open_dataset(config, read_mean(config) if config.mean == "own" else None)
