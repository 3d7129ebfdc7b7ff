"""PyTorch modules as graphs: the same numbers and gradients in JAX, and mistakes in one line."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.errors import UserError
from guided_distill.models.graph import FORMAT, Graph
from guided_distill.models.sites import layer_of
from guided_distill.system.tensors import read_tensors, write_tensors

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402
from torch_networks import network  # noqa: E402

from guided_distill.models.from_torch import export_graph, measure_parity, paths_of  # noqa: E402

FAST = ["film_net", "token_net"]
SLOW = [
    "unet2d", "unet2d_fourier", "unet_text", "unet_text_w", "unet_sdxl", "dit", "sd3", "flux", "pixart",
    "vae_encode", "vae_decode", "clip_text", "t5_encoder",
]  # fmt: skip
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
TOLERANCE = 1e-5  # of the largest value


@pytest.fixture(scope="module")
def exported():
    """`name -> (module, example, graph, params)`, each exported once."""
    known = {}

    def export(name):
        if name not in known:
            module, example = network(name)
            known[name] = (module, example, *export_graph(module, example))
        return known[name]

    return export


def is_batch(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (2,)


def of_size(example, size):
    """The example with a batch of another size: its rows, the floats of each moved a little."""

    def resize(leaf):
        if not is_batch(leaf):
            return leaf
        rows = leaf[torch.arange(size) % 2]
        shift = torch.arange(size).reshape(-1, *[1] * (leaf.ndim - 1)) // 2
        return rows + 0.1 * shift if leaf.is_floating_point() else rows

    return pytree.tree_map(resize, example)


def inputs_of(graph, example):
    return {name: jnp.asarray(paths_of(example)[name].numpy()) for name in graph.inputs}


def first_tensor(result):
    return next(v for v in paths_of(result).values() if isinstance(v, torch.Tensor))


def error_of(ours, theirs, largest=None):
    theirs = theirs.detach().numpy()
    return np.abs(ours - theirs).max() / (np.abs(theirs).max() if largest is None else largest)


@pytest.mark.parametrize("name", ALL)
def test_output_and_gradients_equal_pytorchs_at_another_batch_size(name, exported):
    module, example, graph, params = exported(name)
    other = of_size(example, 3)
    theirs = first_tensor(module(**other))
    towards = np.cos(np.arange(theirs.numel(), dtype=np.float32)).reshape(theirs.shape)
    inputs = inputs_of(graph, other)

    def loss(trained):
        ours = graph.run(params | trained, inputs)
        return jnp.sum(ours * towards), ours

    trained = {name: params[name] for name in graph.trainable}
    ours, gradients = jax.jit(lambda t: (loss(t)[1], jax.grad(loss, has_aux=True)(t)[0]))(trained)
    assert error_of(ours, theirs) < TOLERANCE

    module.zero_grad()
    (theirs * torch.from_numpy(towards)).sum().backward()
    expected = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert {n for n, g in gradients.items() if np.any(g)} <= set(expected) <= set(gradients)
    largest = max(float(g.abs().max()) for g in expected.values())
    worst = {n: error_of(gradients[n], g, largest) for n, g in expected.items()}
    assert max(worst.values()) < TOLERANCE, max(worst, key=worst.get)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", ALL)
def test_one_graph_serves_every_batch_size(name, batch, exported):
    module, example, graph, params = exported(name)
    assert measure_parity(module, example, graph, params, batch=batch) < TOLERANCE


def test_what_a_graph_holds(exported):
    module, example, graph, params = exported("token_net")
    assert list(graph.inputs) == ["tokens", "told.time", "told.extra.0", "told.mask"]
    assert graph.inputs["tokens"].dtype == "int32" and graph.inputs["told.extra.0"].shape == (8,)
    assert "unused" not in params and params["turns"].dtype == np.complex64
    # One tensor under two names is one parameter, under the first.
    assert "table.weight" in graph.trainable and "head.weight" not in params
    assert "turns" not in graph.trainable


def test_a_module_that_fixes_its_batch_is_mapped_over_rows():
    def forward(self, x):
        return self.linear(x) + torch.tensor([0.5] * len(x))[:, None] * len(x[0].tolist())

    module = Plain(forward, linear=nn.Linear(3, 3)).eval()
    example = dict(x=torch.rand(2, 3))
    graph, params = export_graph(module, example)
    assert graph.row_by_row
    assert measure_parity(module, example, graph, params, batch=5) < TOLERANCE
    (site,) = graph.find_sites("x")  # A module that is told the time alone.
    x, w = np.ones((5, 3), np.float32), np.arange(15, dtype=np.float32).reshape(5, 3)
    assert_allclose(
        graph.run(params, {"x": x}, add_to_input={site: w}),
        graph.run(params, {"x": x + w}),
        atol=1e-5,
    )


def test_arguments_by_other_names():
    class Open(nn.Module):
        def forward(self, x, **rest):
            return x * rest["scale"] + rest["more"]["shift"]

    example = dict(x=torch.rand(2, 3), scale=2.0, more=dict(shift=torch.rand(2, 1)))
    graph, params = export_graph(Open().eval(), example)
    assert list(graph.inputs) == ["x", "more.shift"]
    assert measure_parity(Open().eval(), example, graph, params) < TOLERANCE


def test_what_training_moves():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    module[0].weight.requires_grad_(False)
    example = {"input": torch.rand(2, 3)}
    assert export_graph(module, example)[0].trainable == ("0.bias", "1.weight", "1.bias")
    module.requires_grad_(False)  # As whoever distils it may have frozen it.
    assert len(export_graph(module, example)[0].trainable) == 4


def test_tensors_of_an_example_that_are_no_batches_are_constants():
    class Table(nn.Module):
        def forward(self, x, table, power):
            return {"more": [x * table**power], "least": x - table}

    module = Table().eval()
    example = dict(x=torch.ones(2, 3), table=torch.tensor([1.0, 2.0, 3.0]), power=2)
    graph, params = export_graph(module, example)
    assert list(graph.inputs) == ["x"] and list(params) == ["example.table"]
    assert graph.trainable == ()
    assert_array_equal(graph.run(params, {"x": np.ones((1, 3))}), [[1, 4, 9]])
    graph, params = export_graph(module, example, output="least")
    assert_array_equal(graph.run(params, {"x": np.ones((1, 3))}), [[0, -1, -2]])
    with pytest.raises(UserError, match=r"no tensor 'most': it returns \['more.0', 'least'\]"):
        export_graph(module, example, output="most")


@pytest.mark.parametrize("name", ALL)
def test_a_written_graph_is_the_graph(name, exported, tmp_path):
    *_, graph, params = exported(name)
    graph.write(tmp_path / "graph.json")
    write_tensors(tmp_path / "params.safetensors", params)
    assert Graph.read(tmp_path / "graph.json") == graph
    again = read_tensors(tmp_path / "params.safetensors")
    graph.check_params(again)
    for key, value in params.items():
        assert_array_equal(again[key], value)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from guided_distill.models.graph import Graph
from guided_distill.models.sites import layer_of
from guided_distill.system.tensors import read_tensors, write_tensors
folder = sys.argv[1]
graph, params = Graph.read(folder + "/graph.json"), read_tensors(folder + "/params.safetensors")
output = graph.run(params, read_tensors(folder + "/inputs.safetensors"))
write_tensors(folder + "/output.safetensors", {"output": np.asarray(output)})
"""


