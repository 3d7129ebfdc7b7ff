"""The cache of decoded pictures: whole or not there, whatever happens meanwhile."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_folders import settings_of, write_images

from guided_distill.data import cache
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.system import locks

# Reads a folder's training pictures through the cache, in a process of its own.
READ = """
import os, pathlib, resource, sys, time
sys.path.insert(0, {tests!r})
from guided_distill.data import folders
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from test_folders import settings_of
{before}
try:
    print(open_dataset(settings_of({folder!r})).train.sha256)
except UserError as error:
    sys.exit(f"error: {{error}}")
"""
NOTE_DECODES = """
decode = folders.decode_image
def slowly(file, channels, **options):
    pathlib.Path({marks!r}, f"{{os.getpid()}} {{os.path.basename(file)}}").touch()
    time.sleep(0.02)
    return decode(file, channels, **options)
folders.decode_image = slowly
"""
DIES = """
decode = folders.decode_image
def fatal(file, channels, **options):
    if str(file).endswith("50.png"):
        os.kill(os.getpid(), 9)
    return decode(file, channels, **options)
folders.decode_image = fatal
"""


@pytest.fixture
def folder(tmp_path):
    """Two classes of 60 pictures, whose decoded form takes 18 kB."""
    for name in ("ant", "bee"):
        write_images(tmp_path / "mine" / name, 60)
    return tmp_path / "mine"


def start(folder, before=""):
    code = READ.format(tests=str(pathlib.Path(__file__).parent), folder=str(folder), before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def caches(folder):
    """Folders beside `folder` that hold, or may hold, a cache."""
    return [path for path in (folder.parent / "cache").glob("*") if path.is_dir()]


def no_decoding(*args):
    raise AssertionError("decoded a picture that was in the cache")


def test_the_second_time_nothing_is_decoded(folder, monkeypatch):
    first = open_dataset(settings_of(folder)).train
    monkeypatch.setattr(cache, "write_cache", no_decoding)
    again = open_dataset(settings_of(folder)).train
    assert_array_equal(again.images, first.images)
    assert again.sha256 == first.sha256


def test_what_fits_no_memory_is_streamed_alike(folder):
    held = open_dataset(settings_of(folder)).train
    streamed = open_dataset(settings_of(folder, memory_gb=1e-6)).train
    assert held.in_memory and not streamed.in_memory
    indices = np.array([5, 0, 99, 5, 42])
    for ours, theirs in zip(streamed.read(indices), held.read(indices), strict=True):
        assert_array_equal(ours, theirs)
    assert streamed.sha256 == held.sha256 and len(streamed) == len(held)


@pytest.mark.parametrize("change", ["pixels", "another", "fewer", "class", "size"])
def test_changed_images_are_another_data_set(folder, change):
    before = open_dataset(settings_of(folder)).train.sha256
    settings = settings_of(folder)
    if change in ("pixels", "another"):
        name = "7" if change == "pixels" else "99"
        shutil.copy(write_and_return(folder.parent / "new"), folder / "ant" / f"{name}.png")
    elif change == "fewer":
        (folder / "ant" / "7.png").unlink()
    elif change == "class":
        (folder / "ant" / "7.png").rename(folder / "bee" / "99.png")
    else:
        settings = settings_of(folder, image_size=4)
    assert open_dataset(settings).train.sha256 != before


def write_and_return(folder):
    write_images(folder, 1, size=(20, 17))
    return folder / "0.png"


def test_broken_images_are_named_and_left_out_only_when_asked(folder, capsys):
    for number in (3, 30):
        (folder / "bee" / f"{number}.png").write_bytes(b"no picture")
    settings = settings_of(folder, test_share=1e-9)
    with pytest.raises(UserError, match=r"2 of 118 .*bee/3.png \(record \d+\): .*unknown format.*"
                       r"bee/30.png.*skip_broken=True"):  # fmt: skip
        _ = open_dataset(settings).train
    assert caches(folder) == []
    skipping = settings_of(folder, test_share=1e-9, skip_broken=True)
    for _ in range(2):  # The second time it comes from the cache, and is said again.
        assert len(open_dataset(skipping).train) == 116
        assert "2 broken pictures left out, 116 kept" in capsys.readouterr().err


def test_nothing_but_broken_images_is_refused(tmp_path):
    write_images(tmp_path / "mine" / "ant", 3)
    for path in (tmp_path / "mine" / "ant").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="holds no picture that can be used"):
        _ = open_dataset(settings_of(tmp_path / "mine", skip_broken=True)).train


def flip_a_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    ["flipped", "short", "labels", "no labels", "order", "record", "changed", "no record", "gone"],
)
def test_damaged_caches_are_named(folder, damage):
    settings = settings_of(folder, memory_gb=0.0)
    _ = open_dataset(settings).train
    (made,) = caches(folder)
    pictures = made / "pictures.array_record"
    if damage == "flipped":
        flip_a_byte(pictures, pictures.stat().st_size // 10)
        source = open_dataset(settings).train  # Streams do not look at every record at once.
        with pytest.raises(UserError, match=r"record \d+ of .*array_record is damaged: remove"):
            source.read(np.arange(len(source)))
        settings = settings_of(folder, memory_gb=1.0)
    elif damage == "short":
        pictures.write_bytes(pictures.read_bytes()[:2000])
    elif damage == "labels":
        flip_a_byte(made / "labels.npy", -1)
    elif damage == "no labels":
        (made / "labels.npy").write_bytes(b"")
    elif damage == "order":
        labels = (made / "labels.npy").read_bytes()
        (made / "labels.npy").write_bytes(labels.replace(b"<i4", b">i4"))
    elif damage == "record":
        (made / "record.json").write_text('{"title": ')
    elif damage == "changed":
        record = (made / "record.json").read_text()
        (made / "record.json").write_text(record.replace('"n"', '"o"'))
    elif damage == "no record":
        (made / "record.json").unlink()
    else:
        pictures.unlink()
    with pytest.raises(UserError, match="damaged: remove its folder"):
        _ = open_dataset(settings).train


def test_a_process_that_is_killed_leaves_no_half_cache(folder):
    dying = start(folder, before=DIES)
    assert dying.wait() == -9
    (half,) = caches(folder)
    assert ".partial-" in half.name
    whole = start(folder)
    assert whole.communicate()[0].strip() == open_dataset(settings_of(folder)).train.sha256
    (made,) = caches(folder)
    assert ".partial-" not in made.name


def test_two_processes_at_once_decode_once(folder, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    both = [start(folder, before=NOTE_DECODES.format(marks=str(marks))) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    decoded = [path.name.split() for path in marks.iterdir()]
    assert len({pid for pid, _ in decoded}) == 1
    assert len(caches(folder)) == 1


def test_without_locks_the_first_to_finish_wins(folder, monkeypatch):
    def no_locks(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    write = cache.write_cache

    def beaten(items, partial, *args):
        record = write(items, partial, *args)
        shutil.copytree(partial, partial.with_name(partial.name.split(".partial-")[0]))
        return record

    monkeypatch.setattr(cache, "write_cache", beaten)
    assert len(open_dataset(settings_of(folder)).train) == 108
    assert len(caches(folder)) == 1


def test_a_full_disk_is_named_and_leaves_nothing(folder, monkeypatch):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))"
    process = start(folder, before=limit)
    _, errors = process.communicate()
    assert process.returncode == 1 and "has too little space: mine train takes" in errors, errors
    assert "Traceback" not in errors
    assert caches(folder) == []
    usage = shutil.disk_usage(folder)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"too little space: .* GB decoded; free some"):
        _ = open_dataset(settings_of(folder)).train


def test_a_cache_that_cannot_be_written_is_named(folder):
    (folder.parent / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache .* cannot be written"):
        _ = open_dataset(settings_of(folder, cache=str(folder.parent / "file" / "x"))).train


def test_worker_processes_decode_alike(folder):
    from absl import flags

    flags.FLAGS([sys.argv[0]], known_only=True)  # grain asks absl for its flags.
    threads = open_dataset(settings_of(folder)).train
    cache_of_workers = str(folder.parent / "other")
    workers = open_dataset(settings_of(folder, cache=cache_of_workers, num_workers=2)).train
    assert workers.sha256 == threads.sha256
    (folder / "bee" / "3.png").write_bytes(b"no picture")
    settings = settings_of(folder, cache=cache_of_workers, num_workers=2, test_share=1e-9)
    with pytest.raises(UserError, match=r"bee/3.png \(record \d+\)"):
        _ = open_dataset(settings).train


def test_records_say_what_a_cache_is(folder):
    source = open_dataset(settings_of(folder)).train
    (made,) = caches(folder)
    record = json.loads((made / "record.json").read_text())
    assert record["sha256"] == source.sha256 and record["n"] == len(source)
    assert made.name.startswith("mine-train-")
