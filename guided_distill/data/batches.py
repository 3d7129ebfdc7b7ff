"""Which examples make up which batch: a function of (seed, update) and nothing else."""

import dataclasses
import functools

import jax
import numpy as np

from guided_distill.data.workers import ahead

BATCHES_AHEAD = 4  # of a streamed source, per worker


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


@dataclasses.dataclass(frozen=True)
class LocalBatch:
    """update -> this process's share of the batch, as NumPy arrays; picklable.

    Attributes:
      source: an `ArraySource`, a `StreamSource` or a `ShardSource`.
      batch_size: over all processes.
      seed: of the order.
      positions: in the batch, of the examples to read, `[B / processes]`.
    """

    source: object
    batch_size: int
    seed: int
    positions: np.ndarray

    def __call__(self, update):
        indices = batch_indices(len(self.source), self.batch_size, self.seed, update)
        return self.source.read(indices[self.positions])


class Batches:
    """`batches(update)` -> (x `[B, …]`, cond, a pytree with leading axis B) on the devices.

    Each process reads only the examples of its own devices.

    Args:
      source: an `ArraySource`, a `StreamSource` or a `ShardSource`.
      batch_size: over all devices.
      seed: of the order.
      sharding: how a batch lies on the devices.
      num_workers: processes that read a streamed source ahead; 0 = threads.
    """

    def __init__(self, source, *, batch_size, seed, sharding, num_workers=0):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.sharding, self.num_workers = sharding, num_workers

    def __call__(self, update):
        return self._place(self._reader(update))

    def between(self, start, stop):
        """Yields the batches of updates start, …, stop - 1; streamed ones are read ahead."""
        if self.source.in_memory:
            local_batches = map(self._reader, range(start, stop))
        else:
            local_batches = ahead(
                self._reader, start, stop, num_workers=self.num_workers, buffer=BATCHES_AHEAD
            )
        yield from map(self._place, local_batches)

    def _place(self, local_batch):
        def place(local):
            return jax.make_array_from_process_local_data(
                self.sharding, local, (self.batch_size,) + local.shape[1:]
            )

        return jax.tree.map(place, local_batch)

    @functools.cached_property
    def _reader(self):
        return LocalBatch(self.source, self.batch_size, self.seed, self._local)

    @functools.cached_property
    def _local(self):
        """Positions in the batch that this process's devices hold, sorted `[B / processes]`."""
        spans = self.sharding.addressable_devices_indices_map((self.batch_size,)).values()
        return np.unique(np.concatenate([np.arange(self.batch_size)[span[0]] for span in spans]))
