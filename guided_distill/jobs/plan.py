"""The job `plan`: what a recipe takes, before it is paid for: operations, memory, hours, disk."""

import dataclasses
from typing import Any

import jax

from guided_distill.errors import UserError
from guided_distill.jobs.compile_check import check_stage, find_devices, models_and_example
from guided_distill.models.build import count_params
from guided_distill.report.tables import align
from guided_distill.run import settings
from guided_distill.run.costs import PARTS, call_flops, evaluation_calls, update_costs
from guided_distill.run.programs import StagePrograms, kind_of
from guided_distill.run.rehearsal import SAMPLING_STEPS, Rehearsal, middle, time_each
from guided_distill.run.stages import first_teacher, plan_stages, stages_asked
from guided_distill.system import sharding
from guided_distill.system.devices import GIB, KINDS, parse_devices
from guided_distill.system.files import output_path, write_json
from guided_distill.system.progress import in_clock, to_stderr, to_stdout
from guided_distill.training.memory import device_memory

SHARE = 0.4  # of the peak, unless asked otherwise: what well-tuned networks of this kind reach
TIMED = 5  # calls of each, after the first
ROUGH = 2  # times the estimate: what activations were found to take, at most
HELD = ("params", "optimizer", "average", "teacher", "activations")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `plan`: the flags of these names, which `--help` explains."""

    config: Any
    stage: str = ""
    devices: str = ""
    share: float = SHARE
    compile: bool = False
    image_shape: tuple[int, ...] = ()
    num_classes: int | None = None
    out: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """What it is planned for.

    Attributes:
      title: for people.
      count: devices.
      memory: bytes of each; None for no limit.
      rate: FLOP/s that each is taken to reach; None where updates are timed.
      rate_from: where that is from, in words.
      topology: that the TPU's compiler knows; "" for none.
    """

    title: str
    count: int
    memory: int | None
    rate: float | None
    rate_from: str
    topology: str = ""


def run(request):
    """Says what a config takes.

    Returns:
      The exit code: 0 where all of it fits.

    Raises:
      UserError: where the devices are unknown or the config does not fit them.
    """
    config = request.config
    if not 0.0 < request.share <= 1.0:
        raise UserError(f"`share` must be above 0 and at most 1, got {request.share:g}")
    settings.prepare_config(config)
    out = output_path(request.out) if request.out else None
    target = choose_target(request)
    settings.check_devices(config, target.count)
    plan = make_plan(request, target)
    if out:
        write_json(out, plan)
    to_stdout(describe(plan))
    return 1 if any(row["too_large"] for row in plan["updates"]) else 0


def choose_target(request):
    """The `Target` of a request: the devices that it names, or those at hand."""
    if not request.devices:
        device, count = jax.devices()[0], jax.device_count()
        title = f"{count} x {device.device_kind}, at hand"
        if request.compile:
            raise UserError("`compile` is for `devices` that are not there: updates here are timed")
        return Target(title, count, device_memory(device), None, f"timed, the median of {TIMED}")
    name, count = parse_devices(request.devices)
    kind, dtype = KINDS[name], request.config.model.dtype
    if request.compile and not kind.topologies:
        raise UserError(f"`compile` asks the TPU's compiler, which knows no {kind.title}")
    peak = kind.rate(dtype)
    return Target(
        f"{count} x {kind.title} of {kind.memory / GIB:.0f} GiB",
        count,
        kind.memory,
        request.share * peak,
        f"{request.share:.0%} of the {peak / 1e12:.0f} TFLOP/s of {dtype}",
        f"{name}:{kind.topologies[count]}" if kind.topologies else "",
    )


def make_plan(request, target):
    """The plan, as plain JSON."""
    config, teacher = request.config, first_teacher(request.config)
    models, example = models_and_example(request, teacher)
    stages = stages_asked(config, teacher, request.stage)
    of_kind = {}
    for stage in stages:
        of_kind.setdefault(kind_of(stage), []).append(stage)
    rows = [plan_update(request, target, models, example, same) for same in of_kind.values()]
    flops = call_flops(models[1], example)
    calls = evaluation_calls(config, plan_stages(config, teacher)) if not request.stage else 0
    return {
        "target": dataclasses.asdict(target),
        "dtype": config.model.dtype,
        "mesh": {"data": target.count // config.mesh.fsdp, "fsdp": config.mesh.fsdp},
        "params": count_params(jax.eval_shape(models[1].init, jax.random.key(0))),
        "updates": rows,
        "evaluation": plan_evaluation(request, target, models, example, calls, flops),
        "disk_bytes": sum(row["disk_bytes"] for row in rows),
    }


def plan_update(request, target, models, example, stages):
    """One row of a plan: the stages that share one compiled update."""
    config, stage = request.config, stages[0]
    to_stderr(f"{stage.name}: counting")
    costs = update_costs(config, models, example, stage, target.count)
    num_updates = sum(same.optimization["num_updates"] for same in stages)
    row = {
        "update": stage.name,
        "stages": len(stages),
        "num_updates": num_updates,
        "flops": costs.flops,
        "bytes": costs.bytes,
        "memory_from": "shapes; activations, with the gradient, a rough estimate from the trace",
        "disk_bytes": len(stages) * disk_of(costs.bytes, config.mesh.fsdp),
    }
    seconds = costs.total_flops / (target.rate * target.count) if target.rate else None
    if request.compile or target.rate is None:
        row |= compiled(request, target, models, example, stage)
    if target.rate is None:
        timed = time_each(
            {"update": Rehearsal(config, models, example).updating(stage)}, rounds=TIMED
        )
        seconds = middle(timed["update"])
    return row | {
        "seconds": seconds * num_updates,
        "seconds_from": target.rate_from,
        **fit(config, target, costs, row),
    }


def disk_of(held, fsdp):
    """Bytes of a stage's folder: finished parameters and the newest two states."""
    state = held["params"] + held["optimizer"] + held["average"]
    return fsdp * (held["params"] + 2 * state)


