"""The job `benchmark`: where the time of updates and of samples goes, on the devices at hand."""

import contextlib
import dataclasses
import importlib
import itertools
import os
import time
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

from guided_distill.data.batches import Batches
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.jobs.compile_check import models_and_example
from guided_distill.report.tables import align
from guided_distill.run import settings
from guided_distill.run.costs import PARTS, call_flops, split, update_costs
from guided_distill.run.rehearsal import Rehearsal, middle, spread, time_each
from guided_distill.run.stages import first_teacher, stages_asked
from guided_distill.system.files import output_path, write_json
from guided_distill.system.progress import to_stderr, to_stdout

ROUNDS = 10
WIDE = 0.1  # spread of a quiet machine
SIDE = 2048  # of the matrices whose product is the machine's ceiling
SAMPLING_STEPS = (4, 16)  # whose difference is that of steps alone
INPUT_BATCHES = 20
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `benchmark`: the flags of these names, which `--help` explains."""

    config: Any
    stage: str = ""
    against: str = ""
    profile: str = ""
    rounds: int = ROUNDS
    image_shape: tuple[int, ...] = ()
    num_classes: int | None = None
    out: str = ""


def run(request):
    """Times a config's updates and its sampler.

    Raises:
      UserError: where the config does not fit the devices, or `against` names no function.
    """
    config = request.config
    if request.rounds < 1:
        raise UserError(f"`rounds` must be at least 1, got {request.rounds}")
    settings.prepare_config(config)
    settings.check_devices(config, jax.device_count())
    out = output_path(request.out) if request.out else None
    other = find_function(request.against) if request.against else None
    teacher = first_teacher(config)
    models, example = models_and_example(request, teacher)
    stages = stages_asked(config, teacher, request.stage)
    rehearsal = Rehearsal(config, models, example)
    stages = rehearsal.programs.kinds(stages)
    with profiled(request.profile):
        found = {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "dtype": config.model.dtype,
            "rounds": request.rounds,
            "ceiling_flops": measure_ceiling(rehearsal, request.rounds),
            "updates": [time_stage(rehearsal, stage, request.rounds, other) for stage in stages],
            "sampling": time_sampling(rehearsal, request.rounds),
            "input_seconds": None if request.image_shape else time_input(config, rehearsal),
        }
    if out:
        write_json(out, found)
    to_stdout(describe(found))


def find_function(name):
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"`against` must be module:function, got {name} ({error})") from error


@contextlib.contextmanager
def profiled(folder):
    """Within this context everything is recorded for TensorBoard's or XProf's profiler."""
    if not folder:
        yield
        return
    with jax.profiler.trace(os.path.expanduser(folder)):
        yield
    to_stderr(f"profile: {folder}, for tensorboard --logdir or xprof")


@contextlib.contextmanager
def counting_compilations():
    """A list that gets the seconds of every compilation within this context."""
    seconds = []

    def note(event, duration, **_):
        if event == COMPILE_EVENT:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def measure_ceiling(rehearsal, rounds):
    """FLOP/s of a product of large matrices on all devices, the best of several."""
    count, dtype = rehearsal.mesh.size, rehearsal.config.model.dtype
    a = jax.device_put(jnp.ones((count, SIDE, SIDE), dtype), rehearsal.layout)
    product = jax.jit(lambda a: jnp.einsum("nij,njk->nik", a, a))
    seconds = time_each({"product": lambda: product(a)}, rounds=rounds)["product"]
    return count * 2 * SIDE**3 / min(seconds)


def time_stage(rehearsal, stage, rounds, other):
    """One row: an update of a stage, whole and in parts, beside another implementation's."""
    to_stderr(f"{stage.name}: compiling and timing")
    started = time.perf_counter()
    update = rehearsal.updating(stage)
    with counting_compilations() as compiled:
        jax.block_until_ready(update())
    first = time.perf_counter() - started
    functions = rehearsal.parts(stage) | {"update": update}
    if other is not None:
        functions["against"] = other(rehearsal, stage)
    seconds = time_each(functions, rounds=rounds)
    medians = {name: middle(times) for name, times in seconds.items()}
    against = medians.pop("against", None)
    costs = update_costs(
        rehearsal.config, rehearsal.models, rehearsal.example, stage, rehearsal.mesh.size
    )
    return {
        "update": stage.name,
        "seconds": medians["update"],
        "spread": max(map(spread, seconds.values())),
        "parts": split(**medians),
        "examples_per_second": stage.optimization["batch_size"] / medians["update"],
        "flops": costs.total_flops,
        "first_call_seconds": first,
        "compilations": len(compiled),
        "compile_seconds": sum(compiled),
        "against_seconds": against,
    }


