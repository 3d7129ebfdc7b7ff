"""A tiny run of an imported teacher on latents, conditioned on text: its data, model and config.

As a config file it takes the folder that holds both from `TEXT_TO_LATENTS`; where that holds a
`guide` too, it takes the place of the teacher's null.
"""

import os
import pathlib
import runpy

import numpy as np

BASE = pathlib.Path(__file__).parents[1] / "configs" / "base.py"
SAMPLE, TEXT, POOLED, N = (4, 4, 2), (3, 5), (6,), 60


def write_latents(folder, n=N, seed=0, dtype=np.float16):
    """Shards of latents whose mean the text shifts."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((n, *TEXT)).astype(np.float32)
    shift = text.mean((1, 2))[:, None, None, None]
    folder.mkdir(parents=True)
    np.savez(
        folder / "000.npz",
        x=(rng.standard_normal((n, *SAMPLE)) + 3.0 * shift).astype(dtype),
        text=text,
        pooled=rng.standard_normal((n, *POOLED)).astype(np.float16),
    )
    return folder


def write_teacher(
    out, *, takes=("text", "pooled"), channels=2, bound=None, guided=True, seed=0,
    prediction="eps", schedule="scaled_linear",
):  # fmt: skip
    """An imported network of 1000 times, channels second."""
    import torch
    from torch import nn

    import guided_distill

    shapes = {"text": TEXT, "pooled": POOLED, "labels": ()}
    width = sum({"text": TEXT[-1], "pooled": POOLED[-1], "labels": 4}[name] for name in takes)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Linear(8, 8)
            self.told = nn.Linear(width + 8, 8)
            self.labels = nn.Embedding(11, 4) if "labels" in takes else None
            self.begin = nn.Conv2d(channels, 8, 3, padding=1)
            self.end = nn.Conv2d(8, channels, 3, padding=1)
            self.register_buffer("rates", torch.logspace(0, -3, 4))

        def forward(self, z, t, text=None, pooled=None, labels=None):
            angles = t[:, None].float() * self.rates
            told = [self.time(torch.cat([angles.sin(), angles.cos()], 1))]
            told += [text.mean(1)] if text is not None else []
            told += [pooled] if pooled is not None else []
            told += [self.labels(labels)] if labels is not None else []
            h = self.begin(z) + self.told(torch.cat(told, 1))[:, :, None, None]
            return self.end(nn.functional.silu(h))

    torch.manual_seed(seed)
    cond = {
        name: torch.zeros(2, *shapes[name], dtype=torch.int64 if name == "labels" else None)
        for name in takes
    }
    example = dict(z=torch.zeros(2, channels, 4, 4), t=torch.tensor([10, 500]), **cond)
    null = {name: np.full(shapes[name], 0.5, np.float32) for name in takes}
    null |= {"labels": 10} if "labels" in takes else {}
    return guided_distill.import_torch(
        Net().eval(), example, out=out, z="z", time="t", prediction=prediction,
        schedule=schedule, null=null if guided else None, bound=bound,
    )  # fmt: skip


def get_config():
    """Rounds 8 → 2 → 1 of few updates."""
    root = pathlib.Path(os.environ["TEXT_TO_LATENTS"])
    base = runpy.run_path(str(BASE))
    config = base["get_config"]()
    config.data.name, config.data.path = "arrays", str(root / "latents")
    config.data.cache, config.data.memory_gb = str(root / "cache"), 0.0
    config.teacher.path = str(root / "teacher")
    config.teacher.guide = str(root / "guide") if (root / "guide").exists() else ""
    config.w_range = (0.0, 2.0)
    config.step_one.num_updates, config.step_one.batch_size = 12, 8
    config.step_two.start_steps, config.step_two.batch_size = 8, 8
    with config.ignore_type():
        config.step_two.rounds = base["rounds_to"](
            2, 1, num_updates=8, last_updates=8, learning_rate=1e-3
        )
        config.evaluation.w, config.evaluation.num_steps = (0.0, 2.0), (1, 2)
        config.evaluation.baseline_num_steps = (2,)
    config.log_every, config.checkpoint_every = 2, 4
    config.evaluation.num_samples = config.evaluation.batch_size = 24
    return config
