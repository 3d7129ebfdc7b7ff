"""Whole runs on real digits: finished, stopped in every way, resumed, and asked wrong things."""

import concurrent.futures
import errno
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, command, compilations, environment, params_hashes
from PIL import Image
from small import data_settings

import guided_distill
from guided_distill.data.pixels import to_uint8
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError, describe_trouble
from guided_distill.jobs import evaluate, reference_stats
from guided_distill.jobs import sample as sampling
from guided_distill.jobs.measure_images import measure_images
from guided_distill.jobs.train import train
from guided_distill.run import settings
from guided_distill.run.costs import evaluation_calls
from guided_distill.run.settings import read_config
from guided_distill.run.stages import plan_stages
from guided_distill.sampling.sampler import read_labels
from guided_distill.system import workdir as workdir_module
from guided_distill.system.files import read_json, save_params
from guided_distill.system.workdir import FinishedStage, StageFolder

HOLD = """
import time
from guided_distill.system.locks import hold_lock
with hold_lock({path!r}, on_taken=None):
    print("held", flush=True)
    time.sleep(600)
"""
# The program, where a signal is heeded though the tests were started under nohup.
HEEDING = """
import runpy, signal
signal.signal({signum}, signal.SIG_DFL)
runpy.run_module("guided_distill.main", run_name="__main__", alter_sys=True)
"""
STAGES = ["teacher", "step_one", *(f"step_two/deterministic/{n:04d}" for n in (8, 4, 2, 1))]


def tiny_config():
    """The smoke run, smaller still: four rounds from 16 steps."""
    config = guided_distill.load_config(f"{ROOT / 'configs' / 'digits.py'}:smoke")
    with config.ignore_type():
        config.step_two.start_steps = 16
        config.step_two.rounds = config.step_two.rounds[1:]
        config.evaluation.num_steps = (1, 4)
    config.model.channel_mults = (1,)
    config.model.attention_resolutions = ()
    config.teacher.num_updates = 12
    config.step_one.num_updates = 6
    for one_round in config.step_two.rounds:
        one_round.num_updates = 4
    config.log_every = config.checkpoint_every = 2
    config.evaluation.num_samples = 40
    config.evaluation.batch_size = 40
    config.evaluation.classifier_updates = 20
    return config


def train_counting_compilations(workdir):
    """Runs the tiny config; names of everything that was compiled."""
    with compilations() as names:
        train(tiny_config(), workdir)
    return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, names of everything compiled) of a finished tiny run."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train_counting_compilations(workdir)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may spoil."""
    return pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))


def hashes(workdir):
    """params_sha256 of every stage of the tiny run, None where it is not finished."""
    return params_hashes(workdir, STAGES)


def test_a_plan_counts_the_network_calls_of_the_evaluation(finished):
    config = settings.read_config(finished[0])
    rows = read_json(finished[0] / "report" / "results.json")["rows"]
    calls = sum(row["network_calls"] * config.evaluation.num_samples for row in rows)
    assert evaluation_calls(config, plan_stages(config)) == calls


def test_each_update_is_compiled_exactly_once_over_all_rounds(finished):
    _, names = finished
    for update in ("update_teacher", "update_step_one", "update_deterministic"):
        assert names.count(update) == 1, (update, names.count(update))
    # One sampler for the guided pair and one for every student, whatever N.
    assert names.count("sample") == 2


