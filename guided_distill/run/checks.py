"""What is asked of a stage's folder, and of its teacher's, before anything is trained there."""

import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.known_schedules import ends_in_noise
from guided_distill.diffusion.parameterization import CONVERTIBLE
from guided_distill.distill.distillations import ALGORITHMS, DISTILLATIONS
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
    here = teacher.guide and teacher.guide.record["params_sha256"]
    there = origin.get("guide_sha256")
    if there != here:
        there, here = (sha256[:12] if sha256 else "none" for sha256 in (there, here))
        raise UserError(
            f"{folder.path} was distilled with another guide ({there} there, {here} here): take "
            "another `workdir`, or the teacher.guide it was begun with"
        )
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
        way_out = ": data.image_size and data.channels make images fit" if dataset.pictures else ""
        raise UserError(
            f"{config.teacher.path} takes samples of {list(teacher.sample_shape)}, but "
            f"{dataset.name} has {list(dataset.image_shape)}{way_out}"
        )
    check_conversion(config, teacher)
    check_times(config, teacher.schedule)
    if teacher.bound is None:
        check_no_clip(config)
    null, path = teacher.conditioning.null, config.teacher.path
    check_conditioning(teacher.conditioning.takes, dataset, path)
    if teacher.guide is not None:
        takes = teacher.guide.conditioning.takes
        check_conditioning(takes, dataset, config.teacher.guide, all_of_it=False)
    elif null is None and tuple(config.w_range) != (0.0, 0.0):
        raise UserError(
            f"{path} is not guided: name another model with teacher.guide, or set w_range and "
            f"evaluation.w to (0.0, 0.0) and (0.0,), got w_range {tuple(config.w_range)}"
        )
    for model, where in ((teacher, path), (teacher.guide, config.teacher.guide)):
        if model is not None and dataset.num_classes is not None:
            check_null_label(model.conditioning.null, dataset, where)
    if dataset.null is not None and teacher.guide is None:
        check_null(null, dataset, path)


def check_conversion(config, teacher):
    """Refuses students that predict what cannot be had from their teacher's network."""
    kind = config.step_one.prediction
    if kind and teacher.prediction not in CONVERTIBLE:
        raise UserError(
            f"step_one.prediction {kind} needs a teacher of {', '.join(CONVERTIBLE)}, and "
            f"{config.teacher.path} predicts {teacher.prediction}: leave it ''"
        )
    if kind == "eps" and ends_in_noise(teacher.schedule):
        raise UserError(
            "step_one.prediction eps says nothing of x where the schedule ends in noise alone: "
            "take v, or leave it ''"
        )


def check_no_clip(config):
    """Refuses rounds that clip a teacher whose x has no bound."""
    for name in config.distillations:
        section, rounds = settings.rounds_of(config, name)
        for k, one_round in enumerate(rounds):
            if one_round["clip_teacher"]:
                raise UserError(
                    f"{section}.rounds[{k}].clip_teacher is True, but {config.teacher.path} has no "
                    "bound to clip to: set it to False"
                )


def check_times(config, schedule):
    """Refuses an N that a model of discrete times is not asked at."""
    asked = {"step_two.start_steps": (config.step_two.start_steps,)}
    asked["evaluation.baseline_num_steps"] = config.evaluation.baseline_num_steps
    for key, numbers in asked.items():
        for n in numbers:
            check_divides(schedule, n, key)


def check_divides(schedule, num_steps, what):
    """Refuses an N, which `what` names, that does not divide a schedule's discrete times."""
    num_times = schedule.num_times
    if num_times is None or num_times % num_steps == 0:
        return
    divisors = [n for n in range(1, num_times + 1) if num_times % n == 0]
    close = sorted(sorted(divisors, key=lambda d: abs(d - num_steps))[:3])
    raise UserError(
        f"{what} must divide the teacher's {num_times} times, got {num_steps}: take "
        f"{', '.join(map(str, close))}"
    )


