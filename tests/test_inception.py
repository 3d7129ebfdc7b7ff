"""Our InceptionV3 and our metrics against torch-fidelity's, on the same weights and features."""

import importlib.util
import io
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from torch_inception import fidelity, make_inception

from guided_distill.errors import UserError
from guided_distill.evaluation.features import load_inception_extractor
from guided_distill.evaluation.inception import InceptionV3, resize_like_tensorflow_1
from guided_distill.evaluation.inception_weights import convert_inception, load_inception
from guided_distill.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
    squared_mmd,
)
from guided_distill.evaluation.pytorch_weights import read_state_dict
from guided_distill.system.sharding import make_mesh

needs_torch = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("torch_fidelity")),
    reason="torch and torch-fidelity are not installed",
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(path of a weights file with random weights, torch-fidelity's network with them)."""
    return make_inception(tmp_path_factory.mktemp("weights") / "pt_inception.pth")


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """(params of our network from the same file, their digest, path of our file)."""
    out = tmp_path_factory.mktemp("ours") / "inception.npz"
    sha256 = convert_inception(theirs[0], out)
    params, loaded = load_inception(out)
    assert loaded == sha256
    return params, sha256, out


@needs_torch
@pytest.mark.slow
def test_as_an_imported_graph_it_is_pytorchs(theirs):
    """But for the few gradients of which rounding decides a ReLU's or a maximum's side."""
    import torch

    from guided_distill.models.from_torch import export_graph, measure_parity

    network = theirs[1].eval().requires_grad_(True)
    draw = np.random.default_rng(3).integers
    example = {"x": torch.from_numpy(draw(0, 256, (2, 3, 40, 40), np.uint8))}
    graph, params = export_graph(network, example, output="1")
    assert measure_parity(network, example, graph, params, output="1") < 1e-5

    images = draw(0, 256, (3, 3, 40, 40), np.uint8)
    out = network(torch.from_numpy(images))[1]
    towards = np.linspace(-1.0, 1.0, out.numel(), dtype=np.float32).reshape(out.shape)
    (out * torch.from_numpy(towards)).sum().backward()
    expected = {n: p.grad.numpy() for n, p in network.named_parameters() if p.grad is not None}

    def loss(trained):
        return jnp.sum(graph.run(params | trained, {"x": images}) * towards)

    gradients = jax.jit(jax.grad(loss))({name: params[name] for name in expected})
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    errors = [np.abs(gradients[name] - g).ravel() / largest for name, g in expected.items()]
    assert len(errors) == 282
    errors = np.concatenate(errors)
    assert (errors > 1e-5).mean() < 1e-3 and errors.max() < 1e-3


@needs_torch
@pytest.mark.parametrize("size", [8, 32, 64, 299, 320])
def test_features_and_logits_agree_with_torch_fidelity(theirs, ours, size):
    import torch

    images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
    images[1, : size // 2] = 255
    with torch.no_grad():
        _, features, logits = theirs[1](torch.from_numpy(images.transpose(0, 3, 1, 2)))
    mine = jax.jit(InceptionV3().apply)({"params": ours[0]}, images)
    for a, b in zip(mine, (features, logits), strict=True):
        b = b.numpy()
        assert np.abs(a - b).max() < 1e-3 * np.abs(b).max()
        assert b.std() > 1e-3  # the random network tells the pictures apart


@needs_torch
def test_extractor_runs_on_every_device_in_batches_of_any_size(ours):
    """Grayscale pictures too; the last batch is cut to what was asked for."""
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    extractor = load_inception_extractor(ours[2], make_mesh())
    features, log_p = extractor.apply(images)
    assert features.shape == (9, extractor.num_features) and log_p.shape == (9, 1008)
    assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-4)
    alone, _ = jax.jit(InceptionV3().apply)({"params": ours[0]}, images[:2].repeat(3, axis=-1))
    assert np.abs(features[:2] - alone).max() < 1e-4 * np.abs(alone).max()
    assert extractor.name.endswith(ours[1][:12])


@needs_torch
@pytest.mark.parametrize(("height", "size"), [(8, 299), (64, 299), (400, 299), (5, 7)])
def test_resize_is_tensorflow_1s(height, size):
    import torch

    x = np.random.default_rng(0).uniform(0, 255, (1, height, height, 3)).astype(np.float32)
    resize = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    expected = resize(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), size=(size, size), align_corners=False
    )
    mine = resize_like_tensorflow_1(x, size)
    assert_allclose(mine, expected.numpy().transpose(0, 2, 3, 1), atol=1e-3)


@needs_torch
def test_older_weights_files_are_read_too(theirs, tmp_path):
    import torch

    older = tmp_path / "older.pth"
    torch.save(theirs[1].state_dict(), older, _use_new_zipfile_serialization=False)
    newer_state, older_state = read_state_dict(theirs[0]), read_state_dict(older)
    assert newer_state.keys() == older_state.keys()
    for name, value in newer_state.items():
        np.testing.assert_array_equal(value, older_state[name])


