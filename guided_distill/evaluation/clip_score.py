"""How well pictures show their captions, as a CLIP model sees it: 100 · max(cos, 0)."""

import functools

import jax
import numpy as np

from guided_distill.data.pixels import as_learnt, to_float
from guided_distill.errors import UserError
from guided_distill.models.clip import IMAGE_INPUT, Clip
from guided_distill.models.imported import from_channels_last
from guided_distill.system.sharding import apply_over, place

PER_DEVICE = 32  # pictures or captions per call
READ = 256  # real pictures at a time


class ClipScorer:
    """Scores of pictures with captions, over all devices of a mesh.

    Args:
      path: folder of a `Clip`.
      image_shape: (H, W, C) of the pictures.
      mesh: device mesh.
      key: what names the folder, for errors.

    Attributes:
      name: with the start of its digest.
      resize: what is done to pictures of another size, in words.

    Raises:
      UserError: where the folder holds no CLIP model, or does not take such pictures.
    """

    def __init__(self, path, image_shape, mesh, key="evaluation.clip"):
        self._clip, self._mesh, self._known = Clip.load(path, key), mesh, {}
        self.name, self.resize = self._clip.name, self._clip.resize
        one = jax.ShapeDtypeStruct((1, 3, *image_shape[:2]), np.float32)
        gives = jax.eval_shape(self._clip.prepare, one).shape[1:]
        takes = self._clip.image.inputs[IMAGE_INPUT].shape
        if gives != takes:
            raise UserError(
                f"{key} {path} makes {list(gives)} of pictures of {list(image_shape)}, and its "
                f"network takes {list(takes)}: they must be square, for it does not crop"
            )
        self._embed_images = jax.jit(self._clip.embed_images)
        self._embed_tokens = jax.jit(self._clip.embed_tokens)

    def __call__(self, images, captions):
        """100 · max(cos, 0) of uint8 pictures `[n, H, W, C]` with n captions, float64 `[n]`."""

        def embed(batch):
            x = from_channels_last(to_float(batch), "NCHW")
            return (self._embed_images(self._image_params, x),)

        images = np.broadcast_to(images, (*images.shape[:3], 3))  # Grey is of three alike.
        (seen,) = apply_over(self._mesh, embed, images, per_device=PER_DEVICE)
        cosines = np.sum(np.asarray(seen, np.float64) * self.embed_captions(captions), axis=-1)
        return 100.0 * np.maximum(cosines, 0.0)

    @functools.cached_property
    def _image_params(self):
        return place(self._clip.image.params, self._mesh)

    def num_cut(self, captions):
        """How many captions are longer than the network reads."""
        return self._clip.num_cut(captions)

    def embed_captions(self, captions):
        """Unit embeddings `[n, D]` of captions, each of which is embedded once."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            params = place(self._clip.text.params, self._mesh)
            tokens = self._clip.tokens(new)
            (found,) = apply_over(
                self._mesh, lambda ids: (self._embed_tokens(params, ids),), tokens,
                per_device=PER_DEVICE,
            )  # fmt: skip
            self._known |= dict(zip(new, found, strict=True))
        return np.stack([self._known[caption] for caption in captions])


def asked_captions(source, num, what="evaluation.clip"):
    """The captions of the first `num` examples of a source, or of all where it has fewer.

    Raises:
      UserError: where one of them is not known.
    """
    captions = None
    if source.num_classes is None:
        captions = source.captions(np.arange(min(num, len(source))))
    if captions is None or None in captions:
        of_which = f"{captions.count(None)} of {len(captions)}" if captions else "its"
        raise UserError(
            f"{what} compares pictures with their captions, and {of_which} held-out examples of "
            f"{source.name} have none that is known: make the data with --mode=encode_data, or "
            f"leave {what} ''"
        )
    return captions


def score_real(scorer, source, see, num):
    """Mean score of the real pictures that `num` samples of `AskedExamples` are asked for by.

    Args:
      scorer: `ClipScorer`.
      source: of the held-out examples, as models learn them.
      see: x `[n, …]` as models have it -> pictures uint8.
      num: samples; sample i is of example i mod n.
    """
    rows, scores = np.arange(min(num, len(source))), []
    for start in range(0, len(rows), READ):
        here = rows[start : start + READ]
        x, _ = source.read(here)
        scores.append(scorer(see(as_learnt(x)), source.captions(here)))
    return float(np.concatenate(scores)[np.arange(num) % len(source)].mean())
