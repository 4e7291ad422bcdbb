"""A trained network as one file. JAX and other StableHLO runtimes run it without this package."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Float32, UInt8

from alexnet_jax.augment import views
from alexnet_jax.inference.predictor import Trained
from alexnet_jax.network import merge
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install

PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(trained: Trained) -> bytes:
    """The network as a serialized function of jax.export: uint8 RGB (batch, size, size, 3) -> float32 (batch, classes).

    It takes any batch size and returns probabilities. The parameters, the mean and the centre crop are inside.
    `jax.export.deserialize(data).call(images)` runs it. JAX promises to read it for six months of later versions, and
    StableHLO for five years. Raises UserError if flatbuffers is not installed; jax.export needs it.
    """
    config, (centre,) = trained.config, views(1, trained.config.image_size, trained.config.crop)
    rows = slice(centre.top, centre.top + config.crop)
    columns = slice(centre.left, centre.left + config.crop)
    params = jax.tree.map(jnp.asarray, jax.device_get(trained.params))
    mean: Float32[np.ndarray, "crop crop 3"] = trained.mean[rows, columns]
    scale = np.array(config.table().pixel_scale, np.float32)

    def probabilities(images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch classes"]:
        pixels = (images[:, rows, columns].astype(jnp.float32) - mean) / scale
        return jax.nn.softmax(merge(trained.setup.graph, params)(pixels))

    size = config.image_size
    shape = export.symbolic_shape(f"batch, {size}, {size}, 3")
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    try:
        return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(images).serialize())
    except ImportError as error:  # of JAX, which names no module
        raise UserError(f"flatbuffers is not installed: {install('flatbuffers')}") from error