@pytest.fixture(scope="module")
def features():
    """Two sets of features that differ, and logits: `[600, 16]`, `[500, 16]`, `[600, 10]`."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16))
    return (
        (rng.normal(size=(600, 16)) @ mix).astype(np.float32),
        (rng.normal(0.3, 1.2, size=(500, 16)) @ mix).astype(np.float32),
        rng.normal(0, 2.0, size=(600, 10)).astype(np.float32),
    )


@needs_torch
def test_metrics_agree_with_torch_fidelity(features):
    import torch

    a, b, logits = features
    as_torch = [torch.from_numpy(array) for array in features]
    fid = fidelity("metric_fid")
    statistics = [fid.fid_features_to_statistics(t) for t in as_torch[:2]]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert_allclose(
        frechet_distance(*moments(a), *moments(b)), theirs["frechet_inception_distance"], rtol=1e-4
    )
    theirs = fidelity("metric_isc").isc_features_to_metric(as_torch[2], splits=10, shuffle=False)
    log_p = torch.log_softmax(as_torch[2].double(), dim=1).numpy()
    mean, deviation = inception_score(log_p)
    assert_allclose(mean, theirs["inception_score_mean"], rtol=1e-4)
    assert_allclose(deviation, theirs["inception_score_std"], rtol=1e-4)
    prc = fidelity("metric_prc")
    expected = prc.calculate_precision_recall_full(*as_torch[:2], neighborhood=3)
    assert_allclose(precision_recall(a, b), expected, rtol=1e-4)
    kid = fidelity("metric_kid")
    x, y = a[:400].astype(np.float64), b[:400].astype(np.float64)
    kernel = lambda p, q: kid.kernel_poly(  # noqa: E731
        p, q, kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1
    )
    expected = kid.mmd2(kernel(x, x), kernel(x, y), kernel(y, y))
    assert_allclose(squared_mmd(x, y), expected, rtol=1e-4)


def test_kernel_distance_is_unbiased_and_sees_a_shift(features):
    rng = np.random.default_rng(1)
    same = [rng.normal(size=(2000, 8)) for _ in range(2)]
    mean, deviation = kernel_distance(*same, num_subsets=50, subset_size=200)
    assert abs(mean) < 3 * deviation / np.sqrt(50) + 0.01
    assert kernel_distance(same[0], same[1] + 1.0, num_subsets=5, subset_size=200)[0] > 0.5


def test_precision_sees_quality_and_recall_sees_coverage():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 4))
    assert min(precision_recall(rng.normal(size=(400, 4)), real)) > 0.7
    narrow = precision_recall(0.1 * rng.normal(size=(400, 4)), real)
    wide = precision_recall(10 * rng.normal(size=(400, 4)), real)
    assert narrow[0] > 0.95 and narrow[1] < 0.2 and wide[0] < 0.2


def write_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("executed"),))


@pytest.mark.parametrize("kind", ["zip", "older"])
def test_code_in_a_weights_file_is_refused_and_not_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if kind == "zip":
        write_zip(path, pickle.dumps({"a": Evil()}))
    else:
        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"evil.pth is refused: it names .*, which is code"):
        convert_inception(path, tmp_path / "x.npz")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "x.npz").exists()


def test_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match="a.pth cannot be read: No such file"):
        read_state_dict(path)
    for content in (b"", b"PK", b"not weights at all", io.BytesIO(b"\x80\x02}q\x00.").getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.pth is"):
            read_state_dict(path)
    write_zip(path, pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="does not hold a dictionary of tensors"):
        read_state_dict(path)
    write_zip(path, pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="does not hold a dictionary of tensors"):
        read_state_dict(path)


@needs_torch
def test_truncated_and_foreign_weights_are_refused(theirs, tmp_path):
    import torch

    data = theirs[0].read_bytes()
    path = tmp_path / "half.pth"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="half.pth is no PyTorch weights file, or a truncated one"):
        read_state_dict(path)
    older = tmp_path / "older.pth"
    state = {"a": torch.ones(1000), "b": torch.zeros(3)}
    torch.save(state, older, _use_new_zipfile_serialization=False)
    older.write_bytes(older.read_bytes()[:-2000])
    with pytest.raises(UserError, match="truncated"):
        read_state_dict(older)
    torch.save(state, path)
    with pytest.raises(UserError, match="is not InceptionV3 of 2015-12-05.*pytorch-fid"):
        convert_inception(path, tmp_path / "x.npz")


@needs_torch
def test_our_weights_file_notices_damage(ours, tmp_path):
    with pytest.raises(UserError, match=r"x.npz is missing: the field uses pt_inception"):
        load_inception(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"something else")
    with pytest.raises(UserError, match="is no weights file of the job convert_inception"):
        load_inception(tmp_path / "x.npz")
    with np.load(ours[2]) as file:
        flat = {name: file[name] for name in file.files}
    flat["fc/kernel"] = flat["fc/kernel"] + 1
    np.savez(tmp_path / "y.npz", **flat)
    with pytest.raises(UserError, match="do not match their digest"):
        load_inception(tmp_path / "y.npz")
    with pytest.raises(UserError, match="must end in .npz"):
        convert_inception(ours[2], tmp_path / "x.bin")
