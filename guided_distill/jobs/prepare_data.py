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
    height, width, channels = dataset.image_shape
    to_stderr(
        f"{dataset.name}: {len(dataset.train):,} images to learn from and {len(dataset.test):,} "
        f"held out, {height}x{width}x{channels}, {dataset.num_classes} classes, "
        f"sha256 {dataset.train.sha256[:16]}"
    )
