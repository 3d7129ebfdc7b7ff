"""Students as folders of their own: parameters and card, and their samplers as `jax.export` artifacts."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment
from numpy.testing import assert_array_equal

import guided_distill
from guided_distill.errors import UserError
from guided_distill.export import program
from guided_distill.jobs import export, sample
from guided_distill.models.build import unet_model
from guided_distill.models.model import Model
from guided_distill.sampling.sampler import Sampler
from guided_distill.system.files import read_json, write_json
from guided_distill.system.workdir import PACKAGED, StageFolder, find_own_stages, stage_name

MODEL = {
    "prediction": "v", "width": 8, "channel_mults": [1, 2], "num_res_blocks": 1,
    "attention_resolutions": [4], "head_dim": 0, "dtype": "float32",
}  # fmt: skip
SCHEDULE = {"logsnr_min": -20.0, "logsnr_max": 20.0}
LABELS, W = [3, 1, 4, 1, 5], [0.0, 1.0, 2.0, 0.5, 4.0]


def finish_unet(workdir, num_steps, algorithm="deterministic", **changes):
    """A finished student of random parameters; returns its `FinishedStage`."""
    model = unet_model(MODEL, SCHEDULE, image_shape=(8, 8, 1), num_classes=10, knows_w=True)
    rng = np.random.default_rng(num_steps)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    record = {
        "name": stage_name("step_two", algorithm, num_steps), "stage": "step_two",
        "algorithm": algorithm, "num_steps": num_steps, "factor": 2, "w_range": [0.0, 4.0],
        "schedule": {"name": "cosine", **SCHEDULE}, "parameterization": "v", "data": "digits",
        "data_sha256": "5eed" * 16, "num_classes": 10, "class_names": [], "image_shape": [8, 8, 1],
        "pictures": True, "updates": 20, "seed": 0, "parent": "../../../teacher", "seconds": 1.0,
        "parent_sha256": "0" * 64, "config": {"model": MODEL, "schedule": SCHEDULE},
    }  # fmt: skip
    return StageFolder(workdir / record["name"]).finish(params, record | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with students of 1 and 4 steps, and a stochastic one of 4."""
    workdir = tmp_path_factory.mktemp("run")
    finish_unet(workdir, 1)
    finish_unet(workdir, 4)
    finish_unet(workdir, 4, "stochastic")
    return workdir


def send(workdir, out, **changes):
    export.run(export.Request(workdir=str(workdir), out=str(out), **changes))
    return out


def test_an_exported_student_is_the_student(run, tmp_path, capfd):
    out = send(run, tmp_path / "four", format="safetensors")
    assert "parameters of the student of 4 steps, w in [0, 4]" in capfd.readouterr().err
    assert {path.name for path in out.iterdir()} == {
        "stage.json", "params.safetensors", "README.md",
    }  # fmt: skip
    ours, theirs = Sampler.load(run, 4), Sampler.load(out)
    assert repr(ours) == repr(theirs)
    assert_array_equal(ours.draw(LABELS, W, seed=2), theirs.draw(LABELS, W, seed=2))
    assert theirs.record["params_sha256"] == ours.record["params_sha256"]
    moved = shutil.move(out, tmp_path / "elsewhere")
    assert_array_equal(ours.draw(LABELS, W), Sampler.load(moved, 4).draw(LABELS, W))


def test_a_student_alone_is_drawn_from_in_its_own_steps(run, tmp_path):
    out = send(run, tmp_path / "one", format="safetensors", num_steps=1)
    assert Sampler.load(out).num_steps == 1 and Sampler.load(run).num_steps == 4
    sample.run(sample.Request(workdir=str(out), n=10, out=str(tmp_path / "x.npz")))
    assert np.load(tmp_path / "x.npz")["samples"].shape == (10, 8, 8, 1)
    assert_array_equal(
        np.load(tmp_path / "x.npz")["samples"], Sampler.load(run, 1).draw(list(range(10)))
    )
    again = send(out, tmp_path / "again", format="safetensors")
    assert Sampler.load(again).num_steps == 1


