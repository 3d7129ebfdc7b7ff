"""An evaluation that is stopped goes on where it was, and ends with the same numbers."""

import dataclasses
import errno

import numpy as np
import pytest

from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedClasses
from guided_distill.evaluation.comparison import Comparison
from guided_distill.evaluation.contenders import REFERENCES, Contender
from guided_distill.evaluation.features import FeatureExtractor
from guided_distill.evaluation.reference import ReferenceStats

SHAPE = (4, 4, 1)
N, BATCH = 50, 16


class Killed(Exception):
    pass


@dataclasses.dataclass
class Stage:
    """Stands for a finished stage."""

    params: str

    @property
    def record(self):
        return {"params_sha256": self.params}


class FakeGenerator:
    """Samples that depend on params, w and index alone; may be killed after some calls."""

    def __init__(self):
        self.drawn, self.calls_left = [], None

    def place(self, params):
        return params

    def __call__(self, params, *, cond, w, indices, num_steps, seed):
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Killed
            self.calls_left -= 1
        self.drawn += [(params, float(w[0]), int(i)) for i in indices]
        rng = [
            np.random.default_rng([sum(map(ord, params)), int(10 * w[0]), int(i)]) for i in indices
        ]
        return np.stack([np.tanh(r.normal(size=SHAPE)) for r in rng]).astype(np.float32)


def apply(images):
    features = images.reshape(len(images), -1)[:, :3] / 64.0
    return features, np.log(np.full((len(images), 2), 0.5))


EXTRACTOR = FeatureExtractor("pixels", 3, "none", apply)
REFERENCE = ReferenceStats(
    np.full(3, 2.0), np.eye(3), np.random.default_rng(0).normal(size=(90, 3)), {}
)


def evaluation(folder, batch_size=BATCH):
    return Comparison(
        folder, REFERENCE, EXTRACTOR, EXTRACTOR,
        asked=AskedClasses((2, 2), N), sample_shape=SHAPE, num_samples=N, batch_size=batch_size,
        seed=0,
    )  # fmt: skip


def contenders(generator):
    def make(model, n):
        compares_with = REFERENCES if model == "student" else ("teacher",)
        return Contender(model, "ddim", n, 1, Stage(model), generator, compares_with=compares_with)

    return [make("teacher", 8), make("step_one", 8), make("student", 2), make("student", 1)]


def rows_of(folder, generator, **kwargs):
    rows, pictures = evaluation(folder, **kwargs).run(contenders(generator), [0.0, 1.0])
    for row in rows:
        row.pop("images_per_second")
    return rows, pictures


@pytest.mark.parametrize("calls", [3, 5, 9, 20])
def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path, calls):
    expected, expected_images = rows_of(tmp_path / "whole", FakeGenerator())
    generator = FakeGenerator()
    generator.calls_left = calls
    with pytest.raises(Killed):
        rows_of(tmp_path / "killed", generator)
    generator.calls_left = None
    before = len(generator.drawn)
    rows, pictures = rows_of(tmp_path / "killed", generator)
    assert rows == expected
    for key, images in expected_images.items():
        np.testing.assert_array_equal(pictures[key], images)
    # No sample of a reference is drawn twice, but for the one of the warm-up.
    references = [d for d in generator.drawn if d[0] in ("teacher", "step_one") and d[2] > 0]
    assert len(references) == len(set(references))
    assert before > 1


def test_a_finished_evaluation_draws_nothing_and_another_batch_size_fits_in(tmp_path):
    expected, _ = rows_of(tmp_path, FakeGenerator())
    again = FakeGenerator()
    again.calls_left = 0
    assert rows_of(tmp_path, again)[0] == expected
    half = FakeGenerator()
    half.calls_left = 3
    with pytest.raises(Killed):
        rows_of(tmp_path / "half", half, batch_size=20)
    rows, _ = rows_of(tmp_path / "half", FakeGenerator(), batch_size=7)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == other[key] or np.isclose(value, other[key], rtol=1e-9), key


def test_references_are_compared_with_and_students_with_step_one(tmp_path):
    rows, _ = rows_of(tmp_path, FakeGenerator())
    by_model = {(row["model"], row["num_steps"], row["w"]): row for row in rows}
    assert by_model["teacher", 8, 0.0]["rmse_to_teacher"] == 0.0
    assert by_model["step_one", 8, 1.0]["rmse_to_teacher"] > 0.1
    assert by_model["step_one", 8, 1.0]["rmse_to_step_one"] is None
    assert by_model["student", 1, 1.0]["rmse_to_step_one"] > 0.1


def test_rows_stand_by_what_the_reference_holds_not_by_where_it_lies(tmp_path):
    rows_of(tmp_path, FakeGenerator())
    for other, drawn in (
        (dataclasses.replace(REFERENCE, provenance={"file": "moved.npz"}), False),
        (dataclasses.replace(REFERENCE, mean=np.full(3, 2.5)), True),
    ):
        generator = FakeGenerator()
        compared = evaluation(tmp_path)
        compared.reference = other
        compared.run(contenders(generator), [0.0, 1.0])
        assert bool(generator.drawn) is drawn


def test_a_row_of_another_ancestral_mix_is_measured_anew(tmp_path):
    def rows(mix):
        generator = FakeGenerator()
        teacher = Contender("teacher", "ddim", 8, 1, Stage("teacher"), generator)
        baseline = Contender(
            "ancestral", "ancestral", 2, 2, Stage("teacher"), generator, ancestral_mix=mix
        )
        evaluation(tmp_path).run([teacher, baseline], [0.0])
        return len(generator.drawn)

    assert rows(0.3) > N
    assert rows(0.3) == 0
    assert rows(0.7) > N - 1


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def swap_bytes(path):
    path.write_bytes(path.read_bytes().replace(b"<f4", b">f4"))


HARMS = {
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": lambda path: path.unlink(),
    "swapped": swap_bytes,
}
PATTERNS = ("rows/*.json", "rows/*.npy", "samples/*.json", "samples/*.npy")


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [(p, h) for p in PATTERNS for h in HARMS if h != "swapped" or p == "samples/*.npy"],
)
def test_what_is_damaged_is_made_again_and_ends_the_same(tmp_path, pattern, harm):
    expected, expected_images = rows_of(tmp_path, FakeGenerator())
    for path in sorted(tmp_path.glob(pattern))[::2]:
        HARMS[harm](path)
    for path in tmp_path.glob("rows/*.json") if pattern.startswith("samples") else ():
        path.unlink()  # So that the samples are asked for.
    generator = FakeGenerator()
    rows, images = rows_of(tmp_path, generator)
    assert rows == expected and generator.drawn
    for key, kept in expected_images.items():
        np.testing.assert_array_equal(images[key], kept)


def test_a_disk_without_room_for_the_samples_is_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        rows_of(tmp_path, FakeGenerator())
