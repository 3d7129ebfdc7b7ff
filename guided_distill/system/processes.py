"""The processes of one run: how they join, agree on what lies on disk, and miss one another.

All processes run the same program. Only the first one writes and speaks; what it reads decides
for all (`from_first`), so that no two of them can take different ways.
"""

import contextlib
import faulthandler
import functools
import hashlib
import json
import pathlib
import socket
import sys
import threading
import time
import uuid

import jax
import numpy as np
from jax.experimental import multihost_utils

from guided_distill.errors import UserError
from guided_distill.system.watch import GRACE_SECONDS, Watch, exit_now

TEXT_BYTES = 1024  # of what one process says to all others


class SharedError(UserError):
    """An error that every process of the run has; the first one tells it."""


class _Here:
    """This process among the others: its index, their number, whether it works alone for now."""

    index, count, alone = 0, 1, False
    watch = None


def is_first():
    """Whether this process writes and speaks."""
    return _Here.index == 0


def several():
    """Whether the run has more than one process."""
    return _Here.count > 1


def join(*, coordinator, num_processes, process_id, join_timeout, heartbeat_timeout):
    """Joins the run's other processes; returns once all of them are there.

    Args:
      coordinator: host:port of the first process; "" takes all three from the environment.
      num_processes: of the run; None as above.
      process_id: of this one, 0 to num_processes - 1; None as above.
      join_timeout: seconds until it gives up on the others.
      heartbeat_timeout: seconds of silence after which a process counts as lost.

    Raises:
      UserError: where the arguments are wrong or the processes' devices differ in number.
    """
    if coordinator and process_id == 0:
        _check_port(int(coordinator.rpartition(":")[2]))
    where = coordinator or "the address that the environment names"
    message = (
        f"the run's processes did not meet at {where} within {join_timeout} s: start all "
        f"{num_processes or ''} of them, check --coordinator, or lengthen --join_timeout"
    ).replace("  ", " ")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    faulthandler.disable()  # JAX aborts where it misses others; stacks would bury its reason.
    with _deadline(join_timeout, message):
        try:
            jax.distributed.initialize(
                coordinator or None,
                num_processes,
                process_id,
                initialization_timeout=join_timeout + 60,  # Its own end is not a clean one.
                heartbeat_timeout_seconds=heartbeat_timeout,
                shutdown_timeout_seconds=heartbeat_timeout,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"the processes cannot be joined ({str(error).strip().splitlines()[0]}): name "
                "`coordinator`, `num_processes` and `process_id`"
            ) from error
        _Here.index, _Here.count = jax.process_index(), jax.process_count()
    _check_device_counts()
    if several():
        _Here.watch = _start_watch(coordinator.rpartition(":")[0])


def from_first(decide):
    """What `decide()` is in the first process, as plain JSON; a `UserError` there is everybody's.

    All processes call it at the same point of the program; within `decide` the first is alone.
    """
    if _Here.alone or not several():
        return decide()
    answer = None
    if is_first():
        _Here.alone = True
        try:
            answer = {"value": decide()}
        except UserError as error:
            answer = {"error": str(error)}
        finally:
            _Here.alone = False
    answer = json.loads(_broadcast_text(json.dumps(answer)))
    if "error" in answer:
        raise SharedError(answer["error"])
    return answer["value"]


def first_only(write):
    """Decorator of functions that write: the first process calls them, the others wait for it."""

    @functools.wraps(write)
    def call(*args, **kwargs):
        from_first(lambda: write(*args, **kwargs) and None)

    return call


def array_from_first(read):
    """The array that `read()` is in the first process."""
    if _Here.alone or not several():
        return read()
    array = read() if is_first() else None
    shape, dtype = from_first(lambda: [list(array.shape), str(array.dtype)])
    return multihost_utils.broadcast_one_to_all(
        array if is_first() else np.zeros(shape, dtype), is_source=is_first()
    )


def texts_of_all(text):
    """The `text` of every process, a list; each is cut to `TEXT_BYTES`."""
    if _Here.alone or not several():
        return [text]
    data = np.zeros(TEXT_BYTES, np.uint8)
    raw = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    data[: len(raw)] = raw
    rows = multihost_utils.process_allgather(data)
    return [bytes(row[row != 0]).decode(errors="ignore") for row in rows]


def check_same(mine, describe):
    """Refuses processes that differ in what must be the same.

    Args:
      mine: plain JSON.
      describe: `(the first process's, mine) -> text` of how they differ.

    Raises:
      SharedError: naming the first process that differs.
    """
    first = from_first(lambda: mine)
    for index, text in enumerate(texts_of_all("" if mine == first else describe(first, mine))):
        if text:
            raise SharedError(f"process {index} differs from process 0 in {text}")


def check_shared(folder):
    """Refuses a folder that is not one and the same for all processes, as on a disk of each host.

    Raises:
      SharedError: naming the first process that sees another one.
    """
    if not several():
        return

    def leave_mark():
        name = f"shared-{uuid.uuid4().hex}"
        (folder / name).touch()
        return name

    mark = folder / from_first(leave_mark)
    answers = texts_of_all("" if mark.exists() else f"{folder} on {socket.gethostname()}")
    first_only(mark.unlink)()
    for index, other in enumerate(answers):
        if other:
            raise SharedError(
                f"process {index} does not see what process 0 writes: its {other} is another "
                "folder; take one that all see, such as a network file system"
            )


def code_digest():
    """Digest of this package's source and of JAX's version."""
    package = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def leave(exit_code, *, together):
    """Ends this process; the others too, unless all of them end at this point (`together`)."""
    if not several():
        return exit_code
    if together:
        multihost_utils.sync_global_devices("leave")
        _Here.watch.over = True
        return exit_code
    time.sleep(GRACE_SECONDS if is_first() else 0)  # The others may have the same error to tell.
    exit_now(exit_code)


def wait_for_verdict():
    """Called where a collective failed: gives `Watch` the time to say which process is gone."""
    time.sleep(2 * GRACE_SECONDS)


def _start_watch(host):
    """A `Watch`; `host` is where the first process can be reached, "" takes its host's name."""
    watch = Watch(_Here.index, _Here.count)
    where = from_first(lambda: [host or socket.gethostname(), watch.serve()])
    if not is_first():
        watch.connect(*where)
    return watch


def _check_port(port):
    """Refuses a port that something else listens at: JAX would crash."""
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"`coordinator`: port {port} cannot be opened here ({error})") from error


def _check_device_counts():
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts.tolist())) > 1:
        raise UserError(f"every process needs as many devices as the others, got {counts.tolist()}")


def _broadcast_text(text):
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(2 ** max(8, (size - 1).bit_length()), np.uint8)
    if is_first():
        padded[:size] = data
    return bytes(multihost_utils.broadcast_one_to_all(padded)[:size]).decode()


@contextlib.contextmanager
def _deadline(seconds, message):
    """Ends the process with `message` unless the block is left in time."""

    def give_up():
        print(f"error: {message}", file=sys.stderr)
        exit_now(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
