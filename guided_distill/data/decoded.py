"""Latents as pictures: a decoder, and a data set that is seen through one."""

import dataclasses
import functools

import jax
import numpy as np

from guided_distill.data.dataset import Dataset
from guided_distill.data.pixels import as_learnt, to_uint8
from guided_distill.errors import UserError
from guided_distill.models.function import load_unary, named_with_digest
from guided_distill.models.imported import from_channels_last, to_channels_last
from guided_distill.system.files import json_sha256
from guided_distill.system.sharding import apply_over, place, to_host

PER_DEVICE = 8  # latents per call: their pictures are large
MOST_DECODED = 50_000  # of a split, as many as references of the field have; else an even share
LAYOUT = "NCHW"  # of the network


class Decoder:
    """A network that makes pictures of latents, over all devices of a mesh.

    Its parameters lie on the devices while it runs, and no longer.

    Args:
      path: folder of a `Function` of latents `[B, C, h, w]` to pictures `[B, c, H, W]` in [-1, 1];
        its one result, or its result `image`.
      latent_shape: of one latent as models have it, (h, w, C).
      mesh: device mesh.
      key: what names the folder, for errors.

    Attributes:
      name: with the start of its digest.
      sha256: digest of graph and weights.
      image_shape: (H, W, c) of the pictures.

    Raises:
      UserError: where the network takes or gives something else.
    """

    def __init__(self, path, latent_shape, mesh, key="evaluation.decoder"):
        function, name, result = load_unary(path, key, "image")
        takes, gives = function.inputs[name].shape, function.output_shape(result)
        has = (latent_shape[-1], *latent_shape[:-1])
        if takes != has:
            raise UserError(f"{key} {path} takes {list(takes)}, but the latents are {list(has)}")
        if len(gives) != 3 or gives[0] not in (1, 3):
            raise UserError(f"{key} {path} gives {list(gives)}: a picture is [1 or 3, H, W]")
        self.name, self.sha256 = named_with_digest(function), function.sha256
        self.image_shape = (*gives[1:], gives[0])
        self._params, self._mesh = function.params, mesh

        def decode(params, latents):
            latents = from_channels_last(latents, LAYOUT)
            return to_channels_last(function.apply(params, {name: latents})[result], LAYOUT)

        self._decode = jax.jit(decode)

    def __call__(self, x):
        """Latents `[n, h, w, C]` -> pictures `[n, H, W, c]` uint8."""
        return self._in_batches(x, to_uint8)

    def decode(self, x):
        """As a call, but float32 and not cut to [-1, 1] yet.

        Raises:
          UserError: where a picture is not finite.
        """
        return self._in_batches(x, lambda image: image)

    def _in_batches(self, x, finish):
        params = place(self._params, self._mesh)

        def run(latents):
            image = to_host(self._decode(params, latents))
            if not np.isfinite(image).all():
                raise UserError(f"{self.name} makes pictures of latents that are not finite")
            return (finish(np.asarray(image, np.float32)),)

        x = np.asarray(x, np.float32)
        return apply_over(self._mesh, run, x, per_device=PER_DEVICE)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedSource:
    """Pictures of a source's latents, decoded when they are read.

    Attributes:
      source: of latents.
      decoder: `Decoder`.
    """

    source: object
    decoder: Decoder

    def __len__(self):
        return len(self.rows)

    @functools.cached_property
    def rows(self):
        """Those of the source's examples that are decoded: all, or `MOST_DECODED` evenly spread."""
        n = len(self.source)
        return np.arange(min(n, MOST_DECODED)) * n // min(n, MOST_DECODED)

    @property
    def name(self):
        """Of the data set."""
        return self.source.name

    @property
    def num_classes(self):
        """Number of classes; None where it is conditioned on something else."""
        return self.source.num_classes

    def read(self, indices):
        """(images `[B, H, W, C]` uint8, conditioning) at `indices` `[B]`."""
        x, cond = self.source.read(self.rows[indices])
        return self.decoder(as_learnt(x)), cond

    def read_cond(self, indices):
        """The conditioning alone: nothing is decoded."""
        return self.source.read_cond(self.rows[indices])

    def captions(self, indices):
        """The captions of latents, as of `ShardSource`."""
        return self.source.captions(self.rows[indices])

    @functools.cached_property
    def sha256(self):
        """Hash of the latents, of which are decoded, and of what decodes them."""
        return json_sha256([self.source.sha256, len(self), self.decoder.sha256])


class DecodedDataset(Dataset):
    """A data set of latents, seen as the pictures that a decoder makes of them."""

    def __init__(self, dataset, decoder):
        def load(split):
            return DecodedSource(getattr(dataset, split), decoder)

        self.decoder = decoder
        picture = jax.ShapeDtypeStruct(decoder.image_shape, np.uint8)
        super().__init__(
            dataset.name,
            decoder.image_shape,
            dataset.num_classes,
            load,
            dataset.class_names,
            example=(picture, dataset.example[1]),
            null=dataset.null,
        )

    def see(self, x):
        """Latents `[n, h, w, C]` as pictures, `[n, H, W, c]` uint8."""
        return self.decoder(x)