def time_sampling(rehearsal, rounds):
    """Seconds of a step of the student and of the guided pair, beside a bare call of the network.

    A step is the difference between many steps and few, without what is done once for each sample.
    """
    to_stderr("sampling: compiling and timing")
    few, many = SAMPLING_STEPS
    functions = {"forward": rehearsal.forward()}
    for name, guided in (("student", False), ("pair", True)):
        for steps in SAMPLING_STEPS:
            functions[f"{name} {steps}"] = rehearsal.sampling(guided=guided, num_steps=steps)
    seconds = time_each(functions, rounds=rounds)
    medians = {name: middle(times) for name, times in seconds.items()}
    step = {
        name: (medians[f"{name} {many}"] - medians[f"{name} {few}"]) / (many - few)
        for name in ("student", "pair")
    }
    start_steps = rehearsal.config.step_two.start_steps
    return {
        "batch_size": rehearsal.sampling_size,
        "spread": max(map(spread, seconds.values())),
        "forward_seconds": medians["forward"],
        "student_step_seconds": step["student"],
        "pair_step_seconds": step["pair"],
        "whole_of_forwards": medians[f"student {many}"] / (many * medians["forward"]),
        "call_flops": call_flops(rehearsal.models[1], rehearsal.example),
        "teacher_steps": start_steps,
        "speed_up": {
            n: start_steps * step["pair"] / (n * step["student"])
            for n in rehearsal.config.evaluation.num_steps
        },
    }


def time_input(config, rehearsal):
    """Seconds until a batch of the data lies on the devices, without reading ahead."""
    to_stderr("input: timing")
    batches = Batches(
        open_dataset(config.data).train,
        batch_size=config.step_two.batch_size,
        seed=0,
        sharding=rehearsal.layout,
    )
    updates = itertools.count()
    read = {"input": lambda: batches(next(updates))}
    return middle(time_each(read, rounds=INPUT_BATCHES)["input"])


def describe(found):
    """The tables for a terminal."""
    ceiling = found["ceiling_flops"]
    lines = [
        f"{found['devices']} x {found['device']}, {found['dtype']}; medians of {found['rounds']}",
        f"a product of {SIDE} x {SIDE} matrices: {ceiling / 1e9:,.4g} GFLOP/s, the ceiling",
        "",
    ]
    cells = [["ms of an update", "in all", *PARTS, "examples/s", "of ceiling", "first call"]]
    cells[0] += ["against"]
    for row in found["updates"]:
        against = row["against_seconds"]
        cells.append(
            [row["update"], f"{1e3 * row['seconds']:.4g}"]
            + [f"{1e3 * row['parts'][part]:.3g}" for part in PARTS]
            + [f"{row['examples_per_second']:,.4g}"]
            + [f"{row['flops'] / row['seconds'] / ceiling:.0%}"]
            + [f"{row['first_call_seconds']:.1f} s, {row['compilations']} compiled"]
            + [f"{row['seconds'] / against:.3f} x" if against else "-"]
        )
    lines += [align(cells), "", *sampling_lines(found["sampling"], ceiling)]
    if found["input_seconds"] is not None:
        lines.append(f"input: a batch is ready after {1e3 * found['input_seconds']:.3g} ms")
    widest = max(row["spread"] for row in [*found["updates"], found["sampling"]])
    if widest > WIDE:
        lines.append(
            f"this machine is busy or uneven: the middle half of some times spans {widest:.0%} of "
            "their median; take these figures for rough ones"
        )
    return "\n".join(lines)


def sampling_lines(row, ceiling):
    """What is said of sampling."""
    rate = row["batch_size"] * row["call_flops"] / row["student_step_seconds"]
    speed_up = ", ".join(f"{times:,.0f} x at N = {n}" for n, times in row["speed_up"].items())
    return [
        f"sampling, {row['batch_size']} at a time: {1e3 * row['student_step_seconds']:.4g} ms a "
        f"step of the student ({rate / ceiling:.0%} of the ceiling), "
        f"{1e3 * row['pair_step_seconds']:.4g} of the guided pair, "
        f"{1e3 * row['forward_seconds']:.4g} a bare call of the network",
        f"  {SAMPLING_STEPS[1]} steps take {row['whole_of_forwards']:.3f} x as long as so many "
        "bare calls",
        f"  against the teacher's {row['teacher_steps']} steps: {speed_up}",
    ]
