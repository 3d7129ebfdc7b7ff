"""What several jobs begin with: the data set, its classifier, features, reference, generators."""

import pathlib

from PIL import Image

from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.evaluation.classifier import load_or_train_classifier, random_extractor
from guided_distill.evaluation.features import latent_extractor, load_inception_extractor
from guided_distill.evaluation.reference import (
    compute_reference,
    load_kept_reference,
    load_reference,
    save_reference,
)
from guided_distill.run import settings
from guided_distill.sampling.generator import Generators
from guided_distill.sampling.sampler import check_seed
from guided_distill.system import sharding
from guided_distill.system.files import output_path
from guided_distill.system.processes import check_same, from_first, several
from guided_distill.system.progress import to_stderr


def open_data(config):
    """The config's `Dataset`, checked against the rest of the config."""
    dataset = open_dataset(config.data)
    settings.check_data(config, dataset)
    if several():
        check_same(
            dataset.train.sha256, lambda first, mine: f"its data: {mine[:12]}, not {first[:12]}"
        )
    return dataset


def make_generators(config):
    """Generators for all of a config's devices."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Generators(mesh, config.evaluation.batch_size, config.evaluation.ancestral_mix)


def load_classifier(config, workdir, dataset):
    """The `TrainedClassifier` of a workdir, trained now if it is not there.

    None of data without classes, and of latents.
    """
    if dataset.num_classes is None or not dataset.pictures:
        return None
    if dataset.num_classes == 1:
        to_stderr(
            "one class: a classifier has nothing to learn, so its features are random ones; "
            "evaluation.inception gives distances that mean more"
        )
    return load_or_train_classifier(
        workdir / "classifier",
        dataset.train,
        dataset.test,
        num_updates=config.evaluation.classifier_updates,
        seed=config.seed,
    )


def choose_extractor(config, dataset, classifier):
    """InceptionV3 where the config names its weights, else the data set's own classifier.

    Of latents the latents; of pictures without classes random features.
    """
    if not dataset.pictures:
        return latent_extractor(dataset.image_shape)
    if not config.evaluation.inception:
        return classifier or random_extractor(dataset.image_shape, config.seed)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return load_inception_extractor(config.evaluation.inception, mesh)


def find_reference(config, workdir, source, extractor):
    """`ReferenceStats`: of the file that the config names, of the workdir, or computed now."""
    if config.evaluation.reference_stats:
        return load_reference(config.evaluation.reference_stats, source, extractor)
    path = workdir / "reference" / f"{extractor.name}.npz"
    if from_first(path.exists):
        try:
            return load_kept_reference(path, source, extractor)
        except UserError as error:
            to_stderr(f"{error}: computing it again")
    reference = compute_reference(source, extractor)
    save_reference(path, reference)
    return reference


def image_path(out, *also):
    """An `output_path` for an image, or for a file of the suffixes `also`."""
    suffix = pathlib.Path(out).suffix.lower()
    if suffix not in also and suffix not in Image.registered_extensions():
        suffixes = " or ".join([*also, "an image's suffix, such as .png"])
        raise UserError(f"`out` must have the suffix {suffixes}, got {out!r}")
    return output_path(out)


def check_counts(request, *names):
    """Refuses counts below 1 in the fields `names` of a request, and a seed that is none."""
    for name in names:
        if getattr(request, name) < 1:
            raise UserError(f"`{name}` must be at least 1, got {getattr(request, name)}")
    check_seed(request.seed)
