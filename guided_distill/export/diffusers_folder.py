"""A finished student as a diffusers folder, which the stock pipeline loads and samples."""

import dataclasses
import json
import os
import pathlib
import shutil

from guided_distill.data.pixels import widen
from guided_distill.distill.distillations import fitting_samplers
from guided_distill.distill.ranges import check_w
from guided_distill.errors import UserError
from guided_distill.export.diffusers_card import write_card
from guided_distill.models.to_diffusers import (
    FOLDED,
    OWN,
    Student,
    component_config,
    component_weights,
    needs_sigmas,
    scheduler_config,
)
from guided_distill.system.files import local_path, read_json, replacing_folder
from guided_distill.system.tensors import read_some_tensors, tensor_shapes, write_tensors

INDEX_FILE = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"  # of a component, in one file or in several
VARIANTS = (".fp16.", ".bf16.")  # in the names of files that stand beside, or for, the full ones
CHECKER = "safety_checker"
OPTIONAL = (CHECKER, "feature_extractor", "image_encoder")  # named by folders that lack them
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # never read, never handed on
PIPELINES = {"DDPMPipeline": "DDIMPipeline"}  # of other steps: what has the student's


@dataclasses.dataclass(frozen=True)
class Source:
    """The diffusers folder that the student's teacher was imported from.

    Attributes:
      folder: its path.
      index: what its `model_index.json` says.
      config: of the component that was distilled.
      weights: `{name in the state dict: (file, shape)}` of it.
      others: names of the components that are taken over as they are.
    """

    folder: pathlib.Path
    index: dict
    config: dict
    weights: dict
    others: tuple


def export_diffusers(stage, num_steps, out, *, w, moved, link, results):
    """Writes a finished student; all that is refused is refused before anything is written.

    Args:
      stage: `FinishedStage`.
      num_steps: N.
      out: folder to write, new or empty.
      w: weights to fold in, a folder each; () keeps the dial.
      moved: where the teacher's diffusers folder lies now; "" for where it lay.
      link: whether what the student does not change is hard links, not copies.
      results: `results.json` of the run, None where it was not measured.

    Returns:
      What was written and how it is sampled, in words.
    """
    student = student_of(stage, num_steps)
    weights = choose_weights(student, stage.record, w)
    scheduler = scheduler_config(student)
    source = read_source(student, moved)
    check_fit(student, source, weights[0])
    if link:
        check_link(source.folder, out)
    with replacing_folder(out) as partial:
        for w in weights:
            folder = partial / f"w{w:g}" if len(weights) > 1 else partial
            write_folder(folder, student, source, scheduler, w, link=link)
            name = f"{out.name}/{folder.name}" if len(weights) > 1 else out.name
            write_card(folder / "README.md", student, stage.record, results, name=name, w=w)
    return describe(out, student, weights)


def student_of(stage, num_steps):
    """The `Student` of a finished stage.

    Raises:
      UserError: where no stock pipeline samples such a model, or it came from no diffusers folder.
    """
    record = stage.record
    if "ddim" not in fitting_samplers(record):
        raise UserError(
            f"{record['name']} is sampled with the {fitting_samplers(record)[0]} sampler, which no "
            "stock scheduler has: export a student of the ddim sampler"
        )
    if "diffusers" not in record.get("model", {}):
        raise UserError(
            f"the teacher of {stage.path} came from no diffusers folder, so there is none to "
            "put the student in: import one with --mode=import --from=FOLDER and distill that"
        )
    return Student(record["model"], record["parameterization"], stage.params, num_steps)


def choose_weights(student, record, asked):
    """The weights to fold, one folder each; (None,) for one folder with the dial.

    Raises:
      UserError: where the pipeline has no dial and no weight is named, or one does not fit.
    """
    for w in asked:
        check_w(w, record["w_range"], what="`w`")
    if asked and student.dial == OWN:
        raise UserError("`w` means nothing to a student whose pipeline has the dial: leave it out")
    if asked:
        return tuple(dict.fromkeys(asked))
    low, high = record["w_range"]
    if student.dial == FOLDED and low == high:
        return (low,)
    if student.dial == FOLDED:
        raise UserError(
            f"{student.diffusers['pipeline']} has no dial for w: name in `w` one or more weights "
            f"of {low:g} to {high:g}, such as --w={high:g}, and each becomes a folder"
        )
    return (None,)


def read_source(student, moved):
    """The `Source` of a student's teacher; `moved` is where it lies now, "" for where it lay.

    Raises:
      UserError: naming what is missing in it.
    """
    folder = local_path(moved or student.diffusers["source"], "`from`")
    index = read_json(folder / INDEX_FILE)
    if index is None:
        raise UserError(
            f"{folder} holds no {INDEX_FILE}: name in `from` where the diffusers folder that the "
            "teacher was imported from lies now"
        )
    component = student.diffusers["component"]
    config = read_json(folder / component / "config.json")
    if config is None:
        raise UserError(f"{folder} lacks {component}/config.json: name a whole folder in `from`")
    return Source(
        folder,
        index,
        config,
        find_weights(folder / component),
        find_others(folder, index, component),
    )