def test_every_stage_leaves_its_params_and_its_record(finished):
    workdir, _ = finished
    parents = [None, *hashes(workdir).values()]
    for stage, parent in zip(STAGES, parents, strict=False):
        record = json.loads((workdir / stage / "stage.json").read_text())
        assert (workdir / stage / "params").is_dir() and (workdir / stage / "checkpoints").is_dir()
        assert record["parent_sha256"] == parent
        assert record["data"] == "digits" and len(record["data_sha256"]) == 64
        assert record["seconds"] > 0 and record["config"]["seed"] == record["seed"] == 0
        assert record["schedule"] == {"name": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
        assert record["w_range"] == (None if stage == "teacher" else [0.0, 4.0])
    assert record["num_steps"] == 1 and record["algorithm"] == "deterministic"


def test_report_holds_a_row_for_every_contender(finished):
    workdir, _ = finished
    results = json.loads((workdir / "report" / "results.json").read_text())
    rows = {(row["model"], row["num_steps"], row["w"]): row for row in results["rows"]}
    few = [("student", n) for n in (1, 4)] + [("ddim", n) for n in (1, 2, 4, 8, 16)]
    expected = {(m, n, w) for m, n in [("teacher", 16), ("step_one", 16), *few] for w in (0.0, 2.0)}
    assert set(rows) == expected
    assert rows["ddim", 4, 0.0]["network_calls"] == 8
    assert rows["student", 4, 0.0]["network_calls"] == 4
    assert rows["teacher", 16, 2.0]["rmse_to_teacher"] == 0.0
    assert rows["student", 1, 2.0]["rmse_to_step_one"] > 0
    for row in rows.values():
        assert row["n"] == 40 and np.isfinite([row["fid"], row["is"], row["accuracy"]]).all()
        assert row["features"] == results["provenance"]["features"]
    assert results["provenance"]["params_sha256"]["teacher"] == hashes(workdir)["teacher"]
    report = (workdir / "report" / "report.md").read_text()
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", report):
        with Image.open(workdir / "report" / picture) as image:
            assert image.size[0] > 300
    assert len(list((workdir / "samples").glob("*.png"))) == len(STAGES)
    assert list((workdir / "metrics").iterdir())


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
    workdir, _ = finished
    before = hashes(workdir)
    written = (workdir / "report" / "results.json").stat().st_mtime_ns
    capsys.readouterr()
    train(tiny_config(), workdir)
    assert "this run is finished" in capsys.readouterr().err
    assert hashes(workdir) == before
    assert (workdir / "report" / "results.json").stat().st_mtime_ns == written


def test_another_config_is_refused_with_the_keys_that_differ(finished):
    config = tiny_config()
    config.teacher.num_updates = 13
    config.model.width = 12
    with pytest.raises(UserError, match=r"model.width: 8 there, 12 here; teacher.num_updates: 12"):
        train(config, finished[0])


def test_evaluation_settings_may_change_and_params_are_read_once(copied, monkeypatch):
    config, read = tiny_config(), []
    load = workdir_module.load_params

    def load_params(folder, sha256):
        read.append(pathlib.Path(folder).parent.relative_to(copied).as_posix())
        return load(folder, sha256)

    monkeypatch.setattr(workdir_module, "load_params", load_params)
    config.evaluation.num_samples = 20
    assert evaluate.evaluate(config, copied)
    assert sorted(read) == sorted(STAGES)  # Over rows, gaps of rounds and pictures.
    results = json.loads((copied / "report" / "results.json").read_text())
    assert {row["n"] for row in results["rows"]} == {20}


def test_damaged_params_are_restored_from_the_checkpoint(copied, capsys):
    before = hashes(copied)
    shutil.rmtree(copied / "step_one" / "params" / "d")
    train(tiny_config(), copied)
    assert "finishing the stage again from its checkpoint" in capsys.readouterr().err
    assert hashes(copied) == before


def test_params_that_cannot_be_read_now_are_neither_learnt_anew_nor_replaced(copied, monkeypatch):
    """The reader fails and so does every file, as where descriptors have run out."""
    files = sorted((copied / "step_one" / "params").rglob("*"))
    before = [(path, path.stat().st_mtime_ns) for path in files]

    def no_more(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("guided_distill.system.files.open", no_more, raising=False)
    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointer.restore", no_more)
    with pytest.raises(UserError, match="cannot be read .*nothing was changed"):
        train(tiny_config(), copied)
    assert [(path, path.stat().st_mtime_ns) for path in files] == before


def test_a_round_resumed_half_way_ends_the_same_and_compiles_once(copied):
    before = hashes(copied)
    half_way = copied / STAGES[3]
    shutil.rmtree(half_way / "params")
    (half_way / "stage.json").unlink()
    shutil.rmtree(half_way / "checkpoints" / "4")
    for later in STAGES[4:]:
        shutil.rmtree(copied / later)
    names = train_counting_compilations(copied)
    assert hashes(copied) == before
    assert names.count("update_deterministic") == 1 and "update_teacher" not in names


def test_a_stage_can_learn_from_another_workdir(finished, tmp_path):
    source, _ = finished
    train(
        tiny_config(), tmp_path, stage="step_two/0004",
        teacher=source / "step_two" / "deterministic" / "0008",
    )  # fmt: skip
    stage = STAGES[3]
    assert hashes(tmp_path)[stage] == hashes(source)[stage]
    with pytest.raises(UserError, match="a student of 2 steps needs a teacher of 4, .* has 8"):
        train(
            tiny_config(), tmp_path, stage="step_two/0002",
            teacher=source / "step_two" / "deterministic" / "0008",
        )  # fmt: skip
    with pytest.raises(UserError, match="holds no finished stage"):
        train(tiny_config(), tmp_path / "new", stage="step_one")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = tiny_config()
    config.teacher.learning_rate = 1e30
    with pytest.raises(UserError, match=r"(loss|grad_norm) is (nan|inf) at update \d+"):
        train(config, tmp_path)
    assert hashes(tmp_path)["teacher"] is None


def sample(workdir, out, **kwargs):
    kwargs = dict(w=(2.0,), n=6, batch_size=8) | kwargs
    sampling.run(sampling.Request(str(workdir), out=str(out), **kwargs))
    return np.load(out) if str(out).endswith(".npz") else out


def test_samples_are_arrays_or_a_image(finished, tmp_path):
    workdir, _ = finished
    arrays = sample(workdir, tmp_path / "x.npz", labels=[3, 5])
    assert arrays["samples"].shape == (6, 8, 8, 1) and arrays["samples"].dtype == np.float32
    assert np.abs(arrays["samples"]).max() <= 1.0
    assert arrays["labels"].tolist() == [3, 5, 3, 5, 3, 5] and arrays["labels"].dtype == np.int32
    again = sample(workdir, tmp_path / "y.npz", labels=[3, 5], batch_size=16)
    np.testing.assert_allclose(again["samples"], arrays["samples"], atol=1e-5)
    with Image.open(sample(workdir, tmp_path / "a" / "grid.png", n=64)) as picture:
        command = shlex.split(picture.text["Command"])
        assert picture.width >= 10 * 64 and picture.height >= 7 * 64  # a column per class
    flags = f"--workdir={workdir} --w=2 --n=64 --out={tmp_path / 'a' / 'grid.png'} --batch_size=8"
    assert command[:4] == ["python", "-m", "guided_distill.main", "--mode=sample"]
    assert command[4:] == flags.split()


def test_weights_share_the_samples_on_the_same_noise(finished, tmp_path):
    workdir, _ = finished
    arrays = sample(workdir, tmp_path / "x.npz", stage="teacher", w=[0.0, 4.0], n=8)
    assert arrays["w"].tolist() == [0.0] * 4 + [4.0] * 4
    assert arrays["labels"].tolist() == [0, 1, 2, 3] * 2
    alone = sample(workdir, tmp_path / "y.npz", stage="teacher", w=[4.0], n=4)
    np.testing.assert_allclose(arrays["samples"][4:], alone["samples"], atol=1e-5)


def test_a_workdir_that_another_run_writes_is_refused(tmp_path):
    """Until that run has ended, however it ended."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(path=str(tmp_path / "lock"))], stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    run = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert run.returncode == 1 and f"is in use by process {other.pid} on" in run.stderr
    other.kill()
    other.wait()
    run = subprocess.run(
        command(tmp_path, "--stage=step_two"), capture_output=True, text=True
    )  # Goes on to the next check: step two has no teacher here.
    assert run.returncode == 1 and "in use" not in run.stderr


def test_programs_sample_as_the_command_line_does(finished, tmp_path):
    workdir, _ = finished
    sampler = guided_distill.Sampler.load(workdir, num_steps=4)
    assert "N = 4; ddim; w in [0, 4]; 10 classes" in repr(sampler)
    arrays = sample(workdir, tmp_path / "x.npz", labels=[3, 5], seed=7)
    np.testing.assert_array_equal(sampler.draw([3, 5] * 3, 2.0, seed=7), arrays["samples"])
    images = sampler([3, 5], w=[2.0, 2.0], seed=7)
    assert images.dtype == np.uint8 and images.shape == (2, 8, 8, 1)
    assert np.abs(images.astype(int) - to_uint8(arrays["samples"][:2])).max() <= 1
    assert sampler([]).shape == (0, 8, 8, 1)
    same = sampler.draw([1, 1], indices=[4, 4])
    np.testing.assert_array_equal(same[0], same[1])


def test_a_range_that_ends_at_an_odd_weight_holds_its_own_end(finished):
    """0.3 as float32 lies above 0.3."""
    stage = StageFolder(finished[0] / "step_one").finished()
    for w in (0.1, 0.3, 0.7, 1.1):
        record = stage.record | {"w_range": [w, w]}
        sampler = guided_distill.Sampler(FinishedStage(stage.path, record, stage.params), 1)
        assert sampler([3], w=w).shape == (1, 8, 8, 1)
        with pytest.raises(UserError, match="trained range"):
            sampler([3], w=w + 1e-6)


def test_where_names_are_numbers_a_number_is_a_name():
    numbered = {"class_names": ["1", "2", "10"]}
    assert read_labels([1, "2", 10], numbered) == read_labels(["1", 2, "10"], numbered) == [0, 1, 2]
    with pytest.raises(UserError, match="label 0 is none of the classes 1, 2, 10"):
        read_labels([0], numbered)
    assert read_labels([1, "cat"], {"class_names": ["ant", "bee", "cat"]}) == [1, 2]
    assert read_labels([1, "7"], {"class_names": []}) == [1, 7]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((3,), {}, r"labels must be a list, such as \[3, 5\], got 3"),
        (("35",), {}, r"labels must be a list, .* got '35'"),
        (([3, 5],), dict(w=[1.0, 1.0, 1.0]), r"w must be one number or 2, .* got \(3,\)"),
        (([3, 5],), dict(indices=[0]), r"indices must be one number or 2"),
        (([3],), dict(seed=1.5), r"`seed` must be an integer .* got 1.5"),
        (([3],), dict(seed=2**32), r"`seed` must be an integer of 0 to 4294967295"),
    ],
)
def test_calls_that_mean_nothing_are_refused(finished, args, kwargs, message):
    sampler = guided_distill.Sampler.load(finished[0], num_steps=1)
    with pytest.raises(UserError, match=message):
        sampler(*args, **kwargs)


def test_parameters_that_are_not_finite_are_named(copied):
    stage = StageFolder(copied / "step_one")
    finished = stage.finished()
    params = jax.tree.map(np.array, finished.params)
    params["conv_in"]["bias"][0] = np.nan
    with pytest.raises(UserError, match="step_one: what it learnt is not finite"):
        stage.finish(params, finished.record)
    sha256 = save_params(stage.path / "params", params)
    broken = FinishedStage(stage.path, finished.record | {"params_sha256": sha256})
    with pytest.raises(UserError, match="step_one/params is not finite: .* diverged"):
        _ = broken.params


def test_samplers_compile_once_for_each_power_of_two(finished):
    sampler = guided_distill.Sampler.load(finished[0], num_steps=2, max_batch_size=32)
    with compilations() as names:
        for n, w, seed in ((9, 0.0, 0), (16, 2.0, 1), (12, 4.0, 2), (32, 1.0, 3), (100, 1.0, 3)):
            assert len(sampler(np.arange(n) % 10, w=w, seed=seed)) == n
    assert names.count("sample") == 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_steps=3), r"`num_steps` 3 was never distilled; distilled to: 1, 2, 4, 8"),
        (dict(num_steps=0), r"`num_steps` must be at least 1, got 0"),
        (dict(w=[5.0]), r"w must lie in the trained range \[0, 4\], got 5"),
        (dict(w=[-1.0], stage="teacher"), r"w must lie in the trained range \[0, inf\]"),
        (dict(w=[float("nan")]), r"w must lie in the trained range"),
        (dict(labels=[10]), r"labels must lie in 0 to 9, got 10"),
        (dict(labels=[-1]), r"labels must lie in 0 to 9, got -1"),
        (dict(n=0), r"`n` must be at least 1, got 0"),
        (dict(n=1, w=[0.0, 1.0]), r"`n` 1 does not divide over the 2 weights of `w`: take 2"),
        (
            dict(stage="step_three"),
            r"`stage` step_three is none of teacher, step_one, step_two/deterministic",
        ),
        (dict(batch_size=0), r"`batch_size` must be at least 1, got 0"),
        (dict(seed=-1), r"`seed` must be an integer of 0 to 4294967295, got -1"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(finished, tmp_path, kwargs, message):
    with pytest.raises(UserError, match=message):
        sample(finished[0], tmp_path / "x.npz", **kwargs)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("out", ["", "grid.pgn", "folder/", "file/grid.png", "here.png"])
def test_outputs_that_cannot_be_written_are_refused(finished, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "here.png").mkdir()
    monkeypatch.setattr(guided_distill.Sampler, "load", None)  # Before anything is computed.
    with pytest.raises(UserError, match="`out`"):
        sample(finished[0], out)


def test_a_report_that_was_removed_is_written_again(copied):
    (copied / "report" / "index.html").unlink()
    config = tiny_config()
    assert evaluate.evaluate(config, copied) and (copied / "report" / "index.html").exists()
    assert not evaluate.evaluate(config, copied)


def test_damaged_pictures_are_drawn_again_with_a_word(copied, capsys):
    pictures = [copied / "samples" / "teacher.png", copied / "report" / "trade_off.png"]
    whole = [path.read_bytes() for path in pictures]
    for path, content in zip(pictures, whole, strict=True):
        path.write_bytes(content[:-200])
    (copied / "samples" / "step_one.png").unlink()
    train(tiny_config(), copied)
    said = capsys.readouterr().err
    assert "teacher.png is damaged" in said and "trade_off.png is missing or damaged" in said
    assert [path.read_bytes() for path in pictures] == whole
    assert (copied / "samples" / "step_one.png").exists()


def test_empty_workdirs_are_refused(tmp_path):
    with pytest.raises(UserError, match="distilled to: none yet"):
        sample(tmp_path, tmp_path / "x.npz")
    with pytest.raises(UserError, match="holds no run"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="holds no finished student"):
        evaluate.evaluate(tiny_config(), tmp_path)
    (tmp_path / "config.json").write_text('{"step_two": {"rounds": []}}')
    with pytest.raises(UserError, match="config.json was written by an earlier version"):
        read_config(tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "stage.json").write_text('{"parent": null}')
    with pytest.raises(UserError, match="teacher was written by an earlier version: train it anew"):
        evaluate.evaluate(tiny_config(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.step_two.rounds[0].num_step=4"], r"step_two.rounds\[0\].num_steps\?"),
        (
            ["--config.step_two.rounds[9].num_steps=4"],
            r"a round that step_two.rounds does not have",
        ),
        (["--config.step_two.rounds[0].num_steps=7"], r"must divide the teacher's 8 .*, got 7"),
        (["--config.seed=one"], r"--config.seed=one"),
        (["--mode=trian"], r"--mode=trian"),
        (["--work_dir=x"], r"unknown flag --work_dir \(did you mean workdir\?\)"),
        (["extra"], r"unexpected argument extra"),
        (["--mode=sample", "--out=x.png", "--w=two"], r"--w takes numbers .* got 'two'"),
        (["--mode=sample", "--out=x.png", "--w="], r"--w is empty: name one or more"),
        (["--mode=report", "--workdir=,"], r"--workdir is missing: name the run's folder"),
        (["--seed=7"], r"--seed means nothing to --mode=train: its config key is seed or evalu"),
        (["--mode=sample", "--out=x.png", "--weights=y"], r"--weights means nothing to --mode=sam"),
        (["--config=nowhere.py"], r"there is no nowhere.py$"),
        (
            ["--config=configs/digts.py:smoke"],
            r"no configs/digts.py \(did you mean configs/digits.py",
        ),
        (["--config=digits.py"], r"there is no digits.py \(did you mean configs/digits.py\?\)"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path, arguments, message):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    result = subprocess.run(
        command(tmp_path / "run", *arguments), env=environment(),
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert re.search(message, lines[0])
    assert not (tmp_path / "run").exists()


def test_versions_are_said_in_one_line(tmp_path):
    main = [sys.executable, "-m", "guided_distill.main", "--version"]
    said = subprocess.run(main, env=environment(), capture_output=True, text=True, check=True)
    assert f"guided_distill {guided_distill.__version__}, jax {jax.__version__}" in said.stdout
    assert said.stdout.count("\n") == 1


def test_the_package_shows_what_people_use():
    shown = [name for name in dir(guided_distill) if not name.startswith("__")]
    assert {"Model", "Sampler", "UserError", "distill", "load_config", "train"} <= set(shown)
    assert all(callable(getattr(guided_distill, name)) for name in shown)


def start(workdir, *arguments, **kwargs):
    return subprocess.Popen(
        command(workdir, *arguments), env=environment(), text=True, stderr=subprocess.PIPE, **kwargs
    )


def test_a_reader_that_leaves_does_not_end_a_run(tmp_path):
    """As `2>&1 | head -1` does."""
    process = start(tmp_path, "--stage=teacher", stdout=subprocess.DEVNULL)
    assert "1 x cpu, float32" in process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "teacher" / "stage.json").exists()


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_in_the_evaluation_is_said_and_it_goes_on(copied, signum):
    shutil.rmtree(copied / "evaluation")
    (copied / "report" / "results.json").unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING.format(signum=int(signum)), f"--workdir={copied}",
         "--mode=evaluate"],
        env=environment(), text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("evaluation:"):
            process.send_signal(signum)
            break
    assert "the same command goes on from here" in process.stderr.read()
    assert process.wait(timeout=60) == 128 + signum


def test_a_run_may_be_started_in_any_thread(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny_config(), tmp_path, stage="teacher").result()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk takes no more .No space left on device."),
        (OSError(errno.EROFS, "x"), "the disk takes no more .Read-only file system."),
        (ValueError("kvstore: Error writing: No space left on device\nmore"), "takes no more"),
        (OSError(errno.EIO, "x", "a/b"), r"^a/b cannot be used .Input/output error.: the same"),
        (
            ValueError("reading: Too many open files [tensorstore]\nmore"),
            "cannot be used .Too many open files",
        ),
        (RuntimeError("Unable to initialize backend 'tpu': none"), "check JAX_PLATFORMS"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, words):
    try:
        raise RuntimeError("a step failed") from error
    except RuntimeError as outer:
        assert re.search(words, describe_trouble(outer))
    assert describe_trouble(ValueError("a fault of ours")) == ""


def test_launcher_of_virtual_devices_runs_the_same_main(finished, tmp_path):
    out = tmp_path / "x.npz"
    result = subprocess.run(
        [ROOT / "launch" / "virtual_devices.sh", "2", "--mode=sample", "--num_steps=1", "--n=3",
         f"--workdir={finished[0]}", f"--out={out}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
                          "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    mine = sample(finished[0], tmp_path / "y.npz", num_steps=1, w=[1.0], n=3)
    np.testing.assert_allclose(np.load(out)["samples"], mine["samples"], atol=1e-4)


def test_tiny_config_is_a_right_config():
    settings.check_config(tiny_config())
    assert [stage.name for stage in plan_stages(tiny_config())] == STAGES


def save_digits(folder, images):
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{k:03d}.png")
    return [str(folder)]


def test_any_folder_of_images_is_measured(copied, tmp_path, capsys):
    test = open_dataset(data_settings("digits")).test
    images = save_digits(tmp_path / "mine", test.images[:60])
    out = tmp_path / "m.json"
    measure_images(tiny_config(), copied, images, out=str(out))
    row = json.loads(out.read_text())
    assert row["n"] == 60 and row["reference"]["n"] == 1500 and "accuracy" not in row
    assert "| fid" in capsys.readouterr().out
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    measure_images(tiny_config(), copied, save_digits(tmp_path / "noise", noise), out=str(out))
    assert json.loads(out.read_text())["fid"] > row["fid"]


def test_a_broken_file_is_named_and_left_out_only_on_request(copied, tmp_path, capsys):
    images = save_digits(tmp_path / "mine", open_dataset(data_settings("digits")).test.images[:5])
    (tmp_path / "mine" / "002.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="002.png cannot be used: not a picture, or a broken one"):
        measure_images(tiny_config(), copied, images)
    out = tmp_path / "m.json"
    measure_images(tiny_config(), copied, images, skip_broken=True, out=str(out))
    assert json.loads(out.read_text())["n"] == 4
    assert "1 of 5 files left out: " in capsys.readouterr().err
    one = [str(tmp_path / "mine" / "000.png")]
    with pytest.raises(UserError, match="needs two or more"):
        measure_images(tiny_config(), copied, one)


def test_reference_statistics_are_a_job_of_their_own(copied, tmp_path):
    reference_stats.run(
        reference_stats.Request(tiny_config(), str(copied), str(tmp_path / "digits.npz"))
    )
    config = tiny_config()
    config.evaluation.reference_stats = str(tmp_path / "digits.npz")
    config.evaluation.num_samples = 20
    evaluate.evaluate(config, copied)
    results = json.loads((copied / "report" / "results.json").read_text())
    assert results["provenance"]["reference"]["file"] == "digits.npz"
    stage = results["provenance"]["stages"]["step_two/deterministic/0001"]
    assert stage["settings"]["step_two"]["clip_teacher"] is False and stage["seed"] == 0
    assert not evaluate.evaluate(config, copied)
    with np.load(tmp_path / "digits.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "digits.npz", **(arrays | {"mu": arrays["mu"] + 10.0}))
    assert evaluate.evaluate(config, copied)  # The same name, other contents.
    moved = json.loads((copied / "report" / "results.json").read_text())
    for row, before in zip(moved["rows"], results["rows"], strict=True):
        assert row["fid"] > before["fid"] + 100.0
    config.evaluation.reference_stats = str(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match="nowhere.npz is missing: the job reference_stats makes it"):
        evaluate.evaluate(config, copied)
