"""What is asked of a stage's folder, and of its teacher's, before anything is trained there."""

import numpy as np

from guided_distill.distill.distillations import ALGORITHMS, ENCODER
from guided_distill.errors import UserError
from guided_distill.run import settings


def check_settings(stage, folder, source):
    """Refuses a folder begun with another config or data set."""
    origin = folder.read_origin()
    if origin is None:
        return
    differences = settings.differing_keys(origin["config"], stage.settings)
    if differences:
        raise UserError(
            f"{folder.path} holds a run of another config ({'; '.join(differences)}): "
            "take another `workdir`, or the config it was begun with"
        )
    check_data(folder.path, origin, source)


def check_data(path, origin, source):
    """Refuses a stage of other images or labels than the data set holds now.

    `origin` is what determined its params, or its record; `path` is where it lies.
    """
    if origin["data_sha256"] not in (None, source.sha256):  # None of what was imported.
        raise UserError(
            f"{path} was trained on other data than {source.name} holds now (sha256 "
            f"{origin['data_sha256'][:12]} there, {source.sha256[:12]} here): take another "
            "`workdir`, or the data it was begun with"
        )


def check_parent(folder, teacher):
    """Refuses a folder begun with another teacher."""
    origin = folder.read_origin()
    if origin is None or teacher is None:
        return
    if origin["parent_sha256"] != teacher.record["params_sha256"]:
        raise UserError(
            f"{folder.path} was distilled from another teacher than {teacher.path}: take "
            "another `workdir`, or remove that folder to distill it anew"
        )


def check_teacher(stage, teacher, source):
    """Refuses a `FinishedStage` that cannot teach this stage."""
    record, path = teacher.record, teacher.path
    wants = {"teacher"}
    if stage.kind == "step_two":
        wants = {ALGORITHMS[stage.algorithm].first_teacher, "step_two"}
    if record["stage"] not in wants:
        raise UserError(
            f"{stage.title} is distilled from {' or '.join(sorted(wants))}, "
            f"but {path} holds {record['stage']}"
        )
    check_data(path, record, source)
    if record["stage"] == "step_two" and record["num_steps"] != stage.factor * stage.num_steps:
        raise UserError(
            f"a student of {stage.num_steps} steps needs a teacher of "
            f"{stage.factor * stage.num_steps}, but {path} has {record['num_steps']}"
        )
    if record["w_range"] is not None and tuple(record["w_range"]) != stage.w_range:
        raise UserError(
            f"{stage.title} learns w in {list(stage.w_range)}, "
            f"but {path} knows w in {record['w_range']}"
        )
    for key in ("schedule", "model"):
        there = record["config"][key]
        here = {k: v for k, v in stage.settings[key].items() if k in there}
        differences = settings.differing_keys(there, here)
        if differences:
            raise UserError(f"{path} has another {key}: {'; '.join(differences)}")


def check_models(config, teacher, dataset):
    """Refuses data, rounds and weights that a teacher's `Model` cannot take, before any compute."""
    if teacher.sample_shape != dataset.image_shape:
        raise UserError(
            f"{config.teacher.path} takes samples of {list(teacher.sample_shape)}, but "
            f"{dataset.name} has {list(dataset.image_shape)}: data.image_size and data.channels "
            "make images fit"
        )
    check_times(config, teacher.schedule)
    null = teacher.conditioning.null
    if null is None:
        if tuple(config.w_range) != (0.0, 0.0):
            raise UserError(
                f"{config.teacher.path} is not guided: w_range and evaluation.w must be (0.0, 0.0) "
                f"and (0.0,), got w_range {tuple(config.w_range)}"
            )
        return
    if isinstance(null, dict):
        check_labels_fit(null, dataset, config.teacher.path)


def check_times(config, schedule):
    """Refuses an N that a model of discrete times is not asked at."""
    if ENCODER.name in config.distillations and not np.isfinite(schedule.logsnr(np.float32(0.0))):
        raise UserError("distillations has encoder, but the schedule's λ(0) is infinite")
    num_times = schedule.num_times
    if num_times is None:
        return
    divisors = [n for n in range(1, num_times + 1) if num_times % n == 0]
    asked = {"step_two.start_steps": (config.step_two.start_steps,)}
    asked["evaluation.baseline_num_steps"] = config.evaluation.baseline_num_steps
    for key, numbers in asked.items():
        for n in numbers:
            if n not in divisors:
                close = sorted(sorted(divisors, key=lambda d: abs(d - n))[:3])
                raise UserError(
                    f"{key} must divide the teacher's {num_times} times, got {n}: take "
                    f"{', '.join(map(str, close))}"
                )


def check_labels_fit(null, dataset, path):
    """Refuses labels that are not what an imported model is conditioned on."""
    labels = [name for name, value in null.items() if np.issubdtype(value.dtype, np.integer)]
    if len(null) != 1 or len(labels) != 1 or null[labels[0]].shape:
        names = ", ".join(f"{name} {list(value.shape)}" for name, value in null.items())
        raise UserError(f"{path} is conditioned on {names}, but {dataset.name} has class labels")
    if 0 <= null[labels[0]] < dataset.num_classes:
        raise UserError(
            f"{path} has the null {labels[0]} {null[labels[0]]}, which is a class of "
            f"{dataset.name} (0 to {dataset.num_classes - 1})"
        )
