"""What a run takes to start, to stop and to notice a lost process, on this machine:

    python tests/measure_runs.py

Times are from the start of the process, imports included; compare them with each other only.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
FIRST_UPDATE = "update 1/"
LONG = ("--config.teacher.num_updates=1000000", "--config.log_every=1")


def start(base, name, cache, *arguments, devices=1):
    """A process that trains the digits teacher, its log on a pipe."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [
            sys.executable, "-m", "guided_distill.main", "--stage=teacher",
            f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={base / name}",
            f"--compilation_cache={base / cache}", *LONG, *arguments,
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_two(base, name, *arguments):
    """Both processes of one run, over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = [f"--coordinator=127.0.0.1:{probe.getsockname()[1]}", "--num_processes=2"]
    return [start(base, name, "two", *meet, f"--process_id={k}", *arguments) for k in range(2)]


def seconds_to(line, process):
    """Seconds until the process says a line that holds `line`."""
    started = time.perf_counter()
    for text in process.stderr:
        if line in text:
            return time.perf_counter() - started
    raise RuntimeError(f"the process ended before it said {line!r}")


def seconds_to_end(process):
    """Seconds until the process has ended."""
    started = time.perf_counter()
    process.communicate()
    return time.perf_counter() - started


def measure_start(base):
    """Time to the first update with an empty cache of compiled programs, and with a full one."""
    times = {}
    for cache in ("cold", "warm"):
        process = start(base, cache, "one")
        times[cache] = seconds_to(FIRST_UPDATE, process)
        process.kill()
    ratio = times["warm"] / times["cold"]
    print(f"first update: cold {times['cold']:.1f} s, warm {times['warm']:.1f} s: {ratio:.2f} x")


def measure_stop(base):
    """SIGTERM to the end of the process, saved: alone, and to one of two."""
    process = start(base, "stop", "one")
    seconds_to(FIRST_UPDATE, process)
    process.send_signal(signal.SIGTERM)
    print(f"SIGTERM: ends after {seconds_to_end(process):.1f} s, code {process.returncode}")
    first, second = start_two(base, "stop_two")
    seconds_to(FIRST_UPDATE, first)
    second.send_signal(signal.SIGTERM)
    seconds = seconds_to_end(first)
    second.communicate()
    codes = first.returncode, second.returncode
    print(f"SIGTERM to one of two: the other ends after {seconds:.1f} s, codes {codes}")


def measure_loss(base):
    """SIGKILL of one of two to the end of the other."""
    for victim in (0, 1):
        running = start_two(base, f"lost_{victim}")
        seconds_to(FIRST_UPDATE, running[0])
        running[victim].kill()
        other = running[1 - victim]
        print(
            f"SIGKILL of process {victim}: the other ends after {seconds_to_end(other):.1f} s, "
            f"code {other.returncode}"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for measure in (measure_start, measure_stop, measure_loss):
            measure(pathlib.Path(folder))
