"""What an update of an imported transformer costs beside one that is written in Flax by hand.

    python tests/measure_imported.py [repetitions]

Both are Algorithm 2's, of the same shapes on one device. They take turns in one process; the
fastest of each counts.
"""

import pathlib
import sys
import tempfile
import time

import jax
from flax_dit import flax_dit_models
from imported_programs import NUM_CLASSES, prepare_update, programs_of, random_batch
from torch_networks import network

import guided_distill
from guided_distill.system import sharding

BATCH = 32


def bring(folder):
    """The transformer of the tests, imported."""
    module, example = network("dit_deep")
    guided_distill.import_torch(
        module, example, out=folder, z="hidden_states", time="timestep", prediction="eps",
        schedule="scaled_linear", null={"class_labels": NUM_CLASSES}, output=4,
    )  # fmt: skip


def timed(update, state, given, batch):
    """(seconds, the new state)."""
    started = time.perf_counter()
    state, _ = jax.block_until_ready(update(state, given, batch))
    return time.perf_counter() - started, state


def prepare(folder, handwritten):
    """(update, state, given, batch) and floating-point operations."""
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    programs, stages, teacher = programs_of(folder, mesh, step_two__batch_size=BATCH)
    params = teacher.params
    if handwritten:
        models = flax_dit_models(programs.student)
        params = sharding.to_host(jax.jit(models[0].init)(jax.random.key(0)))
        programs, stages, _ = programs_of(folder, mesh, models=models, step_two__batch_size=BATCH)
    stage = stages["step_two"]
    batch = random_batch(programs.student.sample_shape, BATCH)
    return prepare_update(programs, stage, params, batch), programs.program(stage).flops


def main(repetitions=10):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "imported")
        bring(folder)
        sides = {name: prepare(folder, name == "by hand") for name in ("imported", "by hand")}
    seconds = {name: [] for name in sides}
    states = {name: prepared[1] for name, (prepared, _) in sides.items()}
    for _ in range(repetitions + 1):
        for name, ((update, _, given, batch), _) in sides.items():
            taken, states[name] = timed(update, states[name], given, batch)
            seconds[name].append(taken)
    fastest = {name: min(taken[1:]) for name, taken in seconds.items()}  # The first compiles.
    for name, (_, flops) in sides.items():
        print(f"{name}: {fastest[name]:.3f} s an update, {flops / 1e9:.2f} GFLOP")
    ratio = fastest["imported"] / fastest["by hand"]
    flops_ratio = sides["imported"][1] / sides["by hand"][1]
    print(f"imported over by hand: time {ratio:.3f}, operations {flops_ratio:.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
