"""A network that is no denoiser, as a folder of data: a decoder, an encoder, features.

    function.json       what it takes and gives, and the digests of the rest
    graph.RESULT.json   named operations of each result (`models.graph.Graph`)
    params.safetensors  what all of them use, under PyTorch's names

Nothing in it is code, and PyTorch is not needed.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from guided_distill.errors import UserError
from guided_distill.models.graph import Graph
from guided_distill.models.nodes import Spec
from guided_distill.system.files import Damaged, file_sha256, local_path, read_json, write_json
from guided_distill.system.tensors import read_tensors, write_tensors
from guided_distill.system.workdir import PARAMS_FILE

FORMAT = 1  # of the folder
RECORD = "function.json"  # written last: it makes the folder whole


@dataclasses.dataclass(frozen=True)
class Function:
    """A pure function of arrays that knows what it takes.

        decoder = guided_distill.Function.load("teachers/mine/decoder")
        image = decoder(latent=z)["sample"]

    Attributes:
      name: of what it was, for people.
      graphs: `{result: Graph}`.
      params: `{name: array}` of all of them.
      sha256: digest of graphs and params.
    """

    name: str
    graphs: dict[str, Graph]
    params: dict[str, np.ndarray]
    sha256: str = ""

    @property
    def inputs(self) -> dict[str, Spec]:
        """What it takes, of one row of the batch."""
        return next(iter(self.graphs.values())).inputs

    def apply(
        self, params: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """`{result: array}` of `{input: [B, …]}`, in the module's layout; pure, to be jitted."""
        results = {}
        for result, graph in self.graphs.items():
            own = {name: params[name] for name in graph.params}
            results[result] = graph.run(own, inputs)
        return results

    def __call__(self, **inputs: jax.Array) -> dict[str, jax.Array]:
        """`apply` with its own parameters, compiled once for each shape."""
        return self._compiled(self.params, inputs)

    @functools.cached_property
    def _compiled(self):
        return jax.jit(self.apply)

    def output_shape(self, result: str) -> tuple[int, ...]:
        """Of one row of a result."""
        graph = self.graphs[result]
        return graph.output_shape({name: self.params[name] for name in graph.params}, 1)[1:]

    def write(self, folder: str | pathlib.Path):
        """Writes the folder, which has nothing of the kind yet."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for result, graph in self.graphs.items():
            graph.write(folder / _graph_file(result))
        digests = {result: file_sha256(folder / _graph_file(result)) for result in self.graphs}
        record = {"format": FORMAT, "name": self.name, "graphs": digests}
        params_sha256 = write_tensors(folder / PARAMS_FILE, self.params)
        write_json(folder / RECORD, record | {"params_sha256": params_sha256})

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Function":
        """The function of a folder.

        Raises:
          UserError: where the folder holds none, is of a newer format, or is damaged.
        """
        folder = local_path(folder, "`folder`")
        record = read_json(folder / RECORD)
        if record is None:
            raise UserError(f"{folder} holds no imported function: it has no {RECORD}")
        if record["format"] > FORMAT:
            found = record["format"]
            raise UserError(
                f"{folder} has format {found}, newer than {FORMAT}: update this package"
            )
        graphs = {}
        for result, digest in record["graphs"].items():
            path = folder / _graph_file(result)
            graphs[result] = Graph.read(path)
            if file_sha256(path) != digest:
                raise Damaged(f"{path} is not that of {RECORD}: import it again")
        params = read_tensors(folder / PARAMS_FILE, record["params_sha256"])
        for graph in graphs.values():
            graph.check_params({n: params[n] for n in graph.params if n in params})
        return cls(record["name"], graphs, params, file_sha256(folder / RECORD))


def _graph_file(result):
    return f"graph.{result}.json"
