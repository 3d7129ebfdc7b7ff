"""A user's folder of pictures, trained, distilled, sampled and measured with one command."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment
from own_images import SHAPES, write_folder
from PIL import Image

SMALL = [
    "--config.model.width=4",
    "--config.model.channel_mults=(1,)",
    "--config.model.attention_resolutions=()",
    "--config.teacher.num_updates=8",
    "--config.step_one.num_updates=4",
    *(f"--config.step_two.rounds[{k}].num_updates=4" for k in range(3)),
    "--config.evaluation.num_samples=40",
    "--config.evaluation.batch_size=40",
    "--config.evaluation.classifier_updates=10",
]


def main(*arguments):
    """Runs the command line; returns (exit code, everything it printed)."""
    run = subprocess.run(
        [sys.executable, "-m", "guided_distill.main", *map(str, arguments)],
        env=environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def train(root, workdir="run", *arguments):
    return main(
        "--config=configs/folder.py:smoke",
        f"--workdir={root / workdir}",
        f"--config.data.path={root / 'shapes'}",
        f"--config.data.cache={root / 'cache'}",
        *SMALL,
        *arguments,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """500 JPEGs of all sizes in five classes, and a run on them."""
    root = tmp_path_factory.mktemp("own")
    write_folder(root / "shapes", per_class=100)
    code, output = train(root)
    assert code == 0, output
    return root


def test_one_command_leaves_students_samples_and_a_report(root):
    workdir = root / "run"
    record = json.loads((workdir / "step_two/deterministic/0001/stage.json").read_text())
    assert record["class_names"] == sorted(SHAPES) and record["image_shape"] == [16, 16, 3]
    assert (workdir / "report" / "index.html").exists()
    assert (workdir / "samples" / "step_two_deterministic_0001.png").exists()
    results = json.loads((workdir / "report" / "results.json").read_text())
    assert results["provenance"]["test_size"] == 50
    assert results["provenance"]["data"] == "shapes"


def test_a_streamed_run_ends_with_the_same_params(root):
    streamed = ["--stage=teacher", "--config.data.memory_gb=0.0"]
    code, output = train(root, "streamed", *streamed)
    assert code == 0, output
    hashes = [
        json.loads((root / run / "teacher" / "stage.json").read_text())["params_sha256"]
        for run in ("run", "streamed")
    ]
    assert hashes[0] == hashes[1]


def test_classes_are_sampled_by_name(root):
    sample = ["--mode=sample", f"--workdir={root / 'run'}", "--num_steps=1", "--n=4"]
    code, output = main(*sample, "--labels=ring,disc", f"--out={root / 'x.npz'}")
    assert code == 0, output
    with np.load(root / "x.npz") as file:
        assert file["labels"].tolist() == [2, 1, 2, 1]
    code, output = main(*sample, "--labels=rings", f"--out={root / 'x.npz'}")
    assert code == 1 and "(did you mean ring?)" in output


def test_the_same_data_go_on_and_changed_data_are_named_before_compute(root):
    code, output = train(root)
    assert code == 0 and "this run is finished" in output and "decoding" not in output
    shutil.copytree(root / "shapes", root / "before")
    Image.new("RGB", (30, 30)).save(root / "shapes" / "ring" / "007.jpg")
    code, output = train(root)
    assert code == 1 and "was trained on other data than shapes holds now" in output
    # A student in another workdir learns from its teacher's data, too.
    code, output = train(root, "other", f"--teacher={root / 'run' / 'teacher'}")
    assert code == 1 and "teacher was trained on other data than shapes holds now" in output
    assert "updates to go" not in output
    code, output = train(root, "run", "--mode=evaluate", "--config.evaluation.num_samples=80")
    assert code == 1 and "was trained on other data than shapes holds now" in output
    shutil.rmtree(root / "shapes")
    shutil.move(root / "before", root / "shapes")
    code, output = train(root)
    assert code == 0 and "this run is finished" in output, output


def test_broken_files_are_named_before_compute_and_counted_when_skipped(root):
    broken = root / "shapes" / "disc" / "broken.jpg"
    broken.write_bytes((root / "shapes" / "disc" / "001.jpg").read_bytes()[:200])
    code, output = train(root, "broken")
    assert code == 1 and "disc/broken.jpg (record " in output and "Traceback" not in output
    prepare = ["--mode=prepare_data", "--config.data.skip_broken=True"]
    code, output = train(root, "broken", *prepare)
    broken.unlink()
    assert code == 0 and "1 broken pictures left out" in output, output
    assert "450 images to learn from and 50 held out, 16x16x3, 5 classes" in output


def test_one_class_is_taken_only_without_guidance(root):
    one = ["--mode=prepare_data", f"--config.data.path={root / 'shapes' / 'ring'}"]
    code, output = train(root, "one", *one)
    assert code == 1 and "has one class, so guidance has nothing to tell apart" in output
    code, output = train(
        root, "one", *one, "--config.w_range=(0.0,0.0)", "--config.evaluation.w=(0.0,)"
    )
    assert code == 0 and "90 images to learn from and 10 held out" in output, output
