"""The help tells of every flag of every mode, and of no other."""

import dataclasses
import importlib
import re
import subprocess
import sys
import types

import pytest
from conftest import ROOT, environment

from guided_distill.jobs.modes import EVERY_MODE, MODES, help_text, split_help

IN_EVERY_HELP = {"config", "workdir"}


def ask(*args):
    done = subprocess.run(
        [sys.executable, "-m", "guided_distill.main", *args],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole_help():
    code, told, _ = ask("--help")
    assert code == 0
    return told


def section_of(told, mode):
    return told.split(f"--mode={mode}: ")[1].split("\n--mode=")[0].split(f"\n{EVERY_MODE}:")[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_told_with_the_flags_that_it_takes(whole_help, mode):
    job = importlib.import_module(f"guided_distill.jobs.{MODES[mode].module or mode}")
    fields = {field.name.rstrip("_") for field in dataclasses.fields(job.Request)}
    section = section_of(whole_help, mode)
    assert set(re.findall(r"^  --(\w+)  ", section, re.M)) == fields - IN_EVERY_HELP
    assert (
        f"  python -m guided_distill.main {'--' if mode == 'train' else f'--mode={mode}'}"
        in section
    )


def test_the_help_fits_a_page_and_says_where_there_is_more(whole_help):
    assert max(map(len, whole_help.splitlines())) <= 80
    assert "--helpfull" in whole_help and "<" not in whole_help
    code, told, _ = ask("--mode=sample", "--help")
    assert code == 0 and "--labels" in told and "--topology" not in told
    code, _, trouble = ask("--help", "--mode=sampel")
    assert code == 1 and "did you mean sample" in trouble


def test_sentences_go_to_the_modes_that_they_name():
    assert split_help(
        "sample, export: N (default 4). encode_data --prompts: of it. train: no."
    ) == {
        "sample": "N (default 4).",
        "export": "N (default 4).",
        "encode_data": "(with --prompts) of it.",
        "train": "no.",
    }
    assert split_help("Port: where they meet.") == {EVERY_MODE: "Port: where they meet."}
    flag = types.SimpleNamespace(name="n", help="sample: how many.")
    assert "--n  how many." in help_text([flag], "sample")
    assert "--n" not in help_text([flag], "report")
