"""Finished students of small diffusers folders: their teacher moved a little, with a random dial."""

import jax
import numpy as np
import torch
from diffusers_folders import class_of
from torch_networks import TIMES, draw

from guided_distill.models.imported import W_BRANCH, imported_model
from guided_distill.models.importing import new_folder, write_denoiser
from guided_distill.models.student import init_student
from guided_distill.system.files import read_json
from guided_distill.system.workdir import StageFolder, stage_name

LABELS = {"class_labels": torch.tensor([3, 10])}
W_RANGE = [0.0, 4.0]


def inputs_of(pipeline):
    """(conditioning of an example of the denoiser, its null by name) of a stock pipeline."""
    text = {"encoder_hidden_states": draw(9, 12)}
    added = dict(text_embeds=draw(10), time_ids=16 * torch.rand(2, 6))
    pooled = {"pooled_projections": draw(10)}
    return {
        "StableDiffusionPipeline": (text, {}),
        "StableDiffusionXLPipeline": (text | {"added_cond_kwargs": added}, {}),
        "StableDiffusion3Pipeline": (text | pooled, {}),
        "DiTPipeline": (LABELS, {"class_labels": 1000}),
        "DDIMPipeline": (LABELS, {"class_labels": 10}),
    }[pipeline]


def bring_teacher(source, out):
    """Imports the denoiser of a diffusers folder, alone; returns `out`."""
    index = read_json(source / "model_index.json")
    pipeline = index["_class_name"]
    component = "unet" if "unet" in index else "transformer"
    module = class_of("diffusers", index[component][1]).from_pretrained(source / component).eval()
    scheduler = read_json(source / "scheduler" / "scheduler_config.json")
    conditioning, null = inputs_of(pipeline)
    z = "sample" if component == "unet" else "hidden_states"
    example = {z: draw(module.config.in_channels, 8, 8), "timestep": TIMES} | conditioning
    write_denoiser(
        new_folder(out), module, example, z=z, time="timestep", schedule=scheduler,
        prediction="flow" if "shift" in scheduler else "eps",
        null=null or zeros_like(conditioning), output=4 if pipeline == "DiTPipeline" else None,
        bound=1.0 if pipeline == "DDIMPipeline" else None,
        diffusers={
            "pipeline": pipeline,
            "component": component,
            "class": index[component][1],
            "source": str(source.absolute()),
            "scheduler": scheduler,
            "config": read_json(source / component / "config.json"),
        },
    )  # fmt: skip
    return out


def zeros_like(conditioning):
    """One example of zeros by dotted name."""
    if "added_cond_kwargs" in conditioning:
        added = conditioning["added_cond_kwargs"].items()
        conditioning = conditioning | {f"added_cond_kwargs.{key}": value for key, value in added}
        del conditioning["added_cond_kwargs"]
    return {name: np.zeros(value.shape[1:]) for name, value in conditioning.items()}


def finish_student(workdir, teacher, num_steps, *, name="", num_classes=None, **changes):
    """A finished student of N steps of an imported teacher; returns its `FinishedStage`."""
    stage = StageFolder(teacher).finished()
    model = imported_model(stage.record["model"], teacher, knows_w=True)
    params = init_student(model.init(jax.random.key(0)), stage.params)
    rng = np.random.default_rng(num_steps)

    def move(leaf):
        leaf = np.asarray(leaf)
        return (leaf + 0.02 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    params = jax.tree.map(move, params)
    name = name or stage_name("step_two", "deterministic", num_steps)
    record = stage.record | {
        "name": name,
        "stage": "step_two",
        "algorithm": "deterministic",
        "num_steps": num_steps,
        "factor": 2,
        "w_range": W_RANGE,
        "data": "letters",
        "data_sha256": "5eed" * 16,
        "num_classes": num_classes,
        "parent_sha256": stage.record["params_sha256"],
    }
    for key in ("imported_from", "params_sha256"):
        record.pop(key)
    folder = StageFolder(workdir / name)
    folder.begin({"config": {}}, stage)
    params[W_BRANCH] = {k: v * 10.0 for k, v in params[W_BRANCH].items()}
    return folder.finish(params, record | {"parent": folder.path_to(stage)} | changes)
