"""What `--mode` selects: jobs on one workdir."""

import pathlib

import jax
import numpy as np
from PIL import Image

from guided_distill import settings
from guided_distill.data.sources import load_source, to_uint8
from guided_distill.errors import UserError
from guided_distill.evaluation.classifier import load_or_train_classifier
from guided_distill.evaluation.evaluate import Evaluation, list_contenders
from guided_distill.evaluation.generate import Samplers
from guided_distill.evaluation.pictures import grid, save_grid
from guided_distill.evaluation.report import terminal_summary, write_report
from guided_distill.pipeline import Trainer
from guided_distill.stages import plan_stages, select_stages, stages_after
from guided_distill.training import sharding
from guided_distill.training.checkpoint import read_json
from guided_distill.training.progress import say
from guided_distill.training.stage_folder import StageFolder

PREVIEW_STEPS = 64  # at most, of the samples drawn after a stage
PREVIEW_SAMPLES = 10  # per guidance weight
MAX_STRIP = 16  # samples in one row of a picture, where there is a row per weight


def train(config, workdir, *, stage_name="", teacher=""):
    """Trains what is not finished, then evaluates; says so where nothing is left to do.

    Args:
      config: a checked ConfigDict.
      workdir: the run's folder.
      stage_name: one stage alone, without evaluation; '' means all.
      teacher: folder of a finished stage, in any workdir, that the first stage trained learns
        from; the stages up to its kind are left out.
    """
    workdir = pathlib.Path(workdir)
    settings.check_devices(config, jax.device_count())
    stages = select_stages(plan_stages(config), stage_name)
    teacher_folder = StageFolder(pathlib.Path(teacher)) if teacher else None
    if teacher_folder:
        _, record = teacher_folder.load()
        stages = stages_after(stages, record)
    samplers = make_samplers(config)
    trainer = Trainer(
        config, workdir, on_stage_end=lambda *args: preview(config, workdir, samplers, *args)
    )
    trained = trainer.run(stages, teacher_folder)
    if stage_name:
        say(f"{stage_name}: {'finished' if trained else 'was finished before'}: {workdir}")
        return
    evaluated = evaluate(config, workdir, samplers)
    if not trained and not evaluated:
        say(f"this run is finished: {workdir / 'report' / 'report.md'}")


def evaluate(config, workdir, samplers=None):
    """Compares all finished stages and writes `report/`; False where it stood there already."""
    workdir = pathlib.Path(workdir)
    folder = workdir / "report"
    folders = find_stages(workdir, config.step_two.algorithm)
    for num_steps in config.evaluation.num_steps:
        distilled = [key for key in folders if isinstance(key, int)]
        settings.check_distilled(num_steps, distilled, what="evaluation.num_steps")
    stages = {key: folder.load() for key, folder in folders.items()}
    hashes = {record_name(r): r["params_sha256"] for _, r in stages.values()}
    evaluation = settings.to_plain(config)["evaluation"]
    provenance = {"evaluation": evaluation, "params_sha256": hashes}
    done = read_json(folder / "results.json")
    if done and all(done["provenance"].get(key) == provenance[key] for key in provenance):
        return False

    samplers = samplers or make_samplers(config)
    train_source = load_source(config.data.name, "train")
    test_source = load_source(config.data.name, "test")
    extractor = load_or_train_classifier(
        workdir / "classifier",
        train_source,
        test_source,
        num_updates=config.evaluation.classifier_updates,
        seed=config.seed,
    )
    contenders = list_contenders(
        stages,
        samplers,
        start_steps=config.step_two.start_steps,
        num_steps=config.evaluation.num_steps,
    )
    comparison = Evaluation(
        train_source,
        extractor,
        num_samples=config.evaluation.num_samples,
        seed=config.evaluation.seed,
    )
    rows, pictures = comparison.run(contenders, config.evaluation.w)
    provenance |= describe(config, stages, extractor, train_source, test_source)
    write_report(folder, rows, pictures, provenance)
    print(terminal_summary(rows, provenance))
    say(f"report: {folder / 'report.md'}")
    return True


