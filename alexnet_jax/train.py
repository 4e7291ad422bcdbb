"""Trains a network, or resumes its training. The same command resumes it from its newest readable checkpoint.

    python -m alexnet_jax.train --flagfile=quickstart.cfg --workdir=runs/first
    python -m alexnet_jax.train --dataset=folder:photos --workdir=runs/photos

The first example trains the paper's two towers on 675 embedded photographs, in about five minutes on two CPU cores. The
second one needs `prepare` first. All defaults are the paper's. A run is a folder: config.json, metrics.jsonl, TensorBoard
events and checkpoints. Next come `evaluate`, `figures` and `report`.
"""

from alexnet_jax.config import define_flags
from alexnet_jax.system import cli

COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.training"))

if __name__ == "__main__":
    COMMAND.run()
