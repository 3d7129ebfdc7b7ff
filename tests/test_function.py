"""Networks that are no denoisers, imported: decoders, encoders and what gives features."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_networks import network  # noqa: E402

import guided_distill  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402

RESULTS = {"hidden": "last_hidden_state", "pooled": "pooler_output"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(module, example, folder) of a text encoder of two results."""
    module, example = network("clip_text")
    out = tmp_path_factory.mktemp("text") / "out"
    return (
        module,
        example,
        guided_distill.import_function(module, example, out=out, results=RESULTS),
    )


def test_a_function_gives_each_result_of_its_module_at_any_batch(text):
    module, example, folder = text
    rows = [0, 1, 1]
    with torch.no_grad():
        theirs = module(example["input_ids"][rows])
    ours = guided_distill.Function.load(folder)(input_ids=np.asarray(example["input_ids"])[rows])
    assert set(ours) == set(RESULTS)
    for name, key in RESULTS.items():
        assert_allclose(ours[name], theirs[key], atol=2e-6 * float(theirs[key].abs().max()))


def test_results_share_their_params(text):
    module, _, folder = text
    function = guided_distill.Function.load(folder)
    assert set.union(*(set(g.params) for g in function.graphs.values())) == set(function.params)
    size = (folder / "params.safetensors").stat().st_size
    assert size < 1.2 * sum(4 * p.numel() for p in module.parameters()) + 1e5
    assert function.output_shape("hidden") == (7, 16)


def test_the_first_result_is_the_output(tmp_path):
    module, example = network("vae_decode")
    guided_distill.import_function(module, example, out=tmp_path / "out")
    function = guided_distill.Function.load(tmp_path / "out")
    found = function(x=example["x"].numpy())
    assert list(found) == ["output"] and list(function.inputs) == ["x"]
    with torch.no_grad():
        expected = module(**example)
    assert_allclose(found["output"], expected, atol=2e-5 * float(expected.abs().max()))


def test_two_functions_are_told_apart(text, tmp_path):
    module, example, folder = text
    guided_distill.import_function(module, example, out=tmp_path / "same", results=RESULTS)
    with torch.no_grad():
        module.text_model.final_layer_norm.bias.add_(1.0) if hasattr(module, "text_model") else (
            next(module.parameters()).add_(1.0)
        )
    guided_distill.import_function(module, example, out=tmp_path / "other", results=RESULTS)
    digests = [guided_distill.Function.load(f).sha256 for f in (folder, tmp_path / "same")]
    assert digests[0] == digests[1]
    assert guided_distill.Function.load(tmp_path / "other").sha256 != digests[0]


@pytest.mark.parametrize("name", ["function.json", "graph.hidden.json", "params.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "removed"])
def test_a_damaged_folder_is_named(name, harm, text, tmp_path):
    for path in text[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    if harm == "removed":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    with pytest.raises(UserError, match=name):
        guided_distill.Function.load(tmp_path)


def test_graphs_and_formats_of_others_are_refused(text, tmp_path):
    for path in text[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pooled = tmp_path / "graph.pooled.json"
    pooled.write_bytes((tmp_path / "graph.hidden.json").read_bytes())
    with pytest.raises(UserError, match="graph.pooled.json is not that of function.json"):
        guided_distill.Function.load(tmp_path)
    record = json.loads((tmp_path / "function.json").read_text())
    record.pop("digest")
    (tmp_path / "function.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UserError, match="format 99, newer than"):
        guided_distill.Function.load(tmp_path)


def test_what_no_forward_returns_is_refused_and_nothing_written(text, tmp_path):
    module, example, _ = text
    with pytest.raises(UserError, match="pooled"):
        guided_distill.import_function(
            module, example, out=tmp_path / "out", results={"pooled": "pooled"}
        )
    assert not list((tmp_path / "out").iterdir())


def test_loading_a_models_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no imported function"):
        guided_distill.Function.load(tmp_path)


def test_inputs_are_checked(text):
    function = guided_distill.Function.load(text[2])
    with pytest.raises(UserError, match="an input .tokens. is not in the graph"):
        function(tokens=np.zeros((2, 7), np.int32))
    with pytest.raises(UserError, match="input_ids must be"):
        function(input_ids=np.zeros((2, 8), np.int32))
    same = [function(input_ids=np.full((n, 7), 3, np.int32))["pooled"][0] for n in (1, 2)]
    assert_array_equal(*same)
