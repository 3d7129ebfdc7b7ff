"""What is asked of a stage's folder, and of its teacher's, before anything is trained there."""

from guided_distill.distill.distillations import ALGORITHMS
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
    if origin["data_sha256"] != source.sha256:
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
        differences = settings.differing_keys(record["config"][key], stage.settings[key])
        if differences:
            raise UserError(f"{path} has another {key}: {'; '.join(differences)}")