def compiled(request, target, models, example, stage):
    """What the compiled update adds to a row: its bytes and collectives."""
    config, devices = request.config, find_devices(target.topology)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    found = check_stage(StagePrograms(config, mesh, models, example), stage, None)
    if found["error"]:
        return {"compiler_says": found["error"]}
    return {
        "peak_bytes": found["peak_bytes"],
        "memory_from": "the compiled update",
        "collectives": found["collectives"],
    }


def plan_evaluation(request, target, models, example, calls, flops):
    """The evaluation's part of a plan: network calls; features are not counted."""
    row = {"network_calls": calls, "flops": calls * flops, "seconds": 0.0}
    if not calls:
        return row
    if target.rate is None:
        rehearsal = Rehearsal(request.config, models, example)
        draw = rehearsal.sampling(guided=False)
        seconds = middle(time_each({"draw": draw}, rounds=TIMED)["draw"])
        per_call = seconds / (SAMPLING_STEPS * rehearsal.sampling_size)
    else:
        per_call = flops / (target.rate * target.count)
    return row | {"seconds": calls * per_call, "seconds_from": target.rate_from}


def fit(config, target, costs, row):
    """What makes an update fit that does not, or may not, in words; "" where it does.

    Returns:
      `{"too_large": …, "near_limit": …}`, at most one of them with words.
    """
    held = sum(costs.bytes[part] for part in HELD[:-1])
    activations, memory = costs.bytes["activations"], target.memory
    work = row["peak_bytes"] - held if "peak_bytes" in row else activations
    says, words = row.get("compiler_says", ""), {"too_large": "", "near_limit": ""}
    if memory is None:
        return words
    size = f"{(held + work) / GIB:.1f} GiB of {memory / GIB:.1f}"
    if says or held + work > memory:
        ways = ways_out(config, target, held, max(work, activations))
        words["too_large"] = f"{row['update']}: {says or size}; take {ways}"
    elif "peak_bytes" not in row and held + ROUGH * activations > memory:
        rough = f"{activations / GIB:.1f} a rough estimate, and {ROUGH} times that was seen"
        asks = "ask --compile, or take" if target.topology else "take"
        ways = ways_out(config, target, held, ROUGH * activations)
        words["near_limit"] = f"{row['update']}: {size}, of which {rough}; {asks} {ways}"
    return words