def check_guide(config, teacher, guide):
    """Refuses a guide that cannot be asked where its teacher is; both are `Model`s."""
    path, of = config.teacher.guide, config.teacher.path
    for what, has, wants in (
        ("samples", list(guide.sample_shape), list(teacher.sample_shape)),
        ("a bound", guide.bound, teacher.bound),
    ):
        if has != wants:
            raise UserError(f"teacher.guide {path} has {what} of {has}, but {of} of {wants}")
    if not guide.schedule.agrees_with(teacher.schedule):
        raise UserError(
            f"teacher.guide {path} has another schedule than {of}: a guide is asked at the times "
            "of its teacher, so both must be trained on the same"
        )
    pairs = [name for name in config.distillations if DISTILLATIONS[name].learns_pair]
    if pairs and guide.with_w is None:
        raise UserError(
            f"distillations has {pairs[0]}, which distils the guide too, but teacher.guide {path} "
            "is a function that is not known with w: give its Model `with_w`"
        )


def check_conditioning(takes, dataset, path, *, all_of_it=True):
    """Refuses data that are conditioned on something else than a model.

    Args:
      takes: `{name: jax.ShapeDtypeStruct}` of one example of the model's conditioning; None of
        class labels.
      dataset: `Dataset`.
      path: of the model.
      all_of_it: whether it must take all that the data have, as a guide need not.
    """
    has = dataset.example[1]
    if takes is None:
        if dataset.num_classes is None:
            raise UserError(
                f"{path} is conditioned on class labels, but {dataset.name} has {_names(has)}"
            )
        return
    if not isinstance(has, dict):
        if not takes and (dataset.num_classes == 1 or not all_of_it):
            return
        if len(takes) != 1 or kind_of(next(iter(takes.values()))) != kind_of(has):
            raise UserError(
                f"{path} is conditioned on {_names(takes)}, but {dataset.name} has class labels"
            )
        return
    for name in [*takes, *(has if all_of_it else ())]:
        if name not in has or name not in takes:
            lacks, holds = (dataset.name, path) if name in takes else (path, dataset.name)
            raise UserError(
                f"conditioning '{name}' of {holds} is missing in {lacks}: the model takes "
                f"{_names(takes)}, the data have {_names(has)}"
            )
        if kind_of(takes[name]) != kind_of(has[name]):
            raise UserError(
                f"conditioning '{name}': {path} takes {_words(takes[name])} an example, but "
                f"{dataset.name} has {_words(has[name])}"
            )


def kind_of(one):
    """Shape of one example and kind of its numbers: halves and int64 are as good as 32 bits."""
    kinds = (np.floating, np.integer, np.bool_)
    return tuple(one.shape), [jnp.issubdtype(one.dtype, kind) for kind in kinds]


def _names(specs):
    return ", ".join(f"{name} {list(one.shape)}" for name, one in specs.items()) or "nothing"


def _words(one):
    return f"{one.dtype} {list(one.shape)}"


def check_null_label(null, dataset, path):
    """Refuses a null of a model that is a class of the data: it knows fewer than they have."""
    for name, value in (null if isinstance(null, dict) else {"label": null}).items():
        if value is not None and 0 <= value < dataset.num_classes:
            raise UserError(
                f"{path} has the null {name} {value}, which is a class of {dataset.name} "
                f"(0 to {dataset.num_classes - 1})"
            )


def check_null(null, dataset, path):
    """Refuses a null conditioning of the data that is not the model's."""
    if null is None:
        raise UserError(
            f"{dataset.name} says what is null, but {path or 'the model'} is not guided: import it "
            "with `null`, or remove the data's null"
        )
    if not isinstance(null, dict) or set(null) != set(dataset.null):
        null = dict.fromkeys(dataset.null, null)
    for name, value in dataset.null.items():
        if not np.allclose(np.asarray(value, np.float32), np.asarray(null[name], np.float32)):
            raise UserError(
                f"the null '{name}' of {dataset.name} is not that of {path or 'the model'}: they "
                "must agree, or remove the data's"
            )
