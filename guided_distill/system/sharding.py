"""How arrays lie on the devices: a mesh with the axes `data` and `fsdp`."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh(data=-1, fsdp=1, devices=None):
    """A device mesh with axes ('data', 'fsdp').

    Args:
      data: size of the data axis; -1 takes the devices that fsdp leaves.
      fsdp: size of the axis that parameters and optimizer state are split over.
      devices: to lay it over; None takes all.

    Raises:
      ValueError: where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise ValueError(f"mesh {data} x {fsdp} (data x fsdp) does not cover {count} devices")
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=devices)


def round_up(batch_size, mesh):
    """The next batch size that divides over the devices."""
    return -(-batch_size // mesh.size) * mesh.size


def replicated(mesh):
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(tree, mesh):
    """Each leaf split over `fsdp` along its longest axis that divides, else replicated."""
    fsdp = mesh.shape["fsdp"]

    def leaf_sharding(leaf):
        divisible = [a for a, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda a: leaf.shape[a])
        spec = [None] * len(leaf.shape)
        spec[longest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf_sharding, tree)


def put(array, sharding):
    """A host array, the same in every process, laid on the devices of a sharding."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_key(key, mesh):
    """A PRNG key on every device of the mesh."""
    return jax.random.wrap_key_data(put(jax.random.key_data(key), replicated(mesh)))


def place(tree, mesh):
    """A host tree laid on the mesh as `state_shardings` says."""
    return jax.tree.map(put, tree, state_shardings(tree, mesh))


def to_host(tree):
    """A tree of NumPy arrays, gathered from all processes where they share a leaf."""

    def fetch(leaf):
        split = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
        if split and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def apply_in_batches(apply, images, batch_size):
    """`apply` on batches of one size, its outputs put together as NumPy arrays `[n, …]`."""
    outputs = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        outputs.append([out[: len(images) - start] for out in to_host(apply(images[rows]))])
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def apply_over(mesh, apply, images, *, per_device):
    """`apply_in_batches` of what runs on all devices of a mesh, each given up to `per_device`.

    `apply` takes a batch that is laid on them.
    """
    size = mesh.size * min(per_device, -(-len(images) // mesh.size))
    layout = batch_sharding(mesh)
    return apply_in_batches(lambda batch: apply(put(batch, layout)), images, size)
