"""What jobs ask a model for: classes, prompts through a teacher, or what held-out examples have."""

import dataclasses
import pathlib

import jax
import numpy as np

from guided_distill.data.captions import read_prompts
from guided_distill.data.pixels import widen
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedExamples
from guided_distill.models.pipeline import Pipeline, holds_pipeline
from guided_distill.run import settings
from guided_distill.sampling.sampler import read_labels
from guided_distill.system.files import local_path
from guided_distill.system.progress import to_stderr

PROMPTS = ".txt"  # a file of them, a line each
AT_ONCE = 16  # prompts or pictures that go through an encoder together


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the samples of each weight are asked for in turn.

    Attributes:
      cond: `{name: [k, …]}`, one each of k.
      titles: of the columns; () for none.
      notes: lines at the foot of an image.
      arrays: `{name: [k, …]}`, written beside `cond` where samples are written as arrays.
    """

    cond: dict
    titles: tuple = ()
    notes: tuple = ()
    arrays: dict = dataclasses.field(default_factory=dict)


def open_pipeline(request, record):
    """The `Pipeline` that is named, else of prompts the run's own; None where there is no need.

    Args:
      request: of the job.
      record: of the stage that is sampled.

    Raises:
      UserError: where there is none, or what is asked for means nothing to the model.
    """
    has_classes = record["num_classes"] is not None
    if request.prompts and has_classes:
        raise UserError("`prompts` mean nothing to a model of classes: name `labels`")
    if request.labels and not has_classes:
        raise UserError("`labels` mean nothing to a model without classes: leave them out")
    if not (request.teacher or request.prompts):
        return None
    return pipeline_of(request.teacher or settings.read_config(request.workdir).teacher.path)


def pipeline_of(teacher, *, needed=True):
    """The `Pipeline` of a teacher's folder; None where there is none and it is not needed."""
    if not teacher and needed:
        raise UserError("prompts are read by an imported teacher: name its folder by `teacher`")
    folder = teacher and local_path(teacher, "`teacher`")
    return Pipeline.load(folder) if needed or (folder and holds_pipeline(folder)) else None


def choose_asked(request, record, pipeline, most):
    """The `Asked` of a request.

    Args:
      request: of the job.
      record: of the stage that is sampled.
      pipeline: of `open_pipeline`.
      most: samples of each weight.
    """
    if request.prompts:
        return of_prompts(pipeline, read_texts(request.prompts), most)
    if record["num_classes"] is None:
        test = open_dataset(settings.read_config(request.workdir).data).test
        return Asked(widen(AskedExamples(test).read(0, most)))
    labels = read_labels(request.labels, record) or list(range(record["num_classes"]))
    titles = tuple(class_title(label, record) for label in labels)
    return Asked({"labels": np.asarray(labels, np.int32)}, titles)


def of_prompts(pipeline, prompts, most):
    """The `Asked` of the first `most` prompts, which are numbered where there are several."""
    if len(prompts) > most:
        to_stderr(f"the first {most} of {len(prompts)} prompts: a larger --n takes more")
    prompts = prompts[:most]
    titles, notes = (), tuple(prompts)
    if len(prompts) > 1:
        titles = tuple(str(k) for k in range(1, len(prompts) + 1))
        notes = tuple(f"{k}  {prompt}" for k, prompt in zip(titles, prompts, strict=True))
    return Asked(embed(pipeline, prompts), titles, notes, {"prompts": np.asarray(prompts)})


def embed(pipeline, prompts):
    """What a pipeline makes of prompts, `{name: [n, …]}`, with a word where some are cut."""
    before, cond = pipeline.num_cut, in_parts(pipeline.embed, prompts)
    if pipeline.num_cut > before:
        to_stderr(f"prompts cut at the text encoder's limit: {pipeline.num_cut - before}")
    return cond


def in_parts(encode, rows):
    """What an encoder makes of rows, arrays `[n, …]`, of some `AT_ONCE`."""
    starts = range(0, len(rows), AT_ONCE)
    parts = [encode(rows[start : start + AT_ONCE]) for start in starts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def read_texts(prompts):
    """The prompts of a text file, a line each, else the one that the text is."""
    if pathlib.Path(prompts).suffix.lower() != PROMPTS:
        return [prompts.strip()]
    told = read_prompts(local_path(prompts, "`prompts`"), skip_missing=True)
    return [item.told for item in told.items]


def in_turn(arrays, indices):
    """`{name: [n, …]}`: sample i has what stands at i mod k of `{name: [k, …]}`."""
    return {name: values[indices % len(values)] for name, values in arrays.items()}


def class_title(label, record):
    """A class's name, else its number; '' where there is but one."""
    if record["num_classes"] == 1:
        return ""
    return record["class_names"][label] if record["class_names"] else str(label)
