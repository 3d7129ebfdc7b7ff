"""The job `reference_stats`: statistics of the training images, for any later evaluation."""

import dataclasses
from typing import Any

from guided_distill.evaluation.reference import compute_reference, save_reference
from guided_distill.jobs.common import choose_extractor, load_classifier, open_data, see_data
from guided_distill.run import settings
from guided_distill.system.files import local_path, output_path
from guided_distill.system.progress import to_stderr


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `reference_stats`: the flags of these names, which `--help` explains."""

    config: Any
    workdir: str
    out: str = ""


def run(request):
    """Computes the statistics and writes them."""
    config, workdir = request.config, local_path(request.workdir, "`workdir`")
    settings.prepare_config(config)
    out = output_path(request.out) if request.out else None
    dataset = see_data(config, open_data(config))
    classifier = None
    if not (config.evaluation.inception or config.evaluation.features):
        classifier = load_classifier(config, workdir, dataset)
    extractor = choose_extractor(config, dataset, classifier)
    path = out or workdir / "reference" / f"{extractor.name}.npz"
    save_reference(path, compute_reference(dataset.train, extractor))
    to_stderr(f"statistics of {len(dataset.train):,} examples on {extractor.name}: {path}")
