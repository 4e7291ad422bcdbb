"""Evaluates a run, or the average of several. Every example of a split counts once, whatever the devices.

    python -m alexnet_jax.evaluate --workdir=runs/first
    python -m alexnet_jax.evaluate --workdir=runs/first --views=10
    python -m alexnet_jax.evaluate --workdir=runs/first --workdir=runs/second
    python -m alexnet_jax.evaluate --workdir=runs/first --dataset=folder:mine

--dataset takes another set, prepared at the image size of the run. The run's own mean image is subtracted. Classes are
matched by name, whatever the case, spaces, underscores and hyphens. Images of other classes are left out and counted. The
network still chooses among all its classes.

--class_map names the classes to evaluate, of the set or of the run's own. Each line has a class of the set, a tab, and the
class of the network. Several classes with tabs between them are all right answers, and the loss is that of their summed
probability. A class alone in its line is called the same by both. A .json file holds one object instead:
{"class of the set": ["class of the network", "another"]}.

--weights=ema takes the average that a run trained with --ema keeps. --average=K takes the mean of K checkpoints. What the
weights are is said then: in a line of its own, and in the JSON object as weights and averaged.

On a terminal it prints two lines to read, with three digits. Otherwise, as into a pipe or a file, its last line is one JSON
object with every number in full. Errors are in percent.
"""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.run.flags import define_step, define_weights
from alexnet_jax.system import cli
from alexnet_jax.values import SPLITS


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_multi_string(
        "workdir",
        [],
        "`folder` of a run, also at s3:// or gs://; repeat it to average the softmax of several",
        flag_values=options,
    )
    define_step(options)
    define_weights(options)
    help = "`checkpoints` to average the weights of, that of --step and those kept before it"
    flags.DEFINE_integer("average", 1, help, lower_bound=1, flag_values=options)
    flags.DEFINE_enum("split", "test", SPLITS, "examples to evaluate on", flag_values=options)
    help = "`views` of each image: 1, the centre, or 10, corners and centre and their mirror images (Section 4.1)"
    flags.DEFINE_integer("views", 1, help, flag_values=options)
    flags.register_validator("views", lambda count: count in (1, 10), "--views is 1 or 10", flag_values=options)
    help = "write the probabilities of every example to this `F.npz`"
    flags.DEFINE_string("predictions", None, help, flag_values=options)
    help = "write a line for each image to this `F.csv`: row, class, answers, right or not, and the five likeliest classes"
    flags.DEFINE_string("results", None, help, flag_values=options)
    help = "`file` that says which classes of the network are right for each class of the set"
    flags.DEFINE_string("class_map", None, help, flag_values=options)
    define_config_flags(options, only=("dataset", "batch_size", "data_dir", "precision"), unset="that of the run")
    define_config_flags(options, only=("mesh", "host_devices", "spmd", "distributed"))


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.evaluation"))

if __name__ == "__main__":
    COMMAND.run()
