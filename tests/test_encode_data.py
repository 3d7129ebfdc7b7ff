"""Pictures with captions, or prompts alone, as arrays: the same whoever makes them, and all told."""

import dataclasses
import io
import json
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
import text_to_latents
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from small import data_settings

from guided_distill.data.caption_lists import read_list, write_list
from guided_distill.data.captions import CLASSES, find_pictures
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedExamples
from guided_distill.jobs import encode_data
from guided_distill.sampling import encoding
from guided_distill.system.locks import hold_lock
from guided_distill.system.tensors import read_notes, read_tensors, write_tensors

pytest.importorskip("torch")

N, SIZE, LIMIT = 11, 8, 20  # pictures; their side; letters of a prompt that are read
NULL = 0.5
WORDS = ["cat", "dog", "fish", "bird", "cow", "hen", "owl", "pig", "fox", "ant", "bee"]


@dataclasses.dataclass
class StandIn:
    """A pipeline of arithmetic: latents are means of 2x2 pixels, embeddings are of the letters."""

    folder: object
    sha256: str = "1"
    num_cut: int = 0
    image_shape = (SIZE, SIZE, 3)
    latent_shape = (4, 4, 2)
    encoded = 0  # pictures, by all of them

    @classmethod
    def load(cls, folder):
        return cls(folder)

    @property
    def null(self):
        if self.folder.name == "classes":
            return {"labels": np.asarray(10)}
        return {"text": np.full((3, 5), NULL, np.float32), "pooled": np.full(6, NULL, np.float32)}

    def encode(self, images):
        StandIn.encoded += len(images)
        return encode(images)

    def embed(self, prompts):
        self.num_cut += sum(len(prompt) > LIMIT for prompt in prompts)
        found = [embed(prompt) for prompt in prompts]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}


def encode(images):
    x = np.asarray(images, np.float32)[..., :2] / 127.5 - 1.0
    return x.reshape(len(x), 4, 2, 4, 2, 2).mean((2, 4))


def embed(prompt):
    letters = np.asarray([ord(c) / 128 for c in prompt[:LIMIT].ljust(LIMIT)], np.float32)
    return {"text": letters[:15].reshape(3, 5), "pooled": letters[-6:]}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    text_to_latents.write_teacher(root / "text")
    text_to_latents.write_teacher(root / "classes", takes=("labels",))
    return root


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(encoding, "Pipeline", StandIn)
    StandIn.encoded = 0


def picture(k, size=SIZE):
    return np.random.default_rng(k).integers(0, 256, (size, size, 3), np.uint8)


def write_pictures(folder, n=N):
    """00.png, 01.png, … of noise; returns the folder."""
    folder.mkdir(parents=True)
    for k in range(n):
        Image.fromarray(picture(k)).save(folder / f"{k:02d}.png")
    return folder


def caption_of(k):
    return f"a {WORDS[k]}, drawn"


def with_texts(folder, n=N):
    write_pictures(folder, n)
    for k in range(n):
        (folder / f"{k:02d}.txt").write_text(caption_of(k) + "\n")
    return folder


def run(teachers, out, source=None, **changes):
    asked = {"teacher": str(teachers / "text"), "out": str(out), "shard_rows": 4, "batch_size": 3}
    asked |= {"from_": str(source)} if source else {}
    encode_data.run(encode_data.Request(**asked | changes))
    return out


def read(folder):
    """{array: [n, …]} of all shards in order."""
    shards = [read_tensors(path) for path in sorted(folder.glob("[0-9]*.safetensors"))]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def files(folder):
    """What all files of a folder hold; of tensors, how a header orders its keys says nothing."""
    found = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
    for name in found:
        if name.endswith(".safetensors"):
            tensors = read_tensors(folder / name)
            arrays = {key: (a.dtype, a.shape, a.tobytes()) for key, a in tensors.items()}
            found[name] = arrays, read_notes(folder / name)
    return found


def open_arrays(folder):
    cache = str(folder.parent / "cache")
    return open_dataset(data_settings("arrays", path=str(folder), cache=cache))


def check_all(found, order=range(N)):
    """Row i is the latent of picture order[i] and the embedding of its caption."""
    order = list(order)
    assert_allclose(found["x"], encode([picture(k) for k in order]), atol=1e-6)
    for name in ("text", "pooled"):
        assert_array_equal(found[name], np.stack([embed(caption_of(k))[name] for k in order]))


