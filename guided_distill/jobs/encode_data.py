"""The job `encode_data`: pictures with captions, or prompts alone, as arrays to learn from."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np

from guided_distill.data.captions import (
    CAPTIONS,
    CLASSES,
    NAMED,
    Loader,
    find_pictures,
    read_prompts,
    some_of,
)
from guided_distill.data.encoded import Shelf
from guided_distill.data.images import Picture, check_range
from guided_distill.data.shards import NULL
from guided_distill.data.workers import ahead
from guided_distill.errors import UserError
from guided_distill.run.checks import check_divides
from guided_distill.sampling.encoding import Teacher
from guided_distill.sampling.sampler import check_seed
from guided_distill.system.files import local_path, output_path, tree_sha256
from guided_distill.system.locks import hold_lock
from guided_distill.system.progress import Progress, to_stderr
from guided_distill.system.tensors import read_tensors, write_tensors

DTYPES = ("float32", "bfloat16")
FEW = 16  # numbers of a row that stay float32: they take no room, and sizes in pixels need it
DRAWN = {"w": (1.0,), "num_steps": 50, "seed": 0}  # of what the teacher draws itself
OF_PICTURES = ("max_value", "skip_broken")  # and mean nothing to prompts
LOCKS = ".locks"
BUFFER = 64  # decoded pictures kept ready


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `encode_data`: the flags of these names, which `--help` explains."""

    teacher: str = ""
    from_: str = ""
    prompts: str = ""
    out: str = ""
    dtype: str = "float32"
    shard: str = "0/1"
    shard_rows: int = 1024
    batch_size: int = 16
    skip_missing: bool = False
    skip_broken: bool | None = None
    max_value: int | None = None
    w: tuple[float, ...] | None = None
    num_steps: int | None = None
    seed: int | None = None


def run(request):
    """Writes the shards of this process's share; those that are whole are left as they are."""
    process, num_processes = check_request(request)
    out = output_folder(request)
    teacher = Teacher(request.teacher, request.batch_size)
    splits = find_examples(request, teacher)
    (out / LOCKS).mkdir(parents=True, exist_ok=True)

    def refuse(holder):
        raise UserError(f"`out` {out}: share {request.shard} is in use by {holder}: wait for it")

    with hold_lock(out / LOCKS / f"{process}-of-{num_processes}", on_taken=refuse):
        shelves = begin(request, out, teacher, splits)
        done = [
            fill(shelf, told, teacher, request, shelf.share(process, num_processes))
            for shelf, told in zip(shelves, splits.values(), strict=True)
        ]
    tell_end(request, out, shelves, done)


def begin(request, out, teacher, splits):
    """The `Shelf` of each split, noted in the folder, and the null beside them."""
    shelves = []
    with hold_lock(out / LOCKS / "begin", on_taken=lambda holder: None):  # It is waited for.
        for split, told in splits.items():
            folder = out if split == "all" else out / split
            settings = settings_of(request, teacher, told)
            shelves.append(Shelf(folder, len(told), request.shard_rows, settings))
            shelves[-1].begin()
        write_null(out / f"{NULL}.safetensors", teacher.pipeline.null)
    return shelves


def check_request(request):
    """(process, number of processes) of `shard`; refuses what is missing or means nothing."""
    if not request.teacher:
        raise UserError("`teacher` is missing: name the folder that --mode=import made")
    if not request.out:
        raise UserError("`out` is missing: name the folder to write, such as latents")
    if bool(request.from_) == bool(request.prompts):
        raise UserError(
            "name pictures by `from`, or prompts alone by `prompts`: "
            f"{'both are' if request.from_ else 'neither is'} given"
        )
    unused = DRAWN if request.from_ else OF_PICTURES
    for name in unused:
        if getattr(request, name) is not None:
            what = "prompts, of which pictures are drawn" if request.from_ else "pictures"
            raise UserError(f"`{name}` means something to {what} alone: leave it out")
    if request.dtype not in DTYPES:
        raise UserError(f"`dtype` must be {' or '.join(DTYPES)}, got {request.dtype}")
    for name in ("shard_rows", "batch_size"):
        if getattr(request, name) < 1:
            raise UserError(f"`{name}` must be at least 1, got {getattr(request, name)}")
    found = re.fullmatch(r"(\d+)/(\d+)", request.shard)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(
            f"`shard` must be a process and their number, 0/64 to 63/64, got {request.shard}"
        )
    return int(found[1]), int(found[2])