def test_a_graph_runs_where_pytorch_is_not(exported, tmp_path):
    module, example, graph, params = exported("film_net")
    other = of_size(example, 3)
    inputs = inputs_of(graph, other)
    graph.write(tmp_path / "graph.json")
    write_tensors(tmp_path / "params.safetensors", params)
    write_tensors(tmp_path / "inputs.safetensors", {k: np.asarray(v) for k, v in inputs.items()})
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    subprocess.run(command, env=environment(), check=True)
    theirs = module(**other)
    assert error_of(read_tensors(tmp_path / "output.safetensors")["output"], theirs) < TOLERANCE


def test_tensors_are_readable_as_any_file_is(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones(3)})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_half_precision_becomes_float32():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x).to(torch.bfloat16).softmax(-1)

    module = Half().to(torch.bfloat16).eval()
    example = dict(x=torch.randn(2, 4).bfloat16())
    graph, params = export_graph(module, example)
    assert all(value.dtype == np.float32 for value in params.values())
    x = example["x"].float()
    ours = graph.run(params, {"x": x.numpy()})
    assert ours.dtype == jnp.float32
    assert_allclose(ours, module.float().linear(x).softmax(-1).detach(), atol=1e-6)


# Where the time enters.


def sites_of(module, example, time="time"):
    graph, _ = export_graph(module.eval(), example)
    sites = graph.find_sites(time)
    nodes = {node.name: node for node in graph.nodes}
    return [(nodes[site].args[1].name, graph.input_width(site)) for site in sites]