def lists(folder):
    """The captions of all shards in order."""
    texts = [path.read_text() for path in sorted(folder.glob("captions-*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def check_captions(source):
    """The caption of each example is the one that its conditioning is of."""
    captions, (_, cond) = (
        source.captions(np.arange(len(source))),
        source.read(np.arange(len(source))),
    )
    assert_array_equal(cond["text"], np.stack([embed(caption)["text"] for caption in captions]))
    return captions


def test_a_folder_of_text_files_opens_as_arrays(tmp_path, teachers, capsys):
    out = run(teachers, tmp_path / "latents", with_texts(tmp_path / "mine"))
    check_all(read(out))
    dataset = open_arrays(out)
    assert dataset.num_classes is None and dataset.image_shape == (4, 4, 2)
    assert len(dataset.train) + len(dataset.test) == N
    assert {n: a.tolist() for n, a in dataset.null.items()} == {
        n: a.tolist() for n, a in StandIn(teachers / "text").null.items()
    }
    said = capsys.readouterr().err
    assert "11 pictures, .txt files beside them" in said
    assert "11 rows in 3 shards made and 0 kept" in said
    assert "--config.data.name=arrays" in said


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_shares_together_are_the_work_of_one(tmp_path, teachers, num_processes):
    source = with_texts(tmp_path / "mine")
    alone = run(teachers, tmp_path / "alone", source)
    for process in reversed(range(num_processes)):
        if process < num_processes - 1:
            with pytest.raises(UserError, match=r"lacks \d of its 3 shards|no shards"):
                open_arrays(tmp_path / "shared")
        shared = run(teachers, tmp_path / "shared", source, shard=f"{process}/{num_processes}")
    assert files(shared) == files(alone)
    assert open_arrays(shared).train.sha256 == open_arrays(alone).train.sha256


def test_progress_counts_what_is_done_and_not_what_is_read(tmp_path, teachers, monkeypatch):
    """Else a rate between two moments is that of one picture in a batch's time."""
    said = []

    class Bar:
        def __init__(self, title, *, total, unit):
            assert total == N

        def __call__(self, done):
            said.append(done)
            assert StandIn.encoded >= done

        def close(self):
            said.append("closed")

    monkeypatch.setattr(encode_data, "Progress", Bar)
    run(teachers, tmp_path / "latents", with_texts(tmp_path / "mine"))
    assert said == [3, 4, 7, 8, 11, "closed"]


def test_a_resumed_run_makes_what_is_missing_and_nothing_else(tmp_path, teachers, capsys):
    source = with_texts(tmp_path / "mine")
    out = run(teachers, tmp_path / "latents", source)
    whole, last = files(out), out / "00002.safetensors"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("0*")}
    last.unlink()
    (out / "00002.safetensors.partial").write_bytes(b"half")  # What a killed run leaves.
    StandIn.encoded = 0
    run(teachers, out, source)
    assert StandIn.encoded == 3 and files(out) == whole
    assert all((out / n).stat().st_mtime_ns == t for n, t in before.items() if n != last.name)
    assert "11 rows in 1 shards made and 2 kept" in capsys.readouterr().err
    damaged = bytearray(last.read_bytes())
    damaged[-3] ^= 1
    for what in (damaged, damaged[:100]):
        last.write_bytes(what)
        run(teachers, out, source)
        assert files(out) == whole and "damaged" in capsys.readouterr().err


def test_captions_are_those_of_the_rows_in_either_split_and_from_a_mapped_folder(
    tmp_path, teachers
):
    out = run(teachers, tmp_path / "latents", with_texts(tmp_path / "mine"))
    assert lists(out) == [caption_of(k) for k in range(N)]
    for memory_gb in (1.0, 0.0):
        settings = data_settings("arrays", path=str(out), cache=str(tmp_path / "cache"))
        settings.memory_gb, settings.test_share = memory_gb, 0.4
        dataset = open_dataset(settings)
        found = [check_captions(source) for source in (dataset.train, dataset.test)]
        assert sorted(sum(found, [])) == sorted(lists(out)) and len(found[1]) == 4
        asked = AskedExamples(dataset.test)
        texts = [embed(caption)["text"] for caption in asked.captions(2, 9)]
        assert_array_equal(asked.read(2, 9)["text"], np.stack(texts))
        assert dataset.test.captions(np.asarray([3, 0, 3])) == [found[1][k] for k in (3, 0, 3)]


def test_captions_of_any_letters_come_back(tmp_path):
    captions = ["Größe \u2028 two", "\U0001f600", "half \ud800", "", None, 'a "b"\n']
    write_list(tmp_path / "x-7.npy", captions)
    assert read_list(tmp_path / "x-7.npy", 6) == captions
    assert (tmp_path / "captions-7.jsonl").exists()


HARMS = {
    "lacks a line": (
        lambda data: data[: data.rfind(b"\n", 0, -1) + 1],
        "holds 3 captions, and .* 4",
    ),
    "is cut": (lambda data: data[:-4], "is no list of captions"),
    "is no text": (
        lambda data: b"1\n" + data[data.find(b"\n") + 1 :],
        "line 1 must be a JSON text",
    ),
    "has another letter": (lambda data: data.replace(b"cat", b"hat"), None),
    "is missing": (None, None),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_list_is_refused_in_one_line_and_made_again(tmp_path, teachers, harm, capsys):
    source = with_texts(tmp_path / "mine")
    out = run(teachers, tmp_path / "latents", source)
    whole, path = files(out), out / "captions-00000.jsonl"
    arrays, (change, message) = read_tensors(out / "00000.safetensors"), HARMS[harm]
    data = path.read_bytes()
    if change:
        path.write_bytes(change(data))
    else:
        path.unlink()
    with pytest.raises(UserError, match="is damaged|is missing, the captions of 00000") as error:
        open_arrays(out)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    run(teachers, out, source)
    assert files(out) == whole and "it is made again" in capsys.readouterr().err
    if message:  # Beside arrays of one's own, of which no digest is noted.
        (tmp_path / "own").mkdir()
        np.savez(tmp_path / "own" / "0.npz", **arrays)
        (tmp_path / "own" / "captions-0.jsonl").write_bytes(change(data))
        with pytest.raises(UserError, match=message):
            open_arrays(tmp_path / "own")


def test_folders_and_shards_without_captions_go_on(tmp_path, teachers):
    source = with_texts(tmp_path / "mine")
    out = run(teachers, tmp_path / "latents", source)
    shard = out / "00001.safetensors"  # As earlier versions wrote it.
    notes = {k: v for k, v in read_notes(shard).items() if k in ("origin", "facts")}
    write_tensors(shard, read_tensors(shard), notes)
    (out / "captions-00001.jsonl").unlink()
    before = shard.stat().st_mtime_ns
    run(teachers, out, source)
    assert shard.stat().st_mtime_ns == before
    dataset = open_arrays(out)
    both = [source.captions(np.arange(len(source))) for source in (dataset.train, dataset.test)]
    assert sum(both, []).count(None) == 4
    with_list = open_arrays(out).train.sha256
    for path in out.glob("captions-*"):
        path.rename(tmp_path / path.name)
    for path in out.glob("0*"):
        write_tensors(path, read_tensors(path))
    dataset = open_arrays(out)
    assert dataset.train.captions(np.arange(2)) == [None, None]
    assert dataset.train.sha256 == with_list


def test_a_share_is_the_work_of_one_process_at_a_time(tmp_path, teachers):
    source, out = with_texts(tmp_path / "mine"), tmp_path / "latents"
    run(teachers, out, source, shard="1/2")
    with hold_lock(out / encode_data.LOCKS / "0-of-2", on_taken=None):
        run(teachers, out, source, shard="1/2")
        with pytest.raises(UserError, match="share 0/2 is in use by process"):
            run(teachers, out, source, shard="0/2")
    check_all(read(run(teachers, out, source, shard="0/2")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dtype="bfloat16"), "was begun otherwise .*dtype float32 there, bfloat16 now"),
        (dict(shard_rows=5), "shard_rows 4 there, 5 now"),
        (dict(max_value=4095), "max_value 0 there, 4095 now"),
    ],
)
def test_other_settings_do_not_go_on(tmp_path, teachers, changes, message):
    source = with_texts(tmp_path / "mine")
    out = run(teachers, tmp_path / "latents", source)
    with pytest.raises(UserError, match=message):
        run(teachers, out, source, **changes)


def test_other_pictures_do_not_go_on(tmp_path, teachers):
    source = with_texts(tmp_path / "mine")
    out = run(teachers, tmp_path / "latents", source)
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(source / "05.png")
    with pytest.raises(UserError, match=r"00001.safetensors was made of other pictures"):
        run(teachers, out, source)
    (out / "00001.safetensors").unlink()
    assert_allclose(read(run(teachers, out, source))["x"][5], -1.0, atol=1e-6)
    (source / "05.txt").write_text("another")
    with pytest.raises(UserError, match="was begun otherwise .examples"):
        run(teachers, out, source)


def test_a_folder_of_something_else_is_not_written_to(tmp_path, teachers):
    out = text_to_latents.write_latents(tmp_path / "latents")
    with pytest.raises(UserError, match="holds shards of another origin"):
        run(teachers, out, with_texts(tmp_path / "mine"))
    for inner in (tmp_path / "mine" / "latents", tmp_path):
        with pytest.raises(UserError, match="lie in one another"):
            run(teachers, inner, tmp_path / "mine")


def write_table(folder, name):
    write_pictures(folder)
    order = np.random.default_rng(0).permutation(N)
    file, text = ("file_name", "text") if name == "metadata.jsonl" else ("image", "prompt")
    if name.endswith(".jsonl"):
        rows = [json.dumps({text: caption_of(k), file: f"{k:02d}.png"}) for k in order]
    else:
        rows = [f"{file},{text}", *(f'{k:02d}.png,"{caption_of(k)}"' for k in order)]
    (folder / name).write_text("\n".join(rows))
    return folder


def write_tars(folder, captions="txt"):
    folder.mkdir()
    for k, part in enumerate(np.array_split(np.arange(N), 2)):
        with tarfile.open(folder / f"{k}.tar", "w") as archive:
            for i in reversed(part):
                text = caption_of(i)
                text = text if captions == "txt" else json.dumps({"caption": text, "id": 3})
                add(archive, f"{i:02d}.{captions}", text.encode())
                add(archive, f"{i:02d}.png", png(picture(i)))
                add(archive, f"{i:02d}.cls", b"3")
    return folder


def png(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "png")
    return data.getvalue()


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_parquet(folder, struct=True):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for k, part in enumerate(np.array_split(np.arange(N), 2)):
        data = [png(picture(i)) for i in part]
        cells = [{"bytes": d, "path": "x.png"} for d in data] if struct else data
        table = pyarrow.table({"image": cells, "text": [caption_of(i) for i in part]})
        pq.write_table(table, folder / f"{k}.parquet", row_group_size=4)
    return folder


SOURCES = {
    "captions.csv": lambda folder: write_table(folder, "captions.csv"),
    "metadata.jsonl": lambda folder: write_table(folder, "metadata.jsonl"),
    ".tar shards": write_tars,
    ".tar": lambda folder: write_tars(folder, "json"),
    ".parquet shards": write_parquet,
    ".parquet": lambda folder: write_parquet(folder, struct=False),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_of_captions_is_alike(tmp_path, teachers, kind, capsys):
    source = SOURCES[kind](tmp_path / "mine")
    check_all(read(run(teachers, tmp_path / "latents", source)))
    said = {".": "2 ", "c": "column prompt of ", "m": "column text of "}[kind[0]] + kind
    assert f"11 pictures, {said}" in capsys.readouterr().err
    alone = run(teachers, tmp_path / "again", source, shard="1/2")
    check_all(read(alone), range(4, 8))


def test_one_shard_is_a_source(tmp_path, teachers):
    source = write_tars(tmp_path / "mine") / "1.tar"
    check_all(read(run(teachers, tmp_path / "latents", source)), range(6, N))


def test_pictures_are_cropped_and_resized_as_those_of_classes_are(tmp_path, teachers):
    source = tmp_path / "mine"
    source.mkdir()
    wide = np.repeat(np.repeat(picture(1), 2, 0), 2, 1)
    wide = np.concatenate([np.zeros((16, 4, 3), np.uint8), wide, wide[:, :4]], axis=1)
    Image.fromarray(wide).save(source / "a.png")
    (source / "a.txt").write_text("a")
    found = read(run(teachers, tmp_path / "latents", source))
    assert_allclose(found["x"], encode(picture(1)[None]), atol=1e-6)


def test_splits_stay_apart(tmp_path, teachers):
    with_texts(tmp_path / "mine" / "train", 6)
    with_texts(tmp_path / "mine" / "validation", 3)
    out = run(teachers, tmp_path / "latents", tmp_path / "mine")
    check_all(read(out / "train"), range(6))
    check_all(read(out / "test"), range(3))
    dataset = open_arrays(out)
    assert (len(dataset.train), len(dataset.test)) == (6, 3) and dataset.null


@pytest.mark.parametrize("names", ["0 1 2", "ant bee cat"])
def test_class_folders_are_labels(tmp_path, teachers, names):
    for k, name in enumerate(names.split()):
        write_pictures(tmp_path / "mine" / name, 3 + k)
    asked = dict(teacher=str(teachers / "classes"))
    if "ant" in names:  # Three names say nothing of ten classes.
        with pytest.raises(UserError, match="3 classes, but .* knows 10: name class folders by"):
            run(teachers, tmp_path / "latents", tmp_path / "mine", **asked)
        return
    out = run(teachers, tmp_path / "latents", tmp_path / "mine", **asked)
    dataset = open_arrays(out)
    assert dataset.num_classes == 3 and dataset.null == {"labels": 10}
    found = read(out)
    assert found["labels"].tolist() == [0] * 3 + [1] * 4 + [2] * 5
    assert_allclose(found["x"][:3], encode([picture(k) for k in range(3)]), atol=1e-6)


def test_bfloat16_is_the_rounded_float32(tmp_path, teachers):
    source = with_texts(tmp_path / "mine")
    wide = read(run(teachers, tmp_path / "wide", source))
    out = run(teachers, tmp_path / "narrow", source, dtype="bfloat16")
    narrow = read(out)
    for name, kind in {"x": "bfloat16", "text": "float32", "pooled": "float32"}.items():
        assert narrow[name].dtype == kind
        assert_array_equal(narrow[name], wide[name].astype(jnp.dtype(kind)))
    dataset = open_arrays(out)
    assert dataset.null["text"].dtype == np.float32
    x, _ = dataset.train.read(np.arange(2))
    assert x.dtype == jnp.bfloat16


def write_prompts(path, n=N):
    path.write_text("".join(f"{caption_of(k)}\n" for k in range(n)))
    return str(path)


def test_prompts_alone_are_drawn_by_the_teacher(tmp_path, teachers):
    """x of each is what guided sampling gives at its own index, whoever draws it."""
    asked = dict(prompts=write_prompts(tmp_path / "prompts.txt"), num_steps=5, w=(2.0,), seed=3)
    alone = run(teachers, tmp_path / "alone", **asked)
    for process in range(2):
        shared = run(teachers, tmp_path / "shared", **asked, shard=f"{process}/2")
    assert files(shared) == files(alone)
    found = read(alone)
    assert_array_equal(found["text"][3], embed(caption_of(3))["text"])
    assert lists(shared) == [caption_of(k) for k in range(N)]
    assert np.unique(found["x"][:, 0, 0, 0]).size == N
    for changes in (dict(seed=4), dict(w=(3.0,)), dict(num_steps=4)):
        with pytest.raises(UserError, match=f"was begun otherwise .*{next(iter(changes))} "):
            run(teachers, alone, **asked | changes)
        other = run(teachers, tmp_path / f"{next(iter(changes))}", **asked | changes, shard="2/3")
        assert not np.allclose(read(other)["x"], found["x"][8:])
    assert len(open_arrays(alone).train) == 10


def test_a_longer_list_of_prompts_begins_alike(tmp_path, teachers):
    few = run(teachers, tmp_path / "few", prompts=write_prompts(tmp_path / "a.txt", 5), num_steps=2)
    many = run(teachers, tmp_path / "many", prompts=write_prompts(tmp_path / "b.txt"), num_steps=2)
    assert_allclose(read(few)["x"], read(many)["x"][:5], atol=1e-6)


def test_prompts_that_are_cut_are_counted(tmp_path, teachers, capsys):
    (tmp_path / "prompts.txt").write_text("short\n" + "long " * 9 + "\nshort too\n")
    run(teachers, tmp_path / "out", prompts=str(tmp_path / "prompts.txt"), num_steps=2)
    assert "3 rows in 1 shards made and 0 kept; 1 captions cut" in capsys.readouterr().err
    run(teachers, tmp_path / "out", prompts=str(tmp_path / "prompts.txt"), num_steps=2)
    assert "3 rows in 0 shards made and 1 kept; 1 captions cut" in capsys.readouterr().err


def test_empty_prompts_are_missing(tmp_path, teachers, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\nb\n  \n")
    asked = dict(prompts=str(path), num_steps=2)
    with pytest.raises(
        UserError, match=r"2 of 4 lines are empty: line 2, line 4: .*`skip_missing`"
    ):
        run(teachers, tmp_path / "out", **asked)
    out = run(teachers, tmp_path / "out", **asked, skip_missing=True)
    assert len(read(out)["x"]) == 2 and "left out: 2 of 4" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["txt", "csv", "tar"])
def test_missing_captions_and_pictures_are_counted(tmp_path, teachers, kind, capsys):
    source = tmp_path / "mine"
    if kind == "tar":
        source.mkdir()
        with tarfile.open(source / "a.tar", "w") as archive:
            for k in range(6):
                add(archive, f"{k:02d}.png", png(picture(k)))
            for k, text in {0: "a", 1: " ", 2: "c", 9: "none"}.items():
                add(archive, f"{k:02d}.txt", text.encode())
    else:
        write_pictures(source, 6)
        if kind == "txt":
            for k, text in {0: "a", 1: " ", 2: "c", 9: "none"}.items():
                (source / f"{k:02d}.txt").write_text(text)
        else:
            (source / "metadata.csv").write_text(
                "file_name,text\n00.png,a\n01.png,\n02.png,c\n09.png,none\n"
            )
    message = r"4 of 6 pictures have no caption: .*01.*; 1 captions have no picture: .*09"
    with pytest.raises(UserError, match=message):
        run(teachers, tmp_path / "latents", source)
    out = run(teachers, tmp_path / "latents", source, skip_missing=True)
    assert_allclose(read(out)["x"], encode([picture(0), picture(2)]), atol=1e-6)
    assert "left out: 4 of 6" in capsys.readouterr().err


def test_broken_pictures_are_all_named_and_what_is_whole_is_kept(tmp_path, teachers, capsys):
    source = with_texts(tmp_path / "mine")
    for k in (1, 9):
        (source / f"{k:02d}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2 of 11 pictures cannot be used: 01.png: .*; 09.png: .*"):
        run(teachers, tmp_path / "latents", source)
    assert [p.name for p in (tmp_path / "latents").glob("0*")] == ["00001.safetensors"]
    Image.fromarray(picture(1)).save(source / "01.png")  # Mended.
    out = run(teachers, tmp_path / "latents", source, skip_broken=True)
    check_all(read(out), [k for k in range(N) if k != 9])
    assert lists(out) == [caption_of(k) for k in range(N) if k != 9]
    assert "1 broken pictures left out: 09.png" in capsys.readouterr().err
    for k in range(4):
        (source / f"{k:02d}.png").write_bytes(b"no picture")
    out = run(teachers, tmp_path / "other", source, skip_broken=True)
    check_all(read(out), [4, 5, 6, 7, 8, 10])
    assert len(open_arrays(out).train) == 5


def test_sixteen_bits_without_a_range_are_refused_before_they_are_black(tmp_path, teachers):
    source = with_texts(tmp_path / "mine", 3)
    for k in range(3):
        Image.fromarray(picture(k)[..., 0].astype(np.uint16) * 16).save(source / f"{k:02d}.png")
    with pytest.raises(UserError, match=r"set `max_value` to what is white"):
        run(teachers, tmp_path / "latents", source)
    out = run(teachers, tmp_path / "latents", source, max_value=4080)
    grey = [np.repeat(picture(k)[..., :1], 3, -1) for k in range(3)]
    assert_allclose(read(out)["x"], encode(grey), atol=1e-6)


def write_twice(folder):
    write_pictures(folder, 2)
    (folder / "captions.csv").write_text("file,text\n00.png,a\n./00.png,b\n01.png,c\n")


def write_shared_text(folder):
    with_texts(folder, 2)
    Image.fromarray(picture(0)).save(folder / "00.jpg")


def write_cut_tar(folder):
    write_tars(folder)
    data = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(data[: 512 * 4])


def write_double_key(folder):
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for name in ("a.png", "a.jpg", "a.txt"):
            add(archive, name, png(picture(0)) if "txt" not in name else b"a")


def write_columns(folder):
    write_pictures(folder, 2)
    (folder / "captions.csv").write_text("file,words\n00.png,a\n01.png,c\n")


def write_two_tables(folder):
    write_table(folder, "captions.csv")
    (folder / "metadata.jsonl").write_text("{}")


def write_tar_and_pictures(folder):
    write_tars(folder)
    Image.fromarray(picture(0)).save(folder / "a.png")


def write_several(folder):
    write_pictures(folder, 1)
    (folder / "captions.jsonl").write_text('{"file": "00.png", "text": ["a", "b"]}')


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_pictures, "pictures and no captions: it takes captions.csv, .* a .txt beside"),
        (lambda folder: folder.mkdir(), "holds no pictures"),
        (lambda folder: None, "is no folder of pictures"),
        (write_twice, "row 2 names ./00.png again"),
        (write_shared_text, "00.txt is the caption of 2 pictures"),
        (write_cut_tar, "0.tar is cut short"),
        (write_double_key, "0.tar holds a twice"),
        (write_columns, "row 1 must have a column of file_name or image and one of text or cap"),
        (write_two_tables, r"says more than once .*captions.csv, metadata.jsonl"),
        (write_tar_and_pictures, r"says more than once .*0.tar, a.png"),
        (write_several, r"row 1: the caption must be one text, got \['a', 'b'\]"),
    ],
)
def test_bad_sources_are_one_line(tmp_path, teachers, write, message):
    write(tmp_path / "mine")
    with pytest.raises(UserError, match=message):
        run(teachers, tmp_path / "latents", tmp_path / "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(teacher=""), "`teacher` is missing"),
        (dict(out=""), "`out` is missing"),
        (dict(from_=""), "neither is given"),
        (dict(prompts="x.txt"), "both are given"),
        (dict(w=(1.0,)), "`w` means something to prompts, .* alone"),
        (dict(seed=1), "`seed` means something to prompts"),
        (dict(dtype="float16"), "`dtype` must be float32 or bfloat16, got float16"),
        (dict(shard="64/64"), "`shard` must be a process and their number, 0/64 to 63/64, got 64/64"),
        (dict(shard="3"), "`shard` must be"),
        (dict(batch_size=0), "`batch_size` must be at least 1"),
        (dict(from_="", prompts="x.txt", skip_broken=True), "`skip_broken` means something to pict"),
        (dict(from_="", prompts="x.txt"), "`prompts` x.txt cannot be read"),
        (dict(from_="", prompts="README.md", num_steps=3), "`num_steps` must divide .* take 2, 4, 5|1, 2, 4"),
        (dict(from_="", prompts="README.md", w=(1.0, 2.0)), "`w` must be one weight"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(tmp_path, teachers, changes, message):
    with pytest.raises(UserError, match=message):
        run(teachers, **dict(out=tmp_path / "latents", source=tmp_path / "mine") | changes)


def test_a_teacher_of_classes_takes_no_prompts(tmp_path, teachers):
    asked = dict(teacher=str(teachers / "classes"), prompts=write_prompts(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="is conditioned on labels, not on prompts"):
        run(teachers, tmp_path / "latents", **asked)
    with pytest.raises(UserError, match="has no class folders"):
        find_pictures(write_pictures(tmp_path / "mine"), CLASSES)


def test_what_is_not_finite_is_named(tmp_path, teachers, monkeypatch):
    monkeypatch.setattr(StandIn, "encode", lambda self, x: encode(x) / (x[:, :1, :1, :1] != 77))
    source = with_texts(tmp_path / "mine", 5)
    image = picture(4)
    image[0, 0, 0] = 77
    Image.fromarray(image).save(source / "04.png")
    with pytest.raises(UserError, match="'x' of 04.png is not finite"), np.errstate(all="ignore"):
        run(teachers, tmp_path / "latents", source)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, teachers, monkeypatch):
    source = write_parquet(tmp_path / "mine")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow: pip install pyarrow"):
        run(teachers, tmp_path / "latents", source)
