"""The benchmark: what it times is what runs, and it says so where times are uneven."""

import itertools
import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from conftest import SMALL

from guided_distill.errors import UserError
from guided_distill.jobs import benchmark
from guided_distill.run import rehearsal, settings


def small():
    config = settings.load_config(SMALL)
    for key in ("teacher", "step_one", "step_two"):
        config[key].batch_size = 16
    config.evaluation.batch_size = 16
    return config


def ask(**changes):
    given = {"image_shape": (8, 8, 1), "num_classes": 10, "rounds": 1} | changes
    return benchmark.Request(small(), **given)


def another_update(rehearsal, stage):
    """Stands for the same update of others: it takes what ours takes."""
    state, given = rehearsal.begin(stage)
    assert given.teacher_params is not None
    double = jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree))
    return lambda: double(state.params)


def test_an_update_is_timed_in_parts_beside_another(tmp_path, capfd, monkeypatch):
    module = types.ModuleType("theirs")
    module.another_update = another_update
    monkeypatch.setitem(sys.modules, "theirs", module)
    monkeypatch.setattr(benchmark, "SIDE", 64)
    out = tmp_path / "found.json"
    benchmark.run(ask(stage="step_one", against="theirs:another_update", out=str(out)))
    told = capfd.readouterr().out
    assert "8 x cpu, float32; medians of 1" in told and "bare call" in told
    found = json.loads(out.read_text())
    (row,) = found["updates"]
    assert row["update"] == "step_one" and row["compilations"] == 1
    assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
    assert row["examples_per_second"] == pytest.approx(16 / row["seconds"])
    assert row["against_seconds"] > 0 and " x |" in told
    speed_up = found["sampling"]["speed_up"]
    assert len(speed_up) > 1 and len({round(int(n) * x, 9) for n, x in speed_up.items()}) == 1


def test_functions_are_called_in_turn_and_once_before():
    calls = []
    functions = {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in "ab"}
    seconds = rehearsal.time_each(functions, rounds=3)
    assert calls == ["a", "b"] + ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_busy_machine_is_told(monkeypatch):
    row = {
        "update": "teacher", "seconds": 1.0, "spread": 0.3, "examples_per_second": 1.0,
        "parts": dict(teacher=0, student=0.3, backward=0.6, optimizer=0.1), "flops": 1.0,
        "first_call_seconds": 1.0, "compilations": 1, "against_seconds": None,
    }  # fmt: skip
    sampling = {
        "batch_size": 1, "spread": 0.01, "call_flops": 1.0, "student_step_seconds": 1.0,
        "pair_step_seconds": 2.0, "forward_seconds": 1.0, "whole_of_forwards": 1.0,
        "teacher_steps": 4, "speed_up": {1: 8.0},
    }  # fmt: skip
    found = {"devices": 1, "device": "abacus", "dtype": "float32", "rounds": 3, "input_seconds": 0.1,
             "ceiling_flops": 2.0, "updates": [row], "sampling": sampling}  # fmt: skip
    assert "busy or uneven: the middle half of some times spans 30%" in benchmark.describe(found)
    row["spread"] = 0.05
    assert "busy" not in benchmark.describe(found)


def test_the_spread_is_of_the_middle_half():
    assert rehearsal.spread([1.0, 1.0, 1.0, 1.0, 50.0]) < 30
    assert rehearsal.spread([2.0] * 5) == 0.0
    assert rehearsal.spread(list(itertools.repeat(1.0, 2))) == 0.0


def test_compilations_are_counted():
    with benchmark.counting_compilations() as seconds:
        jax.jit(lambda x: x * 3 + 1)(jnp.zeros(17)).block_until_ready()
    assert len(seconds) >= 1 and all(s > 0 for s in seconds)
    before = len(seconds)
    jax.jit(lambda x: x * 5 + 1)(jnp.zeros(19)).block_until_ready()
    assert len(seconds) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rounds=0), "`rounds` must be at least 1, got 0"),
        (dict(against="nowhere:step"), "`against` must be module:function, got nowhere:step"),
        (dict(against="json"), "`against` must be module:function, got json"),
        (dict(stage="step_three"), "`stage` step_three is none of"),
    ],
)
def test_a_benchmark_of_nothing_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        benchmark.run(ask(**changes))
