"""The one door into a run: what was typed (`Config`) becomes what it means (`Run`). Nothing is compiled here."""

from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from alexnet_jax.config import Config, check
from alexnet_jax.data.dataset import Dataset, open_dataset
from alexnet_jax.mesh import TowerMesh, make_mesh
from alexnet_jax.network import Params
from alexnet_jax.run.checkpoint import Checkpoints, chosen_step
from alexnet_jax.run.mirror import fetch_checkpoint, fetch_run
from alexnet_jax.run.workdir import Stored, read_mean, read_stored
from alexnet_jax.step import Setup, make_setup
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.memory import physical_memory
from alexnet_jax.system.stores import local_folder
from alexnet_jax.values import MeshShape, Spmd


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

    def restore(self, step: str = "latest") -> "Trained":
        """The network of a checkpoint: a step, 'latest', or 'best', the one with the lowest validation error.

        Raises:
            UserError: there is no such checkpoint, or it cannot be read.
        """
        with Checkpoints(local_folder(self.config.workdir), keep=self.config.keep, writable=False) as checkpoints:
            chosen = chosen_step(checkpoints, self.config.workdir, step)
            fetch_checkpoint(self.config.workdir, chosen)
            params = checkpoints.restore_params(self.setup, chosen)
        return Trained(self.setup, self.stored, self.mean, params, chosen)

    def velocity(self, step: int) -> Params:
        """The velocity of a checkpoint, shaped as the parameters. Raises UserError as `restore`."""
        with Checkpoints(local_folder(self.config.workdir), keep=self.config.keep, writable=False) as checkpoints:
            fetch_checkpoint(self.config.workdir, step)
            return checkpoints.restore_velocity(self.setup, step)


@dataclass(frozen=True)
class Trained(Run):
    """A run with the parameters of one of its checkpoints."""

    params: Params
    step: int

    @property
    def title(self) -> str:
        """One line for a figure."""
        return f"{super().title}, step {self.step}"


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
    """The run that a config describes, to train it, with its data set. Nothing of the run is written.

    Raises:
        UserError: the data set is missing, or the flags do not fit it, the devices or the network.
    """
    fetch_run(config.workdir)  # which may have its own mean image
    if config.init:
        read_stored(config.init, "init")
    mesh = make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd)
    if config.batch_size // config.accumulate % mesh.data_size:
        raise UserError(
            f"--accumulate={config.accumulate} parts of --batch_size={config.batch_size} cannot be shared evenly by the "
            f"{mesh.data_size} rows of the mesh"
        )
    # Of several processes the first one may have to prepare the data; the others wait.
    dataset = None if jax.process_index() else open_data(config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the data set is prepared")
    dataset = dataset or open_data(config)
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