def test_students_side_by_side_are_told_by_their_steps(run, tmp_path):
    for num_steps in (1, 4):
        send(run, tmp_path / "both" / str(num_steps), num_steps=num_steps, format="safetensors")
    for num_steps in (1, 4):
        found = Sampler.load(tmp_path / "both", num_steps)
        assert_array_equal(found.draw(LABELS), Sampler.load(run, num_steps).draw(LABELS))
    with pytest.raises(UserError, match="`num_steps` 2 .*1, 4"):
        Sampler.load(tmp_path / "both", 2)
    again = send(tmp_path / "both", tmp_path / "again", format="safetensors", num_steps=1)
    assert_array_equal(Sampler.load(again, 1).draw(LABELS), Sampler.load(run, 1).draw(LABELS))


LONE = """
import sys
sys.modules["guided_distill"] = None  # As where it is not installed.
import jax, numpy as np
found = {}
for name in sys.argv[1:]:
    sys.path.insert(0, name)
    sys.modules.pop("load", None)
    from load import about, sample
    sys.path.pop(0)
    found[name] = sample([3, 1, 4, 1, 5], w=[0.0, 1.0, 2.0, 0.5, 4.0], seed=2)
    found[name + " two"] = sample([3, 0], w=2.0, seed=2, indices=[7, 2**20])
    for bad in (dict(cond=[3], w=4.5), dict(cond=[3], w=-0.1), dict(cond=[10], w=1.0)):
        try:
            sample(**bad)
        except ValueError as error:
            print(error)
assert not {"flax", "optax", "orbax", "safetensors", "PIL"} & set(sys.modules)
np.savez("found.npz", **found)
"""


@pytest.fixture(scope="module")
def programs(run, tmp_path_factory):
    """A folder with the programs `ddim` and `stochastic`, of 4 steps."""
    root = tmp_path_factory.mktemp("programs")
    send(run, root / "ddim", format="jax")
    send(run, root / "stochastic", format="jax", stage="step_two/stochastic")
    return root


OURS = """
import sys
import numpy as np
from guided_distill import Sampler
found = {}
for name, stage in (("ddim", ""), ("stochastic", "step_two/stochastic")):
    sampler = Sampler.load(sys.argv[1], 4, stage=stage)
    found[name] = sampler.draw([3, 1, 4, 1, 5], w=[0.0, 1.0, 2.0, 0.5, 4.0], seed=2)
    found[name + " two"] = sampler.draw([3, 0], w=2.0, seed=2, indices=[7, 2**20])
np.savez("ours.npz", **found)
"""


def test_a_program_draws_the_same_bits_without_the_package(run, programs):
    """From two samples on: of one alone XLA sums some products in another order."""
    for script, arguments in ((LONE, ["ddim", "stochastic"]), (OURS, [str(run)])):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=programs, env=environment() | {"XLA_FLAGS": ""},  # Compiled as they are used.
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        if script is LONE:
            assert done.stdout.count("w must lie in 0 to 4, got ") == 4
            assert done.stdout.count("classes are 0 to 9, got [10]") == 2
    drawn, ours = np.load(programs / "found.npz"), np.load(programs / "ours.npz")
    assert set(drawn) == set(ours) and len(set(ours)) == 4
    for name in ours:
        assert_array_equal(drawn[name], ours[name])


def read_artifact(path):
    return jax.export.deserialize(bytearray(gzip.decompress(path.read_bytes())))


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_program_adds_a_tenth_to_its_parameters_and_no_folder_of_this_machine(name, tmp_path):
    out = send(f"package:{name}", tmp_path / "four", format="jax", num_steps=4)
    files = ("params.safetensors", program.PROGRAM_FILE, program.NOISE_FILE)
    params, *artifacts = ((out / file).stat().st_size for file in files)
    assert params + sum(artifacts) <= 1.1 * params
    here = os.fsencode(pathlib.Path(guided_distill.__file__).parent)
    for file in out.iterdir():
        data = file.read_bytes()
        assert here not in (gzip.decompress(data) if file.suffix == ".gz" else data)
    assert jax.config.jax_traceback_in_locations_limit > 0


def test_a_program_holds_its_network_once_for_all_steps(run, programs):
    exported = read_artifact(programs / "ddim" / program.PROGRAM_FILE)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert read_description(programs / "ddim")["num_steps"] == 4
    model, params = Model.load(run / stage_name("step_two", "deterministic", 4))
    z, one = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,))
    forward = jax.make_jaxpr(model.apply)(params, z, one, jnp.zeros((1,), jnp.int32), one, None)
    once = str(forward).count("conv_general_dilated[")
    found = exported.mlir_module().count("stablehlo.convolution(")
    assert once and found == once * len(exported.platforms)


