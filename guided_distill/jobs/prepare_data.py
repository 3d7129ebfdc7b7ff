"""The job `prepare_data`: all that runs of a config will read, made and checked."""

import dataclasses
from typing import Any

from guided_distill.data.registry import prepare_builder
from guided_distill.jobs.common import open_data
from guided_distill.run import settings
from guided_distill.system.progress import to_stderr


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `prepare_data`: the flags of these names, which `--help` explains."""

    config: Any
    download: bool = False


def run(request):
    """Prepares, reads and checks the data, and says what they are."""
    settings.prepare_config(request.config)
    prepare_builder(request.config.data, download=request.download)
    dataset = open_data(request.config)
    shape = "x".join(map(str, dataset.image_shape))
    what = "images" if dataset.pictures else "latents"
    told = f"{dataset.num_classes} classes"
    if dataset.num_classes is None:
        told = f"conditioned on {', '.join(dataset.example[1]) or 'nothing'}"
    to_stderr(
        f"{dataset.name}: {len(dataset.train):,} {what} to learn from and {len(dataset.test):,} "
        f"held out, {shape}, {told}, "
        f"sha256 {dataset.train.sha256[:16]}"
    )