def find_weights(folder):
    """`{name: (file, shape)}` of a component's safetensors, in one file or in several."""
    there = full_names(folder)
    if f"{WEIGHTS}.safetensors" in there:
        files = [there[f"{WEIGHTS}.safetensors"]]
    elif f"{WEIGHTS}.safetensors.index.json" in there:
        index = read_json(there[f"{WEIGHTS}.safetensors.index.json"])
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    else:
        raise UserError(f"{folder} has no {WEIGHTS}.safetensors: put back a copy of it")
    return {name: (file, shape) for file in files for name, shape in tensor_shapes(file).items()}


def full_names(folder):
    """`{name: file}` of what is handed on of a component: a variant only in place of the full file.

    Pickles are not.
    """
    found = {}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: any(v in path.name for v in VARIANTS)):
        name = path.relative_to(folder).as_posix()
        for variant in VARIANTS:
            name = name.replace(variant, ".")
        if path.suffix not in PICKLES:
            found.setdefault(name, path)
    return found


def find_others(folder, index, component):
    """Names of the components beside the student's and the scheduler, each of which is there."""
    named = [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and kind[0] is not None and name not in (component, "scheduler")
    ]
    there = [name for name in named if (folder / name).is_dir()]
    for name in named:
        if name not in there and name not in OPTIONAL:
            raise UserError(
                f"{folder} lacks the component {name}, which {INDEX_FILE} names: name a whole "
                "folder in `from`"
            )
    for name in there:
        files = [path.suffix for path in (folder / name).rglob("*")]
        if set(files) & set(PICKLES) and ".safetensors" not in files:
            raise UserError(
                f"{folder / name} has its weights as a pickle alone, which is not handed on: load "
                "the pipeline in diffusers and call save_pretrained"
            )
    return tuple(there)


def check_fit(student, source, w):
    """Refuses a folder that is not the one that the teacher was imported from.

    `w` is one of the weights to fold, None for the dial.
    """
    component = source.folder / student.diffusers["component"]
    for key, value in student.diffusers["config"].items():
        if key in source.config and not key.startswith("_") and source.config[key] != value:
            raise UserError(
                f"{component} has {key} {source.config[key]!r}, but the teacher was imported with "
                f"{value!r}: name its own folder in `from`"
            )
    for name, value in component_weights(student, w).items():
        shape = source.weights.get(name, (None, value.shape))[1]
        is_new = name not in source.weights and name in student.params
        if is_new or shape != value.shape:
            raise UserError(
                f"{component} is not what the teacher was imported from: {name} is "
                f"{'missing' if is_new else list(shape)}; name its own folder in `from`"
            )


def check_link(folder, out):
    """Refuses hard links where they cannot be: between two file systems."""
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if folder.stat().st_dev != parent.stat().st_dev:
        raise UserError(f"`link`: {folder} lies in another file system than `out`: leave it out")


def write_folder(folder, student, source, scheduler, w, *, link):
    """Writes a whole diffusers folder; `w` is None where it keeps the dial."""
    for name in source.others:
        copy_component(source.folder / name, folder / name, link=link)
    component = folder / student.diffusers["component"]
    component.mkdir(parents=True)
    write_foreign(component / "config.json", component_config(student, source.config, w))
    weights = component_weights(student, w)
    rest = {name: file for name, (file, _) in source.weights.items() if name not in weights}
    for file in sorted(set(rest.values())):
        unused = read_some_tensors(file, [name for name, of in rest.items() if of == file])
        weights |= widen(unused)
    write_tensors(component / f"{WEIGHTS}.safetensors", weights, {"format": "pt"})
    version = {"_diffusers_version": source.index.get("_diffusers_version", "0.42.0")}
    (folder / "scheduler").mkdir()
    write_foreign(folder / "scheduler" / "scheduler_config.json", version | scheduler)
    write_foreign(folder / INDEX_FILE, new_index(source, scheduler))


def new_index(source, scheduler):
    """`model_index.json` with the student's scheduler and without what the folder lacks."""
    index = dict(source.index)
    index["_class_name"] = PIPELINES.get(index["_class_name"], index["_class_name"])
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    lacking = [name for name in OPTIONAL if name in index and name not in source.others]
    index |= {name: [None, None] for name in lacking}
    if CHECKER in lacking:
        index["requires_safety_checker"] = False
    return index


def copy_component(source, target, *, link):
    """A component's files, as copies or as hard links."""
    for name, path in full_names(source).items():
        there = target / name
        there.parent.mkdir(parents=True, exist_ok=True)
        put = os.link if link else shutil.copyfile
        put(path.resolve(), there)  # Files of a download cache are links themselves.


def write_foreign(path, value):
    """Writes JSON as others read it: without a digest."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def describe(out, student, weights):
    """What was written and how it is sampled."""
    steps = f"num_inference_steps={student.num_steps}"
    scale = "guidance_scale=1 + w" if weights == (None,) else "guidance_scale=1.0"
    folders = f"{out}/w…, one for each weight" if len(weights) > 1 else str(out)
    also = ", sigmas as README.md says" if needs_sigmas(student) else ""
    return f"{folders}: {student.diffusers['pipeline']}, sample with {steps}, {scale}{also}"