@pytest.mark.parametrize(
    "name, layers",
    [
        pytest.param(name, layers, marks=pytest.mark.slow)
        for name, layers in {
            "unet2d": [("time_embedding.linear_1.weight", 8)],
            "unet2d_fourier": [("time_embedding.linear_1.weight", 16)],
            "unet_text": [("time_embedding.linear_1.weight", 8)],
            "unet_text_w": [("time_embedding.linear_1.weight", 8)],
            "unet_sdxl": [("time_embedding.linear_1.weight", 8)],
            "sd3": [("time_text_embed.timestep_embedder.linear_1.weight", 256)],
            "flux": [("time_text_embed.timestep_embedder.linear_1.weight", 256)],
            "pixart": [("adaln_single.emb.timestep_embedder.linear_1.weight", 256)],
            "dit": [
                (f"transformer_blocks.{block}.norm1.emb.timestep_embedder.linear_1.weight", 256)
                for block in (0, 1, 0)  # The first block's embedder drives the output too.
            ],
        }.items()
    ],
)
def test_the_time_of_known_networks(name, layers, exported):
    *_, graph, params = exported(name)
    nodes = {node.name: node for node in graph.nodes}
    sites = graph.find_sites("timestep")
    assert [(nodes[s].args[1].name, graph.input_width(s)) for s in sites] == layers


class Embedded(nn.Module):
    """x shifted by a layer of an embedding of the time."""

    def __init__(self, embed, width):
        super().__init__()
        self.embed, self.first, self.second = embed, nn.Linear(width, 4), nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(10, width))

    def forward(self, x, time):
        told = self.first(self.embed(self, x, time))
        return x + self.second(nn.functional.silu(told))


def waves(self, x, time):
    angles = torch.log(time)[:, None] / 4 @ self.table[:1, :3]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1) * 1.4


@pytest.mark.parametrize(
    "embed, width, found",
    [
        (waves, 6, True),
        (lambda self, x, time: self.table[time.long()], 4, True),
        (lambda self, x, time: torch.cat([x, torch.sin(time)[:, None]], 1), 4, True),
        (lambda self, x, time: time.float()[:, None] / 1000, 1, True),
        (lambda self, x, time: torch.sin(x) * torch.sigmoid(time)[:, None], 3, False),
    ],
)
def test_the_layer_that_the_time_feeds_is_found(embed, width, found):
    example = dict(x=torch.randn(2, 3), time=torch.tensor([1.0, 9.0]))
    expected = [("first.weight", width)] if found else []
    assert sites_of(Embedded(embed, width), example) == expected


def test_what_is_added_at_a_site_acts_as_a_bias(exported):
    module, example, graph, params = exported("film_net")
    (site,) = graph.find_sites("time")
    assert graph.input_width(site) == 12
    inputs = inputs_of(graph, example)
    extra = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    added = graph.run(params, inputs, add_to_input={site: np.stack([extra, extra])})
    shift = params["film.0.weight"] @ extra
    biased = params | {"film.0.bias": params["film.0.bias"] + shift}
    assert_allclose(added, graph.run(biased, inputs), atol=1e-5)
    nothing = graph.run(params, inputs, add_to_input={site: np.zeros((2, 12), np.float32)})
    assert_array_equal(nothing, graph.run(params, inputs))
    with pytest.raises(UserError, match="is not in the graph"):
        graph.run(params, inputs, add_to_input={"nowhere": extra})
    with pytest.raises(UserError, match=r"did you mean time\?"):
        graph.find_sites("tine")


