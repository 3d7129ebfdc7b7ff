"""The metrics of any images against a data set."""

import dataclasses

import numpy as np

from guided_distill.data.images import read_images
from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.errors import UserError
from guided_distill.evaluation.measure import Measurement
from guided_distill.jobs.common import (
    choose_extractor,
    find_reference,
    load_classifier,
    open_data,
    see_data,
)
from guided_distill.report.tables import align
from guided_distill.system.files import output_path, write_json
from guided_distill.system.progress import to_stderr, to_stdout


def measure_images(config, workdir, paths, *, skip_broken=False, out=""):
    """Prints the metrics of image files against the data set of a config.

    Args:
      config: a checked ConfigDict.
      workdir: where the classifier and the reference statistics lie.
      paths: image files or folders.
      skip_broken: leave out files that cannot be used, and say which.
      out: JSON to write; '' writes none.
    """
    out = output_path(out) if out else None
    dataset = see_data(config, open_data(config))
    if not dataset.pictures:
        raise UserError(
            f"`images` are pictures, and {dataset.name} holds latents: name their decoder with "
            "evaluation.decoder"
        )
    images, notices = read_images(
        paths,
        dataset.image_shape,
        skip_broken=skip_broken,
        max_value=config.data.max_value,
    )
    for notice in notices:
        to_stderr(notice)
    if len(images) < 2:
        raise UserError("`images` holds one image: a distance needs two or more")
    classifier = load_classifier(config, workdir, dataset)
    extractor = choose_extractor(config, dataset, classifier)
    reference = find_reference(config, workdir, dataset.train, extractor)
    extractor = dataclasses.replace(extractor, see=to_uint8)  # They need no decoder.
    measurement = Measurement(len(images), extractor, None, reference)
    for start in range(0, len(images), config.evaluation.batch_size):
        part = images[start : start + config.evaluation.batch_size]
        measurement.add(to_float(part), np.full(len(part), -1), {})
    unlabelled = ("accuracy", "rmse_to_teacher", "rmse_to_step_one")
    row = {key: value for key, value in measurement.result().items() if key not in unlabelled}
    if out:
        write_json(out, row | {"reference": reference.provenance})
    numbers = [[key, f"{v:.4f}" if isinstance(v, float) else str(v)] for key, v in row.items()]
    to_stdout(align([["metric", "value"], *numbers]))
