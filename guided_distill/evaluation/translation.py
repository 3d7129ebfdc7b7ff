"""Style transfer (section 4, C.7): encode with the source label, decode with the target label."""

import dataclasses

import numpy as np

from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.evaluation.generate import calls_per_step
from guided_distill.evaluation.metrics import rmse

SHOWN = 10  # pictures in a strip of the figure
SYSTEM_NAMES = {"distilled": "distilled encoder and decoder", "ddim": "guided DDIM both ways"}


@dataclasses.dataclass(frozen=True)
class Coder:
    """An encoder and a decoder.

    Attributes:
      system: "distilled" or "ddim".
      num_steps: N of each of the two.
      calls: network calls of each of the two.
      encode: `(images, labels, w) -> latents`, arrays `[n, …]`.
      decode: `(latents or None for noise, labels, w) -> x`, arrays `[n, …]`.
    """

    system: str
    num_steps: int
    calls: int
    encode: object
    decode: object

    @property
    def title(self):
        """'guided DDIM both ways, N = 8 (16 calls each)'."""
        return f"{SYSTEM_NAMES[self.system]}, N = {self.num_steps} ({self.calls} calls each)"


def make_coder(system, encoder, decoder, samplers, *, num_steps, seed):
    """A `Coder` from the folders of two finished stages.

    Args:
      system: "distilled" or "ddim".
      encoder: `StageFolder`; for "ddim" the teacher.
      decoder: `StageFolder`; for "ddim" the teacher.
      samplers: `Samplers`.
      num_steps: N of each.
      seed: of the noise that `decode` draws without latents.
    """
    encoder_params, encoder_record = encoder.load()
    decoder_params, decoder_record = decoder.load()
    run_encoder = samplers.of(encoder_record, "encode")
    run_decoder = samplers.of(decoder_record, "ddim")

    def encode(x, labels, w):
        return run_encoder(
            encoder_params, labels=labels, w=w, indices=np.arange(len(labels)),
            num_steps=num_steps, seed=seed, start=x,
        )  # fmt: skip

    def decode(latents, labels, w):
        return run_decoder(
            decoder_params, labels=labels, w=w, indices=np.arange(len(labels)),
            num_steps=num_steps, seed=seed, start=latents,
        )  # fmt: skip

    calls = num_steps * calls_per_step(encoder_record)
    return Coder(system, num_steps, calls, encode, decode)


def translate_pictures(coders, images, source_labels, target_labels, *, encoder_w, weights):
    """Encodes with the source labels, decodes with the target labels.

    Args:
      coders: `Coder`s.
      images: `[n, H, W, C]` uint8.
      source_labels: `[n]`, what the pictures show.
      target_labels: `[n]`, what they are to become.
      encoder_w: guidance weight of the encoders.
      weights: guidance weights of the decoders.

    Returns:
      `{(coder title, w): x [n, H, W, C] float32}`, and at (coder title, None) the round trip,
      decoded with the source label at `encoder_w`.
    """
    n = len(images)
    translated = {}
    for coder in coders:
        latents = coder.encode(to_float(images), source_labels, np.full(n, encoder_w))
        back = coder.decode(latents, source_labels, np.full(n, encoder_w))
        translated[coder.title, None] = back
        for w in weights:
            translated[coder.title, w] = coder.decode(latents, target_labels, np.full(n, w))
    return translated


def measure_translation(
    coders, images, source_labels, target_labels, *, encoder_w, weights, classifier
):
    """Translates pictures with each coder and measures what came of it.

    Args:
      coders, images, source_labels, target_labels, encoder_w, weights: see
        `translate_pictures`.
      classifier: `TrainedClassifier`, which judges the class.

    Returns:
      (rows, translated): a row per coder and weight, plain JSON; what `translate_pictures` gave.
    """
    x, n = to_float(images), len(images)
    translated = translate_pictures(
        coders, images, source_labels, target_labels, encoder_w=encoder_w, weights=weights
    )
    rows = []
    for coder in coders:
        for w in weights:
            decoded = translated[coder.title, w]
            fresh = coder.decode(None, target_labels, np.full(n, w))
            _, log_p = classifier.apply(to_uint8(decoded))
            rows.append(
                {
                    "system": coder.system,
                    "num_steps": coder.num_steps,
                    "network_calls": 2 * coder.calls,
                    "encoder_w": float(encoder_w),
                    "w": float(w),
                    "target_accuracy": float(np.mean(log_p.argmax(1) == target_labels)),
                    "rmse_to_source": rmse(decoded, x),
                    "rmse_of_fresh_to_source": rmse(fresh, x),
                    "round_trip_rmse": rmse(translated[coder.title, None], x),
                    "classifier": classifier.name,
                    "n": n,
                }
            )
    return rows, translated


def list_coders(stages, samplers, *, num_steps, seed):
    """The distilled coder of N steps, and guided DDIM with as many steps and with as many calls.

    Args:
      stages: `{name: StageFolder}`, which hold both students of N.
      samplers: `Samplers`.
      num_steps: N.
      seed: of the noise that `decode` draws without latents.
    """
    encoder, decoder, teacher = (
        stages[name]
        for name in (
            f"step_two/encoder/{num_steps:04d}",
            f"step_two/deterministic/{num_steps:04d}",
            "teacher",
        )
    )
    coders = [make_coder("distilled", encoder, decoder, samplers, num_steps=num_steps, seed=seed)]
    for steps in dict.fromkeys((num_steps, max(1, num_steps // 2))):
        coders.append(make_coder("ddim", teacher, teacher, samplers, num_steps=steps, seed=seed))
    return coders


def can_translate(stages, num_steps):
    """Whether there are a distilled encoder and decoder of N."""
    return all(
        f"step_two/{name}/{num_steps:04d}" in stages for name in ("encoder", "deterministic")
    )


def pictures_of_pairs(source, pairs):
    """All pictures of each pair's source label, to become the target label.

    Args:
      source: data source.
      pairs: (source label, target label) pairs.

    Returns:
      (images `[n, H, W, C]` uint8, source labels `[n]`, target labels `[n]`).
    """
    chosen = [(np.flatnonzero(source.labels == old), old, new) for old, new in pairs]
    indices = np.concatenate([rows for rows, _, _ in chosen])
    old_labels, new_labels = (
        np.concatenate([np.full(len(entry[0]), entry[k]) for entry in chosen]) for k in (1, 2)
    )
    images, _ = source.read(indices)
    return images, old_labels, new_labels


def translation_blocks(images, translated):
    """One block per coder for `save_strips`: sources, round trip, then one strip per w."""
    blocks = {}
    for (title, w), x in translated.items():
        block = blocks.setdefault(title, {"source": images[:SHOWN]})
        block["round trip" if w is None else f"w = {w:g}"] = to_uint8(x[:SHOWN])
    return blocks