class Table(nn.Module):
    """A row of a table of times added to the channels of a picture, by one of four ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.table = way, nn.Embedding(10, 6)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.project, self.weight = nn.Conv2d(6, 6, 1), nn.Parameter(torch.randn(6, 6))

    def forward(self, x, time):
        h, told = self.first(x), self.table(time)
        if self.way == "convolution":
            told = self.project(told[:, :, None, None])[:, :, 0, 0]
        elif self.way == "product":
            told = nn.functional.silu(told) @ self.weight
        elif self.way == "einsum":
            told = torch.einsum("bi,io->bo", told, self.weight)
        return self.last(nn.functional.silu(h + told[..., None, None]))


class Channel(nn.Module):
    """The time as one more channel of the picture, or of a point of the plane."""

    def __init__(self, first):
        super().__init__()
        self.first, self.rest = first, nn.Sequential(nn.SiLU(), nn.Linear(5, 5))

    def forward(self, x, time):
        channel = time.reshape(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
        h = self.first(torch.cat([x, channel / 10.0], 1))
        return self.rest(h.transpose(1, -1)).transpose(1, -1)[:, : x.shape[1]]


@pytest.mark.parametrize(
    "module, shape, layer, width",
    [
        (Table("itself"), (3, 4, 4), None, 6),
        (Table("convolution"), (3, 4, 4), None, 6),
        (Table("product"), (3, 4, 4), None, 6),
        (Table("einsum"), (3, 4, 4), None, 6),
        (Channel(nn.Conv2d(4, 5, 3, padding=1)), (3, 5, 5), "first", 5),
        (Channel(nn.Linear(3, 5)), (2,), "first", 5),
    ],
)
def test_where_the_time_feeds_no_linear_layer_w_is_added_to_what_it_is(module, shape, layer, width):
    """Each way takes all w that it is given, at once and at any batch size."""
    times = torch.tensor([1, 7]) if isinstance(module, Table) else torch.tensor([1.0, 7.0])
    graph, params = export_graph(module.eval(), dict(x=torch.randn(2, *shape), time=times))
    assert not graph.find_sites("time")
    (site,) = graph.find_outputs("time")
    (node,) = (node for node in graph.nodes if node.name == site)
    assert layer_of(graph, node) == (layer or site)
    assert graph.output_width(site) == width
    inputs = {"x": np.ones((3, *shape), np.float32), "time": np.asarray([1, 2, 3])}
    inputs["time"] = inputs["time"].astype(graph.inputs["time"].dtype)
    says = graph.run(params, inputs)
    nothing = np.zeros((3, width), np.float32)
    assert_array_equal(graph.run(params, inputs, add_to_output={site: nothing}), says)
    added = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)
    added[0] = 0.0
    moved = np.abs(graph.run(params, inputs, add_to_output={site: added}) - says)
    assert moved[0].max() == 0.0 and min(row.max() for row in moved[1:]) > 1e-3


# Mistakes.


class Plain(nn.Module):
    """A module of one function."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def count(self, x):
    self.seen.add_(1)
    return x * self.seen


def counter():
    module = Plain(count)
    module.register_buffer("seen", torch.zeros(()))
    return module


def broken():
    linear = nn.Linear(3, 3)
    nn.init.constant_(linear.weight, float("nan"))
    return Plain(lambda self, x: self.linear(x), linear=linear)


