"""Reading ahead: calls of a function in order, computed by threads or worker processes."""

import dataclasses

import grain
from absl import flags

from guided_distill.errors import UserError

THREADS = 8  # Decoding and reading release Python's lock for most of their time.


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What went wrong, in words: not every exception finds its way between processes."""

    words: str


@dataclasses.dataclass(frozen=True)
class _Guarded:
    function: object

    def __call__(self, index):
        try:
            return self.function(int(index))
        except Exception as error:
            is_known = isinstance(error, UserError)
            return _Failure(str(error) if is_known else f"{type(error).__name__}: {error}")


def ahead(function, start, stop, *, num_workers, buffer):
    """Yields `function(start)`, …, `function(stop - 1)`, computed ahead of their use.

    Args:
      function: of an int; picklable where there are workers.
      start: first argument.
      stop: one past the last.
      num_workers: processes; 0 = threads of this process.
      buffer: results kept ready, of each worker.

    Raises:
      UserError: the first failure of `function`, in its place in the order.
    """
    calls = grain.MapDataset.range(start, stop).map(_Guarded(function))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain's workers ask for them, in any program.
            flags.FLAGS.mark_as_parsed()
        results = calls.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        results = results.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=buffer)
        )
    else:
        options = grain.ReadOptions(num_threads=min(THREADS, buffer), prefetch_buffer_size=buffer)
        results = calls.to_iter_dataset(options)
    for result in results:
        if isinstance(result, _Failure):
            raise UserError(result.words)
        yield result
