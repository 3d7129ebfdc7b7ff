"""The gradient of a batch, at once or in parts."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def batch_gradient(losses, params, examples):
    """(mean loss, its gradient) of `losses(params, *examples) -> [B]`."""
    return jax.value_and_grad(lambda params: jnp.mean(losses(params, *examples)))(params)


def accumulated_gradient(losses, params, examples, *, parts, mesh):
    """`batch_gradient`, to reduction order, with the batch worked through in parts.

    Args:
      losses, params, examples: as in `batch_gradient`.
      parts: how many; each takes its examples from all devices alike.
      mesh: the devices, which sum up on their own before the `data` axis is reduced over, once.
    """

    def of_device(params, examples):
        params = jax.lax.pcast(params, "data", to="varying")  # Else each part would be reduced.

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, batch_gradient(losses, params, part)), None

        split = lambda array: array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)  # noqa: E731
        nothing = jax.tree.map(jnp.zeros_like, (jax.lax.pcast(0.0, "data", to="varying"), params))
        total, _ = jax.lax.scan(add_part, nothing, jax.tree.map(split, examples))
        return jax.lax.pmean(jax.tree.map(lambda leaf: leaf / parts, total), "data")

    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        axis_names={"data"},
    )(params, examples)