@pytest.mark.parametrize(
    "module, message",
    [
        (Plain(lambda self, x: x if x.sum() > 0 else -x), "depends on the values of tensors"),
        (Plain(lambda self, x: x[x > 0]), "an index that is a mask"),
        (Plain(lambda self, x: torch.linalg.inv(x.T @ x) + torch.digamma(x[0])), "no rule for digamma.default, linalg_inv"),
        (Plain(lambda self, x: x + torch.randn_like(x)), "no rule for randn_like.default"),
        (Plain(lambda self, x: x * torch.arange(2.0)[:, None]), "fixes the batch axis at 2 and mixes its rows"),
        (Plain(lambda self, x: nn.functional.dropout(x, 0.5)), "no rule for native_dropout.default"),
        (Plain(lambda self, x: nn.functional.max_pool1d(x, 2, ceil_mode=True)), "max_pool.* with ceil_mode=True"),
        (counter(), "writes to the buffer seen"),
        (broken(), "param linear.weight holds NaN"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_a_graph(module, message):
    with pytest.raises(UserError, match=message) as refusal:
        export_graph(module.eval(), dict(x=torch.rand(2, 3)))
    assert "\n" not in str(refusal.value)


def test_a_module_in_training_mode():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)).eval()
    module[1].train()
    with pytest.raises(UserError, match=r"1 is in training mode.*\.eval\(\)"):
        export_graph(module, {"input": torch.rand(2, 3)})


@pytest.mark.parametrize("example", [{}, {"y": torch.rand(2, 3)}, {"input": torch.rand(2, 4)}])
def test_an_example_that_forward_does_not_take(example):
    with pytest.raises(UserError, match="forward of Linear does not take the example") as refusal:
        export_graph(nn.Linear(3, 3).eval(), example)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.pop("time"), r"inputs \['time'\] are missing"),
        (lambda i: i.update(tine=i["time"]), r"an input 'tine' is not in the graph \(did you mean"),
        (lambda i: i.update(time=i["time"][:1]), "B the same for all"),
        (lambda i: i.update(x=i["x"][:, :2]), r"input x must be \['B', 3, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_fit(change, message, exported):
    _, example, graph, params = exported("film_net")
    inputs = inputs_of(graph, example)
    change(inputs)
    with pytest.raises(UserError, match=message):
        graph.run(params, inputs)


def test_labels_must_be_whole_numbers(exported):
    _, example, graph, params = exported("token_net")
    inputs = inputs_of(graph, example)
    with pytest.raises(UserError, match="input tokens must be int32, got float32"):
        graph.run(params, inputs | {"tokens": inputs["tokens"] * 1.0})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.pop("scale"), r"missing \['scale'\]"),
        (lambda p: p.update(more=p["scale"]), r"unknown \['more'\]"),
        (lambda p: p.update(scale=p["scale"][:1]), r"param scale must have the shape \(8, 1, 1\)"),
        (lambda p: p.update(scale=p["scale"] * np.nan), "param scale holds NaN"),
        (lambda p: p.update(scale=p["scale"].astype(int)), "param scale must be float32, got int"),
    ],
)
def test_params_that_do_not_fit(change, message, exported):
    *_, graph, params = exported("film_net")
    params = dict(params)
    change(params)
    with pytest.raises(UserError, match=message):
        graph.check_params(params)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(format=FORMAT + 1), "newer than"),
        (lambda r: r["nodes"][3].__setitem__(1, "sinn.default"), "no rule for sinn.default"),
        (lambda r: r["nodes"].pop(0), "which is not there"),
        (lambda r: r.pop("inputs"), "no graph, or damaged"),
        (lambda r: r["nodes"][0].pop(), "no graph, or damaged"),
        (lambda r: r.update(output={"code": "x"}), "no graph, or damaged"),
    ],
)
def test_a_graph_file_that_is_none(change, message, exported, tmp_path):
    *_, graph, _ = exported("film_net")
    path = tmp_path / "graph.json"
    graph.write(path)
    record = json.loads(path.read_text())
    del record["digest"]
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message) as refusal:
        Graph.read(path)
    assert "\n" not in str(refusal.value)


def test_files_that_are_missing_or_damaged(exported, tmp_path):
    *_, graph, params = exported("film_net")
    with pytest.raises(UserError, match="is missing"):
        Graph.read(tmp_path / "graph.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path / "params.safetensors")
    path = tmp_path / "graph.json"
    graph.write(path)
    path.write_text(path.read_text().replace("sin.default", "cos.default"))
    with pytest.raises(UserError, match="is damaged"):
        Graph.read(path)
    path = tmp_path / "params.safetensors"
    write_tensors(path, params)
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:-4] + b"\x00\x01\x02\x03", b"PK" + whole[2:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)
