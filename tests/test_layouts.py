"""How folders are laid out and named: what is meant is read, what is unclear is refused."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_folders import classes_of, settings_of, write_images

import guided_distill
from guided_distill.data.folders import check_outside
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.jobs import evaluate, sample, translate
from guided_distill.run import settings
from guided_distill.sampling.sampler import read_labels
from guided_distill.system.files import write_json

NAMES = ("caf\u00e9", "cafz", "\u00fcber", "\u1ec7", "zebra")  # composed


def decomposed(name):
    return unicodedata.normalize("NFD", name)


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "mine"


def write_named(folder, spell):
    """Four pictures in a class of each name, the same ones for every spelling."""
    rng = np.random.default_rng(0)
    for name in map(spell, NAMES):
        (folder / name).mkdir(parents=True)
        for picture in map(spell, NAMES[:4]):
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / name / f"{picture}.png")


def test_names_are_alike_in_both_unicode_forms(tmp_path):
    """A folder that was copied through macOS has the same classes, labels, order and hash."""
    both = []
    for form, spell in {"nfc": str, "nfd": decomposed}.items():
        write_named(tmp_path / form / "mine", spell)
        both.append(open_dataset(settings_of(tmp_path / form / "mine")))
    assert both[0].class_names == both[1].class_names == tuple(sorted(NAMES))
    assert both[0].train.sha256 == both[1].train.sha256
    assert both[0].test.sha256 == both[1].test.sha256


def test_splits_may_spell_their_classes_differently(mine):
    write_images(mine / "train" / NAMES[0], 2)
    write_images(mine / "train" / "cat", 2)
    write_images(mine / "test" / decomposed(NAMES[0]), 3)
    dataset = open_dataset(settings_of(mine))
    assert dataset.class_names == (NAMES[0], "cat") and set(dataset.test.labels) == {0}


def test_two_class_folders_of_one_name_are_refused(mine):
    for name in (NAMES[0], decomposed(NAMES[0])):
        write_images(mine / name, 2)
    with pytest.raises(UserError, match=r"two class folders of one name, .*'cafe\\u0301'.*: merge"):
        classes_of(mine)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(("on_disk", "in_table"), [(str, decomposed), (decomposed, str)])
def test_tables_name_files_and_classes_in_any_form(mine, kind, on_disk, in_table):
    write_named(mine, on_disk)
    rows = [(f"{name}/{picture}.png", name) for name in NAMES for picture in NAMES[:4]]
    rows = [
        (in_table(file), (in_table if number % 2 else on_disk)(name))
        for number, (file, name) in enumerate(rows)
    ]
    if kind == "csv":
        text = "\n".join(["file,label", *(f"{file},{label}" for file, label in rows)])
    else:
        text = "\n".join(json.dumps({"file": f, "label": label}) for f, label in rows)
    (mine / f"labels.{kind}").write_text(text, "utf-8")
    dataset = open_dataset(settings_of(mine, labels=f"labels.{kind}"))
    assert dataset.class_names == tuple(sorted(NAMES))
    assert len(dataset.train) + len(dataset.test) == len(rows)


def test_a_table_that_names_one_file_in_two_forms_is_refused(mine):
    write_named(mine, str)
    file = f"{NAMES[0]}/{NAMES[0]}.png"
    for again in (decomposed(file), f"./{file}", f"{NAMES[1]}/../{file}"):
        (mine / "labels.csv").write_text(f"file,label\n{file},a\n{again},a", "utf-8")
        with pytest.raises(UserError, match="row 2 names .* again"):
            open_dataset(settings_of(mine, labels="labels.csv"))


def test_a_name_that_two_files_may_have_is_refused_unless_it_is_spelt_exactly(mine):
    mixed = "e\u0301\u00e9"  # neither form
    write_images(mine, 2)
    for number, name in enumerate((decomposed(mixed), unicodedata.normalize("NFC", mixed))):
        shutil.move(mine / f"{number}.png", mine / f"{name}.png")
    write_images(mine, 2)
    (mine / "labels.csv").write_text(f"file,label\n0.png,a\n1.png,a\n{mixed}.png,a", "utf-8")
    with pytest.raises(UserError, match="row 3 names .*, which 2 files are called in"):
        open_dataset(settings_of(mine, labels="labels.csv"))
    (mine / "labels.csv").write_text(f"file,label\n0.png,a\n{decomposed(mixed)}.png,a", "utf-8")
    assert open_dataset(settings_of(mine, labels="labels.csv")).num_classes == 1


def test_classes_are_drawn_by_name_in_any_form():
    for recorded in (NAMES, tuple(map(decomposed, NAMES))):
        for asked in (NAMES, tuple(map(decomposed, NAMES))):
            assert read_labels(list(asked), {"class_names": list(recorded)}) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="did you mean"):
        read_labels([decomposed(NAMES[0]) + "x"], {"class_names": list(NAMES)})


def sizes(folder):
    dataset = open_dataset(settings_of(folder))
    return dataset.class_names, len(dataset.train), len(dataset.test)


def test_flat_splits_are_one_class(mine, capsys):
    write_images(mine / "train", 6)
    write_images(mine / "test", 3)
    assert sizes(mine) == (("all",), 6, 3)
    assert (
        "train is learnt, test is held out, one class, for they have no" in capsys.readouterr().err
    )


def test_a_flat_test_folder_beside_classes_is_not_read(mine, capsys):
    for name in ("ant", "bee"):
        write_images(mine / "train" / name, 10)
    write_images(mine / "test", 5)
    assert sizes(mine) == (("ant", "bee"), 18, 2)
    said = "train is read; a share of it is held out; not read, without class folders: test"
    assert said in capsys.readouterr().err
    write_images(mine / "val" / "bee", 4)  # has classes: it is the one to hold out
    assert sizes(mine) == (("ant", "bee"), 20, 4)
    assert "train is learnt, val is held out; not read: test" in capsys.readouterr().err


def test_flat_pictures_to_learn_beside_held_out_classes_are_refused(mine):
    write_images(mine / "train", 6)
    write_images(mine / "test" / "ant", 3)
    with pytest.raises(UserError, match="mine/train has no class folders, .*mine/test has some"):
        classes_of(mine)


@pytest.mark.parametrize("layout", ["test/0", "test/ant", "val", "test/ant val/ant"])
def test_what_is_held_out_is_not_learnt_for_want_of_a_train_folder(mine, layout):
    for name in layout.split():
        write_images(mine / name, 3)
    write_images(mine, 4)
    with pytest.raises(UserError, match=r"holds (test|val|test, val) and no folder train beside"):
        classes_of(mine)


def test_pictures_beside_the_splits_are_counted(mine, capsys):
    for split in ("train", "test"):
        write_images(mine / split / "ant", 3)
    write_images(mine, 4)
    assert sizes(mine) == (("ant",), 3, 3)
    assert "mine: 4 files are not read" in capsys.readouterr().err


def write_run(folder):
    """A workdir, as far as it matters here: its config and pictures that a run leaves."""
    config = guided_distill.load_config(f"{ROOT / 'configs' / 'folder.py'}:smoke")
    write_json(folder / "config.json", settings.to_plain(config))
    write_images(folder / "samples", 3)
    write_images(folder / "report" / "images", 3)


@pytest.mark.parametrize("place", ["run", "runs/a", "ant/run", "ant/more/run"])
@pytest.mark.parametrize("classes", [("ant", "bee"), ("ant",), ("train/ant", "test/ant")])
def test_runs_among_the_pictures_are_no_data(mine, capsys, place, classes):
    for name in classes:
        write_images(mine / name, 6)
    before = open_dataset(settings_of(mine)).train.sha256
    place = place.replace("ant", classes[0])
    write_run(mine / place)
    capsys.readouterr()
    assert open_dataset(settings_of(mine)).train.sha256 == before
    assert "1 folders of runs are not read" in capsys.readouterr().err


def test_runs_beside_flat_pictures_are_no_classes(mine, capsys):
    write_images(mine, 6)
    for name in ("a", "b"):
        write_run(mine / "runs" / name)
    assert sizes(mine) == (("all",), 5, 1)
    assert "folders of runs are not read" in capsys.readouterr().err


def own_config(mine):
    config = guided_distill.load_config(f"{ROOT / 'configs' / 'folder.py'}:smoke")
    config.data.path, config.data.cache = str(mine), str(mine.parent / "cache")
    return config


def test_nothing_is_written_where_class_folders_are_read(mine):
    write_images(mine / "ant", 3)
    before = sorted(mine.rglob("*"))
    for place in (mine, mine / "run", mine / "ant" / "run"):
        with pytest.raises(UserError, match="`workdir` .* lies in data.path .* would become data"):
            guided_distill.train(own_config(mine), place)
        with pytest.raises(UserError, match="`workdir` .* lies in data.path"):
            evaluate.run(evaluate.Request(own_config(mine), place))
        with pytest.raises(UserError, match="`workdir` .* lies in data.path"):
            translate.run(translate.Request(own_config(mine), place))
    elsewhere = mine.parent / "run"
    write_json(elsewhere / "config.json", settings.to_plain(own_config(mine)))
    for request in (
        translate.Request(own_config(mine), elsewhere, out=str(mine / "new" / "x.png")),
        sample.Request(elsewhere, out=str(mine / "new" / "x.png")),
    ):
        with pytest.raises(UserError, match="`out` .* lies in data.path"):
            (translate if hasattr(request, "images") else sample).run(request)
    with pytest.raises(UserError, match="data.cache .* lies in data.path"):
        open_dataset(settings_of(mine, cache=str(mine / "cache")))
    assert sorted(mine.rglob("*")) == before


def test_hidden_places_and_tables_do_not_mind_what_is_written(mine):
    write_images(mine / "ant", 3)
    check_outside(settings_of(mine), mine / ".runs" / "a", "`workdir`")
    check_outside(settings_of(mine, labels="labels.csv"), mine / "run", "`workdir`")
    check_outside(settings_of(mine), mine.parent / "mine2", "`workdir`")
    (mine.parent / "link").symlink_to(mine)
    with pytest.raises(UserError, match="lies in data.path"):
        check_outside(settings_of(mine), mine.parent / "link" / "run", "`workdir`")
