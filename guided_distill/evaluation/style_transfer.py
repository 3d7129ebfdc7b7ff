"""Style transfer (section 4, C.7): encode as the source, decode as the target: labels or texts."""

import dataclasses

import numpy as np

from guided_distill.data.pixels import as_learnt
from guided_distill.distill.distillations import (
    DETERMINISTIC,
    ENCODE,
    ENCODER,
    calls_per_step,
    students_of,
)
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
      encode: `(x, cond, w) -> noise`, arrays `[n, …]`; cond: labels `[n]` int32, or arrays by name.
      decode: `(noise or None for drawn one, cond, w) -> x`, arrays `[n, …]`.
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


def make_coder(system, encoder, decoder, generators, *, num_steps, seed):
    """A `Coder` from two finished stages.

    Args:
      system: "distilled" or "ddim".
      encoder: `FinishedStage`; for "ddim" the teacher.
      decoder: `FinishedStage`; for "ddim" the teacher.
      generators: `Generators`.
      num_steps: N of each.
      seed: of the noise that `decode` draws.
    """

    def make_run(stage, sampler):
        generator = generators.of(stage, sampler)

        def run(start, cond, w):
            return generator(
                stage.params,
                cond=cond,
                w=w,
                indices=np.arange(len(w)),
                num_steps=num_steps,
                seed=seed,
                start=start,
            )

        return run

    calls = num_steps * calls_per_step(encoder.record)
    return Coder(system, num_steps, calls, make_run(encoder, ENCODE), make_run(decoder, "ddim"))


def translate_images(coders, x, source, target, *, encoder_w, weights):
    """Encodes as the source, decodes as the target.

    Args:
      coders: `Coder`s.
      x: what is translated, as models learn it, `[n, …]` float32: pictures or their latents.
      source: what the pictures show, labels `[n]` int32 or arrays by name `{name: [n, …]}`.
      target: what they are to become, as `source`.
      encoder_w: guidance weight of the encoders.
      weights: guidance weights of the decoders.

    Returns:
      `{(coder title, w): x [n, …] float32}`, and at (coder title, None) the round trip,
      decoded as the source at `encoder_w`.
    """
    n = len(x)
    translated = {}
    for coder in coders:
        noise = coder.encode(x, source, np.full(n, encoder_w))
        translated[coder.title, None] = coder.decode(noise, source, np.full(n, encoder_w))
        for w in weights:
            translated[coder.title, w] = coder.decode(noise, target, np.full(n, w))
    return translated


def measure_translation(coders, x, source, target, *, encoder_w, weights, classifier):
    """Translates pictures with each coder and measures what came of it.

    Args:
      coders, x, source, target, encoder_w, weights: see `translate_images`.
      classifier: `TrainedClassifier`, which judges the class; None where there are none.

    Returns:
      (rows, translated): a row per coder and weight, plain JSON; what `translate_images` gave.
    """
    n = len(x)
    translated = translate_images(coders, x, source, target, encoder_w=encoder_w, weights=weights)
    rows = []
    for coder in coders:
        for w in weights:
            decoded = translated[coder.title, w]
            fresh = coder.decode(None, target, np.full(n, w))
            rows.append(
                _judged(classifier, decoded, target)
                | {
                    "system": coder.system,
                    "num_steps": coder.num_steps,
                    "network_calls": 2 * coder.calls,
                    "encoder_w": float(encoder_w),
                    "w": float(w),
                    "rmse_to_source": rmse(decoded, x),
                    "rmse_of_fresh_to_source": rmse(fresh, x),
                    "round_trip_rmse": rmse(translated[coder.title, None], x),
                    "n": n,
                }
            )
    return rows, translated


def _judged(classifier, x, labels):
    """What a classifier says of the share of x that have their labels; nothing without one."""
    if classifier is None:
        return {"target_accuracy": None, "classifier": None}
    _, log_p = classifier.apply(classifier.see(x))
    accuracy = float(np.mean(log_p.argmax(1) == labels))
    return {"target_accuracy": accuracy, "classifier": classifier.name}


def list_coders(stages, generators, *, num_steps, seed):
    """The distilled coder of N steps, and guided DDIM with as many steps and with as many calls.

    Args:
      stages: `{name: FinishedStage}`, which hold both students of N.
      generators: `Generators`.
      num_steps: N.
      seed: of the noise that `decode` draws.
    """
    encoder, decoder, teacher = (
        students_of(stages, ENCODER)[num_steps],
        students_of(stages, DETERMINISTIC)[num_steps],
        stages["teacher"],
    )
    coders = [make_coder("distilled", encoder, decoder, generators, num_steps=num_steps, seed=seed)]
    for steps in dict.fromkeys((num_steps, max(1, num_steps // 2))):
        coders.append(make_coder("ddim", teacher, teacher, generators, num_steps=steps, seed=seed))
    return coders


def coder_steps(stages):
    """(every N of a distilled encoder, those of which there is a decoder too), two sets."""
    encoders = set(students_of(stages, ENCODER))
    return encoders, encoders & set(students_of(stages, DETERMINISTIC))


def images_of_pairs(source, pairs):
    """All x of each pair's source label, to become the target label.

    Args:
      source: data source.
      pairs: (source label, target label) pairs.

    Returns:
      (x `[n, …]` float32 as models learn it, source labels and target labels `[n]` int32).
    """
    chosen = [(np.flatnonzero(source.labels == old), old, new) for old, new in pairs]
    indices = np.concatenate([rows for rows, _, _ in chosen])
    old_labels, new_labels = (
        np.concatenate([np.full(len(entry[0]), entry[k], np.int32) for entry in chosen])
        for k in (1, 2)
    )
    x, _ = source.read(indices)
    return as_learnt(x), old_labels, new_labels


def translation_blocks(x, translated, see):
    """One block per coder for `save_strips`: sources, round trip, then one strip per w.

    Args:
      x: what was translated.
      translated: of `translate_images`.
      see: x -> pictures, uint8.
    """
    blocks = {}
    for (title, w), became in translated.items():
        block = blocks.setdefault(title, {"source": see(x[:SHOWN])})
        block["round trip" if w is None else f"w = {w:g}"] = see(became[:SHOWN])
    return blocks