def describe(config, stages, extractor, train_source, test_source):
    """What a report's numbers rest on, as plain JSON."""
    records = [record for _, record in stages.values()]
    return {
        "data": train_source.name,
        "data_sha256": train_source.sha256,
        "reference_size": len(train_source),
        "test_size": len(test_source),
        "features": extractor.name,
        "classifier_accuracy": extractor.accuracy,
        "w_range": list(config.w_range),
        "batch_size": config.evaluation.batch_size,
        "updates": {record_name(r): r["updates"] for r in records},
        "training_seconds": {record_name(r): r["seconds"] for r in records},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def sample(workdir, *, stage, num_steps, weights, labels, n, seed, out, batch_size):
    """Draws samples from a finished stage into a picture or an `.npz`.

    Args:
      workdir: of the run.
      stage: `step_two` (the student of `num_steps`), `step_one` or `teacher`.
      num_steps: N.
      weights: guidance weights; each gets an equal share of the n samples, on the same noise.
      labels: classes to cycle through; empty means all.
      n: number of samples.
      seed: of the noise.
      out: path; `.npz` holds `samples`, `labels` and `w`, any other suffix is a picture.
      batch_size: samples per compiled call.
    """
    check_picture_path(out)
    for flag, value, low in (
        ("num_steps", num_steps, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < low:
            raise UserError(f"--{flag} must be at least {low}, got {value}")
    folder = choose_stage(workdir, stage, num_steps)
    params, record = folder.load()
    w_range = record["w_range"] or (0.0, float("inf"))  # The guided teacher takes any weight.
    for w in weights:
        settings.check_w(w, w_range, what="--w")
    num_classes = record["num_classes"]
    labels = labels or list(range(num_classes))
    for label in labels:
        if not 0 <= label < num_classes:
            raise UserError(f"--labels must lie in 0 to {num_classes - 1}, got {label}")
    if n < len(weights):
        raise UserError(f"--n={n} leaves no sample for some of the {len(weights)} weights of --w")

    per_weight = -(-n // len(weights))
    rows = np.arange(n)
    indices = rows % per_weight
    sample_labels = np.asarray(labels, np.int32)[indices % len(labels)]
    sample_w = np.asarray(weights, np.float32)[rows // per_weight]
    mesh = sharding.make_mesh()
    devices = jax.device_count()
    batch_size = -(-min(batch_size, n) // devices) * devices
    x = Samplers(mesh, batch_size).of(record)(
        params, labels=sample_labels, w=sample_w, indices=indices, num_steps=num_steps, seed=seed
    )
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez(out, samples=x, labels=sample_labels, w=sample_w)
    else:
        one_row_each = len(weights) > 1 and per_weight <= MAX_STRIP
        columns = per_weight if one_row_each else round(per_weight**0.5 + 0.49)
        save_grid(out, to_uint8(x), columns)
    say(f"{n} samples in {num_steps} steps: {out}")


def check_picture_path(out):
    """Refuses an output path that no picture or `.npz` can be written to."""
    if not out:
        raise UserError("--mode=sample needs --out, such as --out=grid.png or --out=samples.npz")
    suffix = pathlib.Path(out).suffix.lower()
    if suffix != ".npz" and suffix not in Image.registered_extensions():
        raise UserError(f"--out={out}: take .npz or a picture's suffix, such as .png")


def choose_stage(workdir, stage, num_steps):
    """The folder that `--mode=sample` draws from."""
    workdir = pathlib.Path(workdir)
    if stage in ("teacher", "step_one"):
        return StageFolder(workdir / stage)
    if stage not in ("", "step_two"):
        raise UserError(f"--stage must be teacher, step_one or step_two, got {stage}")
    students = find_students(workdir, "deterministic")
    settings.check_distilled(num_steps, list(students), what="--num_steps")
    return students[num_steps]


def find_students(workdir, algorithm):
    """`{N: folder}` of the finished students."""
    records = pathlib.Path(workdir, "step_two", algorithm).glob("*/stage.json")
    return {int(path.parent.name): StageFolder(path.parent) for path in sorted(records)}


def find_stages(workdir, algorithm):
    """`{"teacher", "step_one", N, …}` -> folder; ancestors may lie in other workdirs."""
    students = find_students(workdir, algorithm)
    if not students:
        raise UserError(f"{workdir} holds no finished student: run --mode=train first")
    step_one = students[max(students)].parent()
    while step_one.record["stage"] == "step_two":
        step_one = step_one.parent()
    return {"teacher": step_one.parent(), "step_one": step_one} | students


def record_name(record):
    """A stage's name in results: 'teacher', 'step_one', 'step_two/deterministic/0004'."""
    if record["stage"] != "step_two":
        return record["stage"]
    return f"step_two/{record['algorithm']}/{record['num_steps']:04d}"


def make_samplers(config):
    """Samplers for all of a config's devices."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Samplers(mesh, config.evaluation.batch_size)


def preview(config, workdir, samplers, stage, folder, update, writer):
    """Draws a strip per guidance weight after a stage: `samples/<stage>.png`, TensorBoard."""
    params, record = folder.load()
    weights = config.evaluation.w
    num_steps = stage.num_steps or min(PREVIEW_STEPS, config.step_two.start_steps)
    indices = np.tile(np.arange(PREVIEW_SAMPLES), len(weights))
    x = samplers.of(record)(
        params,
        labels=indices % record["num_classes"],
        w=np.repeat(weights, PREVIEW_SAMPLES),
        indices=indices,
        num_steps=num_steps,
        seed=config.evaluation.seed,
    )
    images = to_uint8(x)
    name = stage.name.replace("/", "_")
    save_grid(workdir / "samples" / f"{name}.png", images, PREVIEW_SAMPLES)
    writer.write_images(update, {f"{stage.name}/samples": grid(images, PREVIEW_SAMPLES)[None]})
    writer.flush()


def load_config(workdir):
    """The config that a workdir was last trained with."""
    plain = read_json(pathlib.Path(workdir) / "config.json")
    if plain is None:
        raise UserError(f"{workdir} holds no run: train one first, or check --workdir")
    return settings.from_plain(plain)