def output_folder(request):
    """The folder to write, which must not lie among the pictures, nor they in it."""
    out = local_path(request.out, "`out`")
    if request.from_:
        pictures = local_path(request.from_, "`from`")
        one, other = out.resolve(), pictures.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError(
                f"`out` {out} and `from` {pictures} lie in one another: name another folder"
            )
    if out.exists() and not out.is_dir():
        raise UserError(f"`out` {out} is a file: name a folder")
    output_path(out / "encoded.json")
    return out


def find_examples(request, teacher):
    """`{split: Told}`, said in a line each."""
    if request.prompts:
        if teacher.wants != CAPTIONS:
            raise UserError(
                f"{teacher.folder} is conditioned on {', '.join(teacher.names) or 'nothing'}, not "
                "on prompts: give pictures by `from`"
            )
        check_divides(teacher.schedule, drawing_of(request)["num_steps"], "`num_steps`")
        path = local_path(request.prompts, "`prompts`")
        splits = {"all": read_prompts(path, skip_missing=request.skip_missing)}
    else:
        path = local_path(request.from_, "`from`")
        splits = find_pictures(path, teacher.wants, skip_missing=request.skip_missing)
        if teacher.wants == CLASSES:
            teacher.check_classes(next(iter(splits.values())).class_names)
    for split, told in splits.items():
        where = path if split == "all" else f"{path}, {split}"
        of_what = f"pictures, {told.source}"
        if request.prompts:
            drawn = ", ".join(f"{name} = {value:g}" for name, value in drawing_of(request).items())
            of_what = f"prompts, whose x the teacher draws with {drawn}"
        left = "".join(f"; left out: {line}" for line in told.left_out)
        to_stderr(f"{where}: {len(told):,} {of_what}{left}")
    return splits


def settings_of(request, teacher, told):
    """All that determines the numbers of a split, as plain JSON."""
    settings = {
        "pipeline": teacher.pipeline.sha256,
        "examples": told.digest(),
        "num_rows": len(told),
        "shard_rows": request.shard_rows,
        "dtype": request.dtype,
    }
    if request.from_:
        return settings | {"max_value": request.max_value or 0}
    drawn = drawing_of(request)
    return settings | {"teacher": teacher.stage.record["params_sha256"]} | drawn


def drawing_of(request):
    """w, N and seed of what the teacher draws."""
    asked = {name: getattr(request, name) for name in DRAWN}
    drawn = {name: DRAWN[name] if value is None else value for name, value in asked.items()}
    if len(drawn["w"]) != 1 or not drawn["w"][0] >= 0:
        raise UserError(
            f"`w` must be one weight of 0 or more, got {','.join(map(str, drawn['w']))}"
        )
    if drawn["num_steps"] < 1:
        raise UserError(f"`num_steps` must be at least 1, got {drawn['num_steps']}")
    check_seed(drawn["seed"])
    return drawn | {"w": float(drawn["w"][0])}


def write_null(path, null):
    """Writes the conditioning that means none, in float32: it must be the teacher's own."""
    arrays = {name: narrow(array, "float32") for name, array in null.items()}
    is_there = path.exists() and tree_sha256(read_tensors(path)) == tree_sha256(arrays)
    if arrays and not is_there:
        write_tensors(path, arrays)


def narrow(array, dtype):
    """Floats in `dtype`, but for those of few numbers a row; labels and pictures as they are."""
    array = np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    is_small = array[:1].size < FEW
    return array.astype(np.float32 if is_small else jnp.dtype(dtype))


def fill(shelf, told, teacher, request, share):
    """Makes the shards of a share that are not there; returns what is to be told of all of them.

    Broken pictures do not end it: all are found, and the shards without any are kept.

    Raises:
      UserError: naming broken pictures that may not be left out.
    """
    examples = {shard: told.digest(shelf.rows(shard)) for shard in share}
    facts = {shard: shelf.facts(shard, examples[shard]) for shard in share}
    todo = [shard for shard in share if facts[shard] is None]
    rows = [row for shard in todo for row in shelf.rows(shard)]
    loaded = load(told, teacher, request, rows)
    unit, broken, done = "prompt" if request.prompts else "picture", [], 0
    bar = Progress(f"encoding {shelf.folder}", total=len(rows), unit=unit) if rows else None
    for shard in todo:
        of_shard = shelf.rows(shard)

        def tell(more, before=done):
            bar(before + more)

        arrays, captions, fact = make_shard(of_shard, loaded, told, teacher, request, tell)
        done += len(of_shard)
        if fact["broken"] and not request.skip_broken:
            broken += fact["broken"]
        else:
            shelf.write(shard, examples[shard], arrays, fact, captions)
            facts[shard] = fact
    if bar:
        bar.close()
    if broken:
        raise UserError(
            f"{len(broken)} of {len(rows)} pictures cannot be used: {'; '.join(broken[:NAMED])}"
            f"{'; …' if len(broken) > NAMED else ''}: mend them, or leave them out with "
            "`skip_broken`; shards without any are kept"
        )
    return {"made": len(todo), "kept": len(share) - len(todo), "of": list(facts.values())}


