"""The campaign of faults, cut short: a few kills, failures and damaged files of each kind."""

import shutil

import campaign as faults
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to make tests/faults.c with")
    return faults.Campaign(tmp_path_factory.mktemp("campaign"), shutil.which("cc"))


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_was_not(campaign):
    faults.kill_again_and_again(campaign, count=3, seed=1)
    assert not campaign.broken


@pytest.mark.parametrize(
    ("part", "kind", "error", "at"),
    [
        ("step one", "write", "ENOSPC", 14),  # the folder of a checkpoint
        ("step one", "write", "EIO", 60),  # within it
        ("evaluation", "write", "ENOSPC", 30),
        ("report", "read", "EIO", 60),
    ],
)
def test_a_disk_that_fails_ends_a_run_in_one_line_and_costs_nothing(
    campaign, part, kind, error, at
):
    faults.fail_once(campaign, part, kind, error, faults.ALWAYS, at)
    assert not campaign.broken


@pytest.mark.parametrize(
    ("part", "name", "how"),
    [
        ("round 1", "run/step_two/deterministic/0002/checkpoints/4/record/metadata", "cut"),
        ("", "run/step_one/stage.json", "flipped"),
        ("", "run/report/index.html", "emptied"),
        ("", "run/samples/teacher.png", "deleted"),
    ],
)
def test_damaged_files_are_made_again_or_named(campaign, part, name, how):
    faults.corrupt_once(campaign, part, name, how, faults.random.Random(0))
    assert not campaign.broken


def test_samples_of_a_damaged_student_are_the_same_or_refused(campaign):
    faults.sample_corrupted(campaign, every=9)
    assert not campaign.broken
