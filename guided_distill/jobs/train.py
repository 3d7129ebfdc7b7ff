"""The job `train`: whatever of a run is not finished, and its evaluation."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from guided_distill.data.dataset import cycle_labels
from guided_distill.data.folders import check_outside
from guided_distill.distill.distillations import fitting_samplers
from guided_distill.jobs.common import make_generators, open_data, see_data
from guided_distill.jobs.evaluate import evaluate
from guided_distill.jobs.report import write_paper
from guided_distill.report.grids import grid, is_picture, save_grid
from guided_distill.run import settings
from guided_distill.run.checks import check_models
from guided_distill.run.programs import make_models
from guided_distill.run.sanity import check_reading
from guided_distill.run.stages import first_teacher, stages_asked
from guided_distill.run.trainer import Trainer
from guided_distill.system.files import local_path
from guided_distill.system.processes import from_first
from guided_distill.system.progress import to_stderr
from guided_distill.system.workdir import StageFolder, own_workdir

PREVIEW_STEPS = 64  # at most, of the samples drawn after a stage
CLASSES_SAID = 10
PREVIEW_SAMPLES = 10  # per guidance weight


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `train`, as its arguments have it."""

    config: Any
    workdir: str
    stage: str = ""
    teacher: str = ""


def run(request):
    """`train` of a `Request`."""
    train(request.config, request.workdir, stage=request.stage, teacher=request.teacher)


def train(
    config: Any,
    workdir: str | pathlib.Path,
    *,
    stage: str = "",
    teacher: str | pathlib.Path = "",
    on_images: Callable[[str, pathlib.Path], None] | None = None,
) -> bool:
    """Trains and evaluates whatever of a run is not finished; an interrupted call goes on.

        config = guided_distill.load_config("configs/digits.py")
        guided_distill.train(config, "runs/digits")

    Args:
      config: ConfigDict, as `load_config` gives it.
      workdir: the run's folder.
      stage: one stage alone, without evaluation, such as "teacher"; '' means all.
      teacher: folder of an imported model or of a finished stage, in any workdir, that the first
        stage trained learns from; the stages up to its kind are left out. As `teacher.path` of
        the config.
      on_images: called with (title, path) whenever samples of a finished stage were drawn.

    Returns:
      Whether there was anything left to do.

    Raises:
      UserError: where the config is wrong, or another run holds the workdir.
      Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    workdir = local_path(workdir, "`workdir`")
    if teacher:
        config.teacher.path = str(teacher)
    settings.prepare_config(config)
    check_outside(config.data, workdir, "`workdir`")
    with own_workdir(workdir):
        trained = train_stages(config, workdir, stage, on_images)
        if trained and config.evaluation.paper_report and not stage:
            write_paper([workdir])
    return trained


def train_stages(config, workdir, stage_name, on_images):
    """Trains what is not finished, then evaluates; says so where nothing is left to do."""
    settings.check_devices(config, jax.device_count())
    device = jax.devices()[0]
    to_stderr(f"{workdir}: {jax.device_count()} x {device.device_kind}, {config.model.dtype}")
    dataset = open_data(config)
    if dataset.class_names:
        more = ", …" if len(dataset.class_names) > CLASSES_SAID else ""
        said = ", ".join(dataset.class_names[:CLASSES_SAID])
        to_stderr(f"{dataset.name}: {dataset.num_classes} classes: {said}{more}")
    finished = first_teacher(config)
    stages = stages_asked(config, finished, stage_name)
    models = make_models(config, dataset.image_shape, dataset.num_classes, finished)
    check_models(config, models[0], dataset)
    seen = see_data(config, dataset)
    begun = StageFolder(workdir / stages[0].name).read_origin() is not None
    if not begun:
        try_brought(finished, models[0], dataset.train)
    generators = make_generators(config)
    trainer = Trainer(
        config,
        workdir,
        dataset,
        models,
        on_stage_end=lambda *args: preview(config, workdir, seen, generators, on_images, *args),
    )
    trained = trainer.run(stages, finished)
    if stage_name:
        to_stderr(f"{stage_name}: {'finished' if trained else 'was finished before'}: {workdir}")
        return bool(trained)
    evaluated = evaluate(config, workdir, generators, dataset, seen)
    if not trained and not evaluated:
        to_stderr(f"this run is finished: {workdir / 'report' / 'index.html'}")
    return bool(trained or evaluated)


def try_brought(finished, model, source):
    """Tries a teacher that was brought, and its guide, on the data."""
    while finished is not None:
        if finished.is_imported:
            check_reading(model, finished.params, source, path=finished.path)
        finished, model = finished.guide, model.guide


def preview(
    config, workdir, dataset, generators, on_images, stage, finished, is_new, update, write_metrics
):
    """Draws a strip per guidance weight after a stage: `samples/<stage>.png`, TensorBoard.

    Of a stage that was finished before it is drawn where it is missing or damaged. `on_images`, as
    in `train`, is told of it. Encoders have no samples, and latents that nothing decodes no strips;
    `dataset` is that of `see_data`.
    """
    record = finished.record
    path = workdir / "samples" / f"{stage.name.replace('/', '_')}.png"
    if not fitting_samplers(record) or not dataset.pictures:
        return
    if not is_new and from_first(lambda: is_picture(path)):
        return
    w_min, w_max = stage.w_range or config.w_range
    weights = [w for w in config.evaluation.w if w_min <= w <= w_max] or [w_min]
    num_steps = stage.num_steps or min(PREVIEW_STEPS, config.step_two.start_steps)
    indices = np.tile(np.arange(PREVIEW_SAMPLES), len(weights))
    if dataset.num_classes is None:
        cond = dataset.test.read_cond(indices % len(dataset.test))
    else:
        cond = cycle_labels(indices, dataset.num_classes)
    x = generators.of(finished)(
        finished.params,
        cond=cond,
        w=np.repeat(weights, PREVIEW_SAMPLES),
        indices=indices,
        num_steps=num_steps,
        seed=config.evaluation.seed,
    )
    images = dataset.see(x)
    save_grid(path, images, PREVIEW_SAMPLES)
    strips = {f"{stage.name}/samples": grid(images, PREVIEW_SAMPLES)[None]}
    write_metrics(lambda to: to.write_images(update, strips) or to.flush())
    if on_images is not None:
        on_images(stage.title, path)