def load(told, teacher, request, rows):
    """Iterator over the pictures of rows as of `Loader`, read ahead; empty ones of prompts."""
    if request.prompts:
        return iter([Picture(None)] * len(rows))
    loader = Loader(told, teacher.pipeline.image_shape, request.max_value or 0)
    return ahead(lambda k: loader(rows[k]), 0, len(rows), num_workers=0, buffer=BUFFER)


def make_shard(rows, loaded, told, teacher, request, tell):
    """(arrays, captions, facts) of one shard: `{array: [n, …]}`, its rows' captions, what to tell.

    Args:
      rows: of it, a range.
      loaded: iterator over its pictures, and those after it.
      told, teacher, request: as they are.
      tell: is given how many rows are done, whenever none waits for its batch to be full.
    """
    facts = {"rows": 0, "cut": 0, "broken": [], "warned": []}
    parts, batch, peaks, kept = [], [], [], []
    for done, row in enumerate(rows, start=1):
        picture = next(loaded)
        if isinstance(picture, str):
            facts["broken"].append(picture)
        elif not facts["broken"] or request.skip_broken:
            batch.append((row, picture.image))
            kept.append(told.items[row].told)
            peaks.append(picture.peak)
            facts["warned"] += [f"{told.items[row].name}: {w}" for w in picture.warnings[:1]]
        if len(batch) == teacher.batch_size or (batch and row == rows[-1]):
            parts.append(make_batch(batch, told, teacher, request, facts))
            batch = []
        if not batch:
            tell(done)
    check_range(peaks, f"rows {rows[0]} to {rows[-1]}", "`max_value`")
    if not parts:  # All are broken: its arrays have no rows.
        blank = np.zeros(teacher.pipeline.image_shape, np.uint8)
        parts = [make_batch([(rows[0], blank)], told, teacher, request, dict(facts))]
        parts = [{name: array[:0] for name, array in parts[0].items()}]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return arrays, kept if teacher.wants == CAPTIONS else None, facts


def make_batch(batch, told, teacher, request, facts):
    """The arrays of some rows, [(row, image or None)]; adds to the counts of `facts`."""
    rows = np.asarray([row for row, _ in batch])
    cond, num_cut = teacher.embed([told.items[row].told for row in rows])
    if request.prompts:
        x = teacher.draw(cond, rows, drawing_of(request))
    else:
        x = teacher.encode(np.stack([image for _, image in batch]))
    arrays = {"x": x, **cond}
    for name, array in arrays.items():
        finite = np.isfinite(np.asarray(array, np.float32)).reshape(len(rows), -1).all(1)
        if not finite.all():
            which = told.items[rows[np.argmin(finite)]].name
            raise UserError(f"{teacher.folder}: '{name}' of {which} is not finite")
    facts["rows"] += len(rows)
    facts["cut"] += num_cut
    return {name: narrow(array, request.dtype) for name, array in arrays.items()}


def tell_end(request, out, shelves, done):
    """The closing line: what was made and kept, cut and left out, and what is still to come."""
    facts = [fact for one in done for fact in one["of"]]
    made, kept = (sum(one[name] for one in done) for name in ("made", "kept"))
    broken, warned = (sum((fact[name] for fact in facts), []) for name in ("broken", "warned"))
    parts = [f"{sum(fact['rows'] for fact in facts):,} rows in {made} shards made and {kept} kept"]
    cut = sum(fact["cut"] for fact in facts)
    parts += [f"{cut:,} captions cut at the text encoder's limit"] if cut else []
    parts += [f"{len(broken)} broken pictures left out: {some_of(broken)}"] if broken else []
    parts += (
        [f"{len(warned)} taken though their decoder warned: {some_of(warned)}"] if warned else []
    )
    missing = sum(shelf.missing() for shelf in shelves)
    if missing:
        parts.append(f"{missing} shards of other shares are still to come")
    else:
        parts.append(f"whole: --config.data.name=arrays --config.data.path={request.out}")
    to_stderr(f"{out}: {'; '.join(parts)}")