def read_description(folder):
    return json.loads((folder / program.DESCRIPTION_FILE).read_text())


def test_a_program_of_a_newer_format_is_refused_by_its_loader(programs, tmp_path):
    folder = shutil.copytree(programs / "ddim", tmp_path / "newer")
    newer = program.FORMAT + 1
    described = read_description(folder) | {"format": newer}
    (folder / program.DESCRIPTION_FILE).write_text(json.dumps(described))
    done = subprocess.run(
        [sys.executable, "-c", "import load"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert f"has format {newer}: take the load.py that came with it" in done.stderr


def test_a_folder_of_a_newer_format_is_refused(run, tmp_path):
    out = send(run, tmp_path / "four", format="safetensors")
    write_json(out / "stage.json", read_json(out / "stage.json") | {"exported": 2})
    with pytest.raises(UserError, match="format 2, newer than 1"):
        Sampler.load(out)


def test_damage_is_found(run, tmp_path):
    out = send(run, tmp_path / "four", format="safetensors")
    data = bytearray((out / "params.safetensors").read_bytes())
    data[-5] ^= 1
    (out / "params.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="params.safetensors is damaged"):
        Sampler.load(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(format="onnx"), "`format` must be one of diffusers, safetensors, jax, got 'onnx'"),
        (dict(format="jax", w=(1.0,)), "`w` means nothing to `format` jax"),
        (dict(format="safetensors", link=True), "`link` means nothing to `format` safetensors"),
        (dict(format="jax", from_="sd15"), "`from` means nothing"),
        (dict(format="jax", num_steps=2), "`num_steps` 2 "),
        (dict(format="diffusers"), "came from no diffusers folder"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    run, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        send(run, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_an_out_folder_that_exists_is_kept(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        send(run, tmp_path, format="jax")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_network_that_has_no_program_is_refused(run, tmp_path, monkeypatch):
    def ask_how_many(params, start, keys, cond, w, num_steps):
        return start[: 4 if len(start) > 4 else 1]  # Asks whether n > 4.

    monkeypatch.setattr(program, "sample_with", lambda model, sampler: ask_how_many)
    with pytest.raises(UserError, match=r"cannot be exported for cpu, cuda, tpu .*safetensors"):
        send(run, tmp_path / "out", format="jax")
    assert not list(tmp_path.iterdir())


def test_the_card_samples(run, tmp_path, monkeypatch):
    out = send(run, tmp_path / "four", format="jax")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(out)
    snippets = (out / "README.md").read_text().split("```python\n")[1:]
    drawn = []
    for snippet in snippets:
        names = {}
        exec(snippet.split("```")[0], names)
        drawn.append(names.get("images", names.get("x")))
    assert drawn[0].dtype == np.uint8 and drawn[1].dtype == np.float32
    assert_array_equal(drawn[0], guided_distill.Sampler.load(run)([0, 1, 2, 3], w=2))


def test_a_card_has_the_results_of_its_own_student(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    row = {"model": "student", "num_steps": 4, "w": 2.0, "fid": 12.34, "network_calls": 4}
    stages = find_own_stages(workdir)
    own = {name: stage.record["params_sha256"] for name, stage in stages.items()}
    results = {"rows": [row, row | {"num_steps": 1}], "provenance": {"distance": "Of letters."}}
    for there, expected in ((own, True), (own | {"step_two/deterministic/0004": "0"}, False)):
        provenance = results["provenance"] | {"params_sha256": there}
        write_json(workdir / "report" / "results.json", results | {"provenance": provenance})
        card = (
            send(workdir, tmp_path / f"out{expected}", format="safetensors") / "README.md"
        ).read_text()
        assert ("12.34" in card) == expected


def test_students_of_the_package_are_named(tmp_path):
    with pytest.raises(UserError, match=r"is none of .*package:digits.*did you mean digits"):
        Sampler.load("package:digit")
    with pytest.raises(UserError, match="is there to be sampled or exported"):
        guided_distill.train(guided_distill.load_config("configs/digits.py"), "package:digits")


@pytest.mark.parametrize("name", sorted(path.name for path in PACKAGED.iterdir()))
def test_a_first_picture_needs_no_training(name, tmp_path):
    out = tmp_path / "grid.png"
    sample.run(sample.Request(workdir=f"package:{name}", w=(0.0, 4.0), n=40, out=str(out)))
    assert out.stat().st_size > 1000
