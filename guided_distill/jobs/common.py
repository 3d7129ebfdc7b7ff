"""What several jobs begin with: the data set, its classifier, features, reference, generators."""

import pathlib

import numpy as np
from PIL import Image

from guided_distill.data.decoded import DecodedDataset, Decoder
from guided_distill.data.pixels import as_learnt, to_uint8
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.evaluation.classifier import load_or_train_classifier, random_extractor
from guided_distill.evaluation.clip_score import ClipScorer, asked_captions, score_real
from guided_distill.evaluation.features import (
    latent_extractor,
    load_imported_extractor,
    load_inception_extractor,
    through,
)
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

TRIED = 4  # examples that a decoder and a network of features are tried on


def open_data(config):
    """The config's `Dataset`, checked against the rest of the config."""
    dataset = open_dataset(config.data)
    settings.check_data(config, dataset)
    if several():
        check_same(
            dataset.train.sha256, lambda first, mine: f"its data: {mine[:12]}, not {first[:12]}"
        )
    return dataset


def see_data(config, dataset):
    """A `Dataset` as it is looked at: itself, or its latents through the run's decoder.

    Decoder and network of features are tried on a few examples, before anything is computed.

    Raises:
      UserError: where one of them does not fit, or gives what is not finite.
    """
    seen, path = dataset, settings.decoder_path(config)
    if path and not dataset.pictures:
        decoder = Decoder(path, dataset.image_shape, make_mesh(config))
        tell_decoder(config, path, decoder, dataset)
        seen = DecodedDataset(dataset, decoder)
    if config.evaluation.features:
        features = config.evaluation.features
        extractor = load_imported_extractor(features, seen.image_shape, make_mesh(config))
        images, _ = seen.train.read(np.arange(min(TRIED, len(seen.train))))
        if not np.isfinite(extractor.apply(images)[0]).all():
            raise UserError(
                f"evaluation.features {features} gives features of {dataset.name} that are not "
                "finite"
            )
        to_stderr(f"features: {extractor.name}, {extractor.num_features} of a picture: {features}")
    if config.evaluation.clip:
        try_clip(config, dataset, seen)
    return seen


def load_clip(config, seen):
    """The `ClipScorer` that the config names, of pictures as of `see_data`; None for none."""
    path = config.evaluation.clip
    return ClipScorer(path, seen.image_shape, make_mesh(config)) if path else None


def try_clip(config, dataset, seen):
    """Tries a CLIP model on a few held-out pictures, whose captions must all be known."""
    captions = asked_captions(dataset.test, config.evaluation.num_samples)
    scorer = load_clip(config, seen)
    score = score_real(scorer, dataset.test, seen.see, min(TRIED, len(captions)))
    if not np.isfinite(score):
        raise UserError(f"evaluation.clip {config.evaluation.clip} gives no finite scores")
    cut = scorer.num_cut(captions)
    to_stderr(
        f"clip: {scorer.name}, {scorer.resize}, {score:.1f} on the data"
        f"{f'; {cut} of {len(captions)} captions are cut at its limit' if cut else ''}"
    )


def tell_decoder(config, path, decoder, dataset):
    """Tries a decoder on the data, and says which it is and what it makes of them."""
    x, _ = dataset.train.read(np.arange(min(TRIED, len(dataset.train))))
    image = decoder.decode(as_learnt(x))
    own = "" if config.evaluation.decoder else ", beside the teacher"
    to_stderr(
        f"decoder: {decoder.name}, {list(dataset.image_shape)} to {list(decoder.image_shape)}, "
        f"values {image.min():.2f} to {image.max():.2f} on the data{own}: {path}"
    )


def eyes_of(stage, decoder_path, mesh):
    """What makes pictures, uint8, of a `FinishedStage`'s samples; None where nothing does."""
    if stage.draws_pictures:
        return to_uint8
    return Decoder(decoder_path, stage.record["image_shape"], mesh) if decoder_path else None


def make_mesh(config):
    """The mesh of all of a config's devices."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp)


def make_generators(config):
    """Generators for all of a config's devices."""
    evaluation = config.evaluation
    return Generators(make_mesh(config), evaluation.batch_size, evaluation.ancestral_mix)


def load_classifier(config, workdir, dataset):
    """The `TrainedClassifier` of a workdir, trained now if it is not there.

    Args:
      config: ConfigDict.
      workdir: of the run.
      dataset: of `see_data`; without classes, or of latents that nothing decodes, it has none.
    """
    if dataset.num_classes is None or not dataset.pictures:
        return None
    if dataset.num_classes == 1:
        to_stderr(
            "one class: a classifier has nothing to learn, so its features are random ones; "
            "evaluation.inception gives distances that mean more"
        )
    classifier = load_or_train_classifier(
        workdir / "classifier",
        dataset.train,
        dataset.test,
        num_updates=config.evaluation.classifier_updates,
        seed=config.seed,
    )
    return through(dataset.decoder, classifier)


def choose_extractor(config, dataset, classifier):
    """The network that the config names, imported or InceptionV3, else the data's own classifier.

    Of latents that nothing decodes the latents; of pictures without classes random features.
    `dataset` is that of `see_data`.
    """
    image_shape, evaluation = dataset.image_shape, config.evaluation
    if not dataset.pictures:
        return latent_extractor(image_shape)
    if evaluation.features:
        named = load_imported_extractor(evaluation.features, image_shape, make_mesh(config))
    elif evaluation.inception:
        named = load_inception_extractor(evaluation.inception, make_mesh(config))
    elif classifier:
        return classifier
    else:
        named = random_extractor(image_shape, config.seed)
    return through(dataset.decoder, named)


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
