"""An imported teacher with the networks beside it: pictures and captions become what it learns."""

import functools

import numpy as np

from guided_distill.data.array_folder import LABELS
from guided_distill.data.captions import CAPTIONS, CLASSES, NOTHING
from guided_distill.data.pixels import to_uint8
from guided_distill.errors import UserError
from guided_distill.models.build import model_of
from guided_distill.models.pipeline import Pipeline
from guided_distill.sampling.generator import Generators
from guided_distill.sampling.sampler import is_number
from guided_distill.system import sharding
from guided_distill.system.files import local_path
from guided_distill.system.workdir import StageFolder


class Teacher:
    """An imported teacher with its pipeline, asked for a batch of one size at a time.

    Attributes:
      folder: that was named.
      stage: `FinishedStage` of the denoiser.
      pipeline: `Pipeline`.
      names: of its conditioning.
      wants: what it is told of a picture.
    """

    def __init__(self, folder, batch_size):
        self.folder, self.batch_size = local_path(folder, "`teacher`"), batch_size
        self.stage = StageFolder(self.folder).finished()
        self.pipeline = Pipeline.load(self.folder)
        self.names = self.stage.record["model"]["conditioning"]
        is_class = len(self.names) == 1 and self.names[0] in LABELS
        self.wants = CLASSES if is_class else CAPTIONS if self.names else NOTHING
        height, width, channels = self.pipeline.image_shape
        if height != width or channels not in (1, 3):
            raise UserError(
                f"{self.folder} takes pictures of {[height, width, channels]}: only squares in "
                "grey or colours are cropped and resized to"
            )

    @functools.cached_property
    def schedule(self):
        """`Schedule` of the denoiser."""
        return model_of(self.stage).schedule

    @property
    def keeps_pictures(self):
        """Whether it works on pixels: then x are the pictures themselves."""
        return self.pipeline.latent_shape == self.pipeline.image_shape

    def check_classes(self, names):
        """Refuses classes that are more than the teacher's, or cannot be matched with them."""
        null = self.pipeline.null.get(self.names[0])
        are_numbers = all(map(is_number, names))
        if null is None or len(names) == int(null) or (are_numbers and len(names) < int(null)):
            return
        raise UserError(
            f"the pictures have {len(names)} classes, but {self.folder} knows {int(null)}: name "
            f"class folders by its numbers, 0 to {int(null) - 1}"
        )

    def encode(self, images):
        """x of `[n, H, W, C]` uint8, n at most the batch size."""
        if self.keeps_pictures:
            return images
        rows = np.minimum(np.arange(self.batch_size), len(images) - 1)  # One size is compiled.
        return self.pipeline.encode(images[rows])[: len(images)]

    def embed(self, told):
        """(`{name: [n, …]}` of captions or labels, how many captions are cut)."""
        if self.wants == NOTHING:
            return {}, 0
        if self.wants == CLASSES:
            return {self.names[0]: np.asarray(told, np.int32)}, 0
        before, filled = self.pipeline.num_cut, told + [""] * (self.batch_size - len(told))
        cond = self.pipeline.embed(filled)
        return {name: a[: len(told)] for name, a in cond.items()}, self.pipeline.num_cut - before

    def draw(self, cond, indices, drawing):
        """x that the teacher draws itself, `[n, …]`, noise by index."""
        generator, params = self._drawing
        x = generator(
            params, cond=cond, w=np.full(len(indices), drawing["w"]), indices=indices,
            num_steps=drawing["num_steps"], seed=drawing["seed"],
        )  # fmt: skip
        return to_uint8(x) if self.keeps_pictures else x

    @functools.cached_property
    def _drawing(self):
        """(generator, parameters on the devices)."""
        generator = Generators(sharding.make_mesh(), self.batch_size).of(self.stage)
        return generator, generator.place(self.stage.params)