def ways_out(config, target, held, work):
    """The settings with which `held` bytes of state and `work` bytes of an update fit, in words."""
    ways = []
    fsdp, most = config.mesh.fsdp, target.count
    while fsdp < most and held * config.mesh.fsdp / fsdp > target.memory / 2:
        fsdp *= 2
    if fsdp != config.mesh.fsdp:
        ways.append(f"mesh.fsdp={fsdp}")
    left = target.memory - held * config.mesh.fsdp / fsdp
    batch = min(config[key].batch_size for key in ("step_one", "step_two")) // target.count
    parts = 1
    while work / parts > left and parts < batch:
        parts *= 2
    if parts > 1:
        parts *= config.memory.gradient_accumulation
        ways.append(f"memory.gradient_accumulation={parts}")
    if config.memory.remat != "full":
        ways.insert(0, "memory.remat=full")
    return " and ".join(ways) or "more devices"


def describe(plan):
    """The plan for a terminal."""
    target, evaluation = plan["target"], plan["evaluation"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [
        f"{target['title']}, mesh {mesh}, {plan['dtype']}",
        f"network of {plan['params']:,} parameters (student)",
        f"time: {target['rate_from']}",
        "",
    ]
    cells = [["update", "updates", "TFLOP each", *PARTS, "time", "share"]]
    total = sum(row["seconds"] for row in plan["updates"]) + evaluation["seconds"]
    for row in plan["updates"]:
        flops = sum(row["flops"].values())
        shares = [f"{row['flops'][part] / flops:.0%}" for part in PARTS]
        cells.append(
            [row["update"], f"{row['num_updates']:,}", f"{flops / 1e12:.4g}", *shares]
            + [in_hours(row["seconds"]), f"{row['seconds'] / total:.0%}"]
        )
    if evaluation["network_calls"]:
        calls = f"{evaluation['network_calls']:,}"
        each = evaluation["flops"] / evaluation["network_calls"] / 1e12
        cells.append(
            ["evaluation, calls", calls, f"{each:.4g}", "", "", "", ""]
            + [in_hours(evaluation["seconds"]), f"{evaluation['seconds'] / total:.0%}"]
        )
    lines += [align(cells), ""]
    lines.append(
        f"in all {in_hours(total)}, {total * target['count'] / 3600:,.3g} device-hours, "
        f"{plan['disk_bytes'] / 1e9:.3g} GB on disk; features of the evaluation are not counted"
    )
    lines += ["", align(memory_cells(plan)), ""]
    lines.append(f"memory: {plan['updates'][0]['memory_from']}")
    found = [
        f"{verdict}: {row[key]}"
        for key, verdict in (("too_large", "does not fit"), ("near_limit", "may not fit"))
        for row in plan["updates"]
        if row[key]
    ]
    lines += found or ["all fits"]
    return "\n".join(lines)


def memory_cells(plan):
    """The table of a plan's bytes, GiB of one device."""
    cells = [["GiB of a device", *HELD, "in all"]]
    for row in plan["updates"]:
        held = dict(row["bytes"])
        if "peak_bytes" in row:
            held["activations"] = row["peak_bytes"] - sum(held[part] for part in HELD[:-1])
        sizes = [held[part] / GIB for part in HELD]
        cells.append([row["update"], *(f"{size:.3g}" for size in sizes), f"{sum(sizes):.3g}"])
    return cells


def in_hours(seconds):
    """'12:05' below an hour, '3.2 h' below two days, '5.1 days'."""
    if seconds < 3600:
        return in_clock(seconds)
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:.3g} days"
