"""Which examples make up which batch: a function of (seed, update) and nothing else."""

import functools

import jax
import numpy as np


def batch_indices(num_examples, batch_size, seed, update):
    """Indices of the batch of one update, `[batch_size]` int64.

    Every epoch is a permutation of its own; a batch may span two. There is no iterator
    state: a resumed run sees what it would have seen.
    """
    position = np.arange(batch_size, dtype=np.int64) + update * batch_size
    epochs, offsets = np.divmod(position, num_examples)
    indices = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(num_examples, seed, int(epoch))[offsets[here]]
    return indices


@functools.lru_cache(maxsize=2)
def _permutation(num_examples, seed, epoch):
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_examples)


class Batches:
    """`batches(update)` -> (images `[B, H, W, C]` uint8, labels `[B]` int32) on the devices.

    Each process reads only the examples of its own devices.
    """

    def __init__(self, source, *, batch_size, seed, sharding):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.sharding = sharding

    def __call__(self, update):
        indices = batch_indices(len(self.source), self.batch_size, self.seed, update)
        images, labels = self.source.read(indices[self._local])
        return tuple(
            jax.make_array_from_process_local_data(
                self.sharding, local, (self.batch_size,) + local.shape[1:]
            )
            for local in (images, labels)
        )

    @functools.cached_property
    def _local(self):
        """Positions in the batch that this process's devices hold, sorted `[B / processes]`."""
        spans = self.sharding.addressable_devices_indices_map((self.batch_size,)).values()
        return np.unique(np.concatenate([np.arange(self.batch_size)[span[0]] for span in spans]))
