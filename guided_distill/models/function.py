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
from guided_distill.system.files import (
    Damaged,
    check_format,
    file_sha256,
    local_path,
    read_json,
    write_json,
)
from guided_distill.system.tensors import read_tensors, write_tensors
from guided_distill.system.workdir import IMPORTED_FILE, PARAMS_FILE, RECORD_FILE

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
        """`apply` with its own parameters, on the device from now on; compiled once a shape."""
        return self._compiled(inputs)

    @functools.cached_property
    def _compiled(self):
        return functools.partial(jax.jit(self.apply), jax.device_put(self.params))

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
        check_format(folder, record["format"], FORMAT)
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


def load_unary(folder, key, result):
    """A function of one input, the name of that input, and the name of what is taken of it.

    Args:
      folder: that a person named, or that lies beside a teacher.
      key: what named it, for errors.
      result: taken where there are several results; one alone may have any name.

    Raises:
      UserError: where the folder is missing, holds something else, or its function takes or gives
        something else.
    """
    folder = local_path(folder, key)
    if not folder.is_dir():
        raise UserError(f"{key} {folder} is no folder: name one that --mode=import wrote")
    if any((folder / record).is_file() for record in (IMPORTED_FILE, RECORD_FILE)):
        raise UserError(
            f"{key} {folder} holds a model: name a folder with a {RECORD}, which --mode=import "
            "writes of a file with get_function()"
        )
    function = Function.load(folder)
    if len(function.inputs) != 1:
        raise UserError(
            f"{key} {folder} takes {', '.join(function.inputs)}: it must take one input"
        )
    results = list(function.graphs)
    if len(results) > 1 and result not in results:
        raise UserError(
            f"{key} {folder} gives {', '.join(results)}: it must give one result, or '{result}'"
        )
    return function, next(iter(function.inputs)), result if result in results else results[0]


def named_with_digest(function):
    """A function's name with the start of its digest, fit for the name of a file."""
    name = "".join(c if c.isalnum() else "-" for c in function.name)
    return f"{name}-{function.sha256[:12]}"


def _graph_file(result):
    return f"graph.{result}.json"
