"""What becomes of a run that is killed, whose disk fails, or whose files are damaged:

    python tests/campaign.py kills --count=100 --seed=0
    python tests/campaign.py errors --count=90
    python tests/campaign.py corruptions

Each begins with an unbroken run of `tiny.py`, which all else is held against: a line for every case,
a tally at the end, and exit code 1 where a law is broken. The laws:

  kills        `kill -9` at an operation of the run on its files, and the same command again, and
               so on: the end is that of the unbroken run.
  errors       a write or a read that fails ends the run in one line, or is said and does no harm;
               nothing good is lost; the same command afterwards ends as the unbroken run.
  corruptions  where a file is cut, emptied, flipped in a bit or gone, the same command ends as the
               unbroken run, or in one line that names the file and with nothing changed; samples
               are the same bit for bit, or refused in one line.

The end of a run: its stages' digests, its previews, and `results.json` but for speeds and seconds.
Operations are counted by `faults.c`, which the C compiler `cc` makes; corruptions need none.
"""

import argparse
import collections
import dataclasses
import errno
import hashlib
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import PurePath

import numpy as np
from conftest import ROOT, environment
from own_images import write_folder
from PIL import Image

from guided_distill import Sampler
from guided_distill.errors import UserError
from guided_distill.system.files import DIGEST, read_json

TINY = ROOT / "tests" / "tiny.py"
PARTS = {  # of a run, in their order, and the first folder of each
    "teacher": "run/teacher",
    "step one": "run/step_one",
    "round 1": "run/step_two/deterministic/0002",
    "round 2": "run/step_two/deterministic/0001",
    "classifier": "run/classifier",
    "reference": "run/reference",
    "evaluation": "run/evaluation",
    "report": "run/report",
}
WITH_PARTS = {  # what a part makes elsewhere
    "teacher": ("cache", "run/lock", "run/config.json", "run/metrics", "run/samples/teacher.png"),
    "step one": ("run/samples/step_one.png",),
    "round 1": ("run/samples/step_two_deterministic_0002.png",),
    "round 2": ("run/samples/step_two_deterministic_0001.png",),
    "classifier": ("cache/*test*",),
}
READ_BY_EVALUATION = "cache/.*test|run/(classifier|reference|evaluation)"
AT_START = 40  # operations, about, of a command before it goes on where it was
CHANGES_OF_A_START = 100  # about, until a command has written more than the one before it
ALWAYS, ONCE = 0, 1
FAILURES = (  # kind, error, how often
    ("write", "ENOSPC", ALWAYS),
    ("read", "EIO", ONCE),
    ("write", "ENOSPC", ONCE),
    ("read", "EMFILE", ALWAYS),
    ("write", "EIO", ONCE),
    ("read", "ESTALE", ONCE),
    ("write", "EDQUOT", ALWAYS),
    ("read", "EACCES", ALWAYS),
    ("write", "EROFS", ALWAYS),
    ("read", "EIO", ALWAYS),
)
SPEEDS = ("images_per_second", "images_per_second_std", "seconds", "digest")
WITH_SPEEDS = ("index.html", "report.md")
TIMEOUT = 300  # seconds of one command


@dataclasses.dataclass
class Outcome:
    """How a command ended.

    Attributes:
      code: its exit code; negative is the signal that killed it.
      lines: of its standard error.
    """

    code: int
    lines: list[str]

    @property
    def last(self):
        """Its last line."""
        return self.lines[-1] if self.lines else ""

    @property
    def in_one_line(self):
        """Whether it failed as a program should: one line of an error, the last, and no more."""
        errors = [line for line in self.lines if line.startswith("error: ")]
        return self.code == 1 and errors == [self.last] and not self.traceback

    @property
    def traceback(self):
        """Whether a person saw the inside of the program."""
        return any("Traceback" in line or line.startswith("  File ") for line in self.lines)


class Campaign:
    """An unbroken run, and copies of it to do harm to.

    Args:
      base: an empty folder.
      compiler: path of the C compiler; None leaves only what needs no `faults.c`.
      tell: called with the line of each case.

    Attributes:
      ops: of the unbroken run, as (class, number, name, path), in their order.
      broken: lines of the cases that broke a law.
    """

    def __init__(self, base, compiler, tell=print):
        self.base, self.tell = pathlib.Path(base).resolve(), tell
        self.faults = compiler and compile_faults(compiler, self.base / "faults.so")
        self.pictures, self.whole = self.base / "pictures", self.base / "whole"
        self.broken, self.tally = [], collections.Counter()
        write_folder(self.pictures, per_class=20)
        log = self.base / "ops"
        outcome = self.start(self.whole, log=log)
        if outcome.code:
            raise RuntimeError("\n".join(["the unbroken run fails", *outcome.lines]))
        self.usual = {shape_of(line) for line in outcome.lines}
        self.ops = read_ops(log)
        self.end = end_of(self.whole)

    def start(self, case, *, log=None, **plan):
        """The run's command on a case's folder, with the faults of a plan; its `Outcome`."""
        command = [
            sys.executable, "-m", "guided_distill.main", f"--config={TINY}",
            f"--workdir={case / 'run'}", f"--config.data.path={self.pictures}",
            f"--config.data.cache={case / 'cache'}",
        ]  # fmt: skip
        case.mkdir(exist_ok=True)
        told = {f"FAULT_{name.upper()}": str(value) for name, value in plan.items()}
        if self.faults:
            told |= {"LD_PRELOAD": str(self.faults), "FAULT_BELOW": f"{case}/"}
        if log:
            log.unlink(missing_ok=True)
            told["FAULT_LOG"] = str(log)
        done = subprocess.run(
            command, env=environment() | told, cwd=self.base, capture_output=True,
            text=True, errors="replace", timeout=TIMEOUT,
        )  # fmt: skip
        lines = done.stderr.replace(str(case), ".").splitlines()
        return Outcome(done.returncode, [line for line in lines if line.strip()])

    def before(self, part, *, name="case"):
        """A fresh case's folder, in which a run was stopped before a part of it; "" for none."""
        case = self.base / name
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(self.whole, case)
        later = list(PARTS)[list(PARTS).index(part) :] if part else []
        for gone in [path for p in later for path in (PARTS[p], *WITH_PARTS.get(p, ()))]:
            for path in case.glob(gone):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return case

    def differences(self, case):
        """How a case's end differs from the unbroken run's, as text; "" for not at all."""
        try:
            return "; ".join(compare(self.end, end_of(case)))[:300]
        except (OSError, ValueError) as error:
            return f"it has no end: {error}"

    def judge(self, title, said, faults):
        """Tells of a case: what was said, and the laws it broke, a list of texts."""
        self.tally["broken" if faults else "kept"] += 1
        line = f"{title}: {'BROKEN: ' + '; '.join(faults) + ': ' if faults else ''}{said}"
        self.tell(line)
        if faults:
            self.broken.append(line)

    def part_of(self, path):
        """The part of a run to which a path below a case's folder belongs."""
        for part, folder in PARTS.items():
            if path.startswith(folder):
                return part
        return path.strip("/").split("/")[1 if path.startswith("run/") else 0] or "workdir"


def compile_faults(compiler, path):
    """The library of `faults.c`, made at `path`."""
    source = ROOT / "tests" / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def read_ops(log):
    """[(class, number, name, path)] of a log of `faults.c`."""
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    rows = [line.split(" ", 3) for line in lines]
    return [(effect, int(number), name, path) for effect, number, name, path in rows]


def shape_of(text):
    """A line or a path with its numbers and digests left out."""
    return re.sub(r"[0-9a-f]{12,}|\d+(\.\d+)?(e-?\d+)?", "#", text)


def end_of(case):
    """What a run ends with: `{stage: digest}`, previews, results without speeds."""
    run = case / "run"
    results = json.loads((run / "report" / "results.json").read_text())
    records = sorted((run / "step_two").rglob("stage.json")) + sorted(run.glob("*/stage.json"))
    return {
        "stages": {
            str(path.parent.relative_to(run)): json.loads(path.read_text())["params_sha256"]
            for path in records
        },
        "previews": {path.name: pixels_of(path) for path in sorted(run.glob("samples/*"))},
        "results": without_speeds(results),
        "report": {
            name: sha256_of(run / "report" / name) == sha256
            for name, sha256 in results["files"].items()
        },
    }


def pixels_of(path):
    """Digest of a picture, or what is wrong with it."""
    try:
        with Image.open(path) as picture:
            return hashlib.sha256(np.asarray(picture)).hexdigest()
    except (OSError, SyntaxError) as error:
        return str(error)


def without_speeds(value):
    """Plain JSON without what no two runs have in common."""
    if isinstance(value, dict):
        left = value.keys() - {*SPEEDS, *WITH_SPEEDS}
        return {key: without_speeds(value[key]) for key in sorted(left)}
    return [without_speeds(part) for part in value] if isinstance(value, list) else value


def compare(one, other, where=""):
    """Yields how two pieces of plain JSON differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from compare(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from compare(*pair, f"{where}/{index}")
    elif one != other:
        yield f"{where} is {other}, not {one}"


def sha256_of(path):
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(case):
    """`{path below the case's folder: digest}` of what a run writes once and for all."""
    files = [path for path in sorted(case.rglob("*")) if path.is_file()]
    named = {path.relative_to(case).as_posix(): path for path in files}
    passing = re.compile(r"run/lock|run/metrics|.*\.lock$")
    return {name: sha256_of(path) for name, path in named.items() if not passing.match(name)}


def kill_again_and_again(campaign, count, seed):
    """Kills one run `count` times, each time a bit further on, and lets it end.

    Steps are drawn so that the kills go through the whole run and do not reach its end.
    """
    rng, case, log = random.Random(seed), campaign.base / "killed", campaign.base / "killed.ops"
    places = first_places(campaign.ops)
    changes_each = sum(op[0] == "change" for op in campaign.ops) / len(places)
    reached, landed = 0, collections.Counter()
    for number in range(count):
        behind = max(0, len(places) * (number + 1) / count - reached)
        left = 0.8 * changes_each * (len(places) - reached)
        at = rng.randint(1, 3 + int(min(left, CHANGES_OF_A_START + changes_each * behind)))
        outcome = campaign.start(case, log=log, kind="kill", at=at)
        if outcome.code == 0:
            campaign.tell(f"the run ended before kill {number + 1}")
            break
        changes = [op for op in read_ops(log) if op[0] == "change" and op[1] <= at]
        reached = max([reached, *(places.get(place_of(op), 0) for op in changes)])
        _, _, name, path = changes[-1]
        part = campaign.part_of(path)
        landed[part] += 1
        killed = outcome.code == -9 and not outcome.traceback
        faults = [] if killed else [f"exit code {outcome.code}, not killed: {outcome.last}"]
        said = f"at its change {at}, {name} of {path}; {reached} of {len(places)} reached"
        campaign.judge(f"kill {number + 1} in {part}", said, faults)
    outcome = campaign.start(case)
    differs = campaign.differences(case) or outcome.code
    faults = [f"exit code {outcome.code}: {outcome.last}"] if outcome.code else []
    faults += [differs] if differs else []
    left = [name for name in files_of(case) if "tmp" in name or ".partial" in name]
    campaign.judge("the end", f"{len(left)} files of broken writes left: {left[:3]}", faults)
    campaign.tell("kills by part: " + ", ".join(f"{part} {n}" for part, n in landed.items()))


def first_places(ops):
    """`{place: how many other places came first}` of the changes of an unbroken run."""
    places = dict.fromkeys(place_of(op) for op in ops if op[0] == "change")
    return {place: number for number, place in enumerate(places)}


def place_of(op):
    """What is done, to what, wherever numbers and digests do not say which."""
    _, _, name, path = op
    return name, re.sub(r"[0-9a-f]{24,}|tmp[\d-]*|partial-\d+|tfevents.*", "#", path)


def fail_everywhere(campaign, count, seed):
    """Lets writes and reads fail, `count` times over all parts of a run and kinds of failure."""
    rng = random.Random(seed)
    for number in range(count):
        part = list(PARTS)[number % len(PARTS)]
        kind, error, times = FAILURES[number // len(PARTS) % len(FAILURES)]
        effect = "look" if kind == "read" else "change"
        those = [op for op in campaign.ops if op[0] == effect and campaign.part_of(op[3]) == part]
        at = rng.randint(1, AT_START + len(those))
        fail_once(campaign, part, kind, error, times, at)


def fail_once(campaign, part, kind, error, times, at):
    """One case: a run stopped before `part` goes on with a failure, then without one."""
    case, log = campaign.before(part), campaign.base / "failed.ops"
    before = files_of(case)
    outcome = campaign.start(
        case, log=log, kind=kind, at=at, times=times, errno=getattr(errno, error)
    )
    effect = "look" if kind == "read" else "change"
    met = [op for op in read_ops(log) if op[0] == effect and op[1] == at]
    title = f"{part}, {kind} {at} {error}{'' if times else ' from there on'}"
    if not met:
        campaign.tally["not reached"] += 1
        return
    faults = lost_files(case, before)
    if outcome.code == 0:
        differs = campaign.differences(case)
        faults += [f"it ended with other numbers: {differs}"] if differs else []
    elif not outcome.in_one_line:
        faults.append(f"exit code {outcome.code} in {len(outcome.lines)} lines")
    strange = [line for line in outcome.lines if shape_of(line) not in campaign.usual]
    again = campaign.start(case)
    if again.code or campaign.differences(case):
        faults.append(f"again: {again.code}, {again.last}; {campaign.differences(case)}")
    said = f"{met[0][2]} of {met[0][3]}: {outcome.code}: {' | '.join(strange)[:400]}"
    campaign.tally["went on" if outcome.code == 0 else "refused"] += 1
    campaign.judge(title, said, faults)


def lost_files(case, before):
    """What good a failed run did away with, as a list of texts.

    Finished stages stay as they were; a checkpoint goes only where newer ones came; what else
    has a digest is still whole.
    """
    after, faults = files_of(case), []
    for name, digest in before.items():
        if after.get(name) == digest or "/report/" in name:
            continue
        path = case / name
        if "/checkpoints/" in name:
            folder = re.match(r"(.*/checkpoints)/(\d+)", name)
            steps = {int(p.name) for p in (case / folder[1]).iterdir() if p.name.isdigit()}
            fine = len([step for step in steps if step > int(folder[2])]) > 1
        else:
            fine = name.endswith(".json") and path.exists() and is_whole(path)
        if not fine:
            faults.append(f"{name} is gone or changed")
    faults += [f"{name} is set aside" for name in after if ".damaged" in name]
    return faults[:3]


def is_whole(path):
    """Whether a JSON file has its digest."""
    try:
        return DIGEST in json.loads(path.read_text()) and read_json(path) is not None
    except (UserError, ValueError):
        return False


def flip(data, rng):
    """`data` with one bit of it turned."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


HARMS = {  # (contents, generator of random numbers) -> contents; None removes the file
    "cut": lambda data, rng: data[: len(data) // 2],
    "emptied": lambda data, rng: b"",
    "flipped": flip,
    "deleted": None,
}


def harm(path, how, rng):
    """Does one of `HARMS` to a file; says whether that changed it."""
    data = path.read_bytes()
    if HARMS[how] is None:
        path.unlink()
        return True
    if not data:
        return False
    path.write_bytes(HARMS[how](data, rng))
    return True


def kinds_of_files(case):
    """One file, a path below the case's folder, of every kind."""
    kinds = {}
    for name in sorted(p.relative_to(case).as_posix() for p in case.rglob("*") if p.is_file()):
        kinds.setdefault(re.sub(r"[0-9a-f]{12,}|\d+", "#", name), name)
    return list(kinds.values())


def corrupt_everything(campaign, every=1, seed=0):
    """Harms a file of every kind in every way, in a finished run and in one that will read it.

    Args:
      campaign: `Campaign`.
      every: one in so many cases is tried.
      seed: of the bits that are flipped.
    """
    states = {"": "", "report": READ_BY_EVALUATION, "round 1": "run/.*0002/checkpoints"}
    cases = [
        (part, name, how)
        for part, those in states.items()
        for name in kinds_of_files(stopped(campaign, part))
        if re.match(those, name)
        for how in HARMS
    ]
    for number, (part, name, how) in enumerate(cases[::every]):
        corrupt_once(campaign, part, name, how, random.Random(f"{seed} {number}"))


def stopped(campaign, part):
    """A case's folder: of a finished run, of one stopped before the report or as round 1 ends."""
    if part != "round 1":
        return campaign.before(part)
    case = campaign.before("round 2")
    stage = case / PARTS[part]
    shutil.rmtree(stage / "params")
    (stage / "stage.json").unlink()
    return case


def corrupt_once(campaign, part, name, how, rng):
    """One case: a file is harmed, and the run's command typed again."""
    case = stopped(campaign, part)
    if not harm(case / name, how, rng):
        return
    before = files_of(case)
    outcome = campaign.start(case)
    faults = ["a traceback"] if outcome.traceback else []
    differs = campaign.differences(case)
    if outcome.code == 0:
        faults += [f"other numbers: {differs}"] if differs else []
    else:
        changed = sorted(n for n, _ in before.items() ^ files_of(case).items())
        faults += [] if outcome.in_one_line else [f"exit code {outcome.code}, in several lines"]
        faults += [f"refused, but changed {changed}"] if changed else []
        if not any(path in outcome.last for path in (name, *map(str, PurePath(name).parents[:-2]))):
            faults.append("it names neither the file nor its folder")
    strange = [line for line in outcome.lines if shape_of(line) not in campaign.usual]
    strange = [line for line in strange if "this run is finished" not in line]
    campaign.tally["refused" if outcome.code else "said" if strange else "silent"] += 1
    title = f"{name} {how}{f', before the end of {part}' if part else ''}"
    campaign.judge(title, f"{outcome.code}: {' | '.join(strange)[:300]}", faults)


def sample_corrupted(campaign, every=1, seed=0):
    """Harms a file of every kind of a student, and draws from it in this process."""
    student = PARTS["round 2"]
    case = campaign.before("")
    expected = draw(case)
    names = [n for n in kinds_of_files(case / student) if not n.startswith("checkpoints")]
    cases = [(f"{student}/{name}", how) for name in names for how in HARMS]
    for number, (name, how) in enumerate(cases[::every]):
        case = campaign.before("")
        harm(case / name, how, random.Random(f"{seed} {number}"))
        faults, said = [], "the same images"
        try:
            if not np.array_equal(draw(case), expected):
                faults.append("other images")
        except UserError as error:
            said = str(error)
            faults += [] if "\n" not in said else ["several lines"]
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
        campaign.judge(f"samples, {name} {how}", said, faults)


def draw(case):
    """A few images of the student of one step."""
    return Sampler.load(case / "run", 1)([0, 1, 2], w=1.0)


def main():
    """Runs what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("kills", "errors", "corruptions"))
    parser.add_argument("--count", type=int, default=90, help="of kills or errors")
    parser.add_argument("--every", type=int, default=1, help="one in so many corruptions")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    compiler = shutil.which("cc")
    if not compiler and asked.what != "corruptions":
        print("skipped: there is no C compiler `cc` to make tests/faults.c with")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(folder, compiler, lambda line: print(line, flush=True))
        if asked.what == "kills":
            kill_again_and_again(campaign, asked.count, asked.seed)
        elif asked.what == "errors":
            fail_everywhere(campaign, asked.count, asked.seed)
        else:
            corrupt_everything(campaign, asked.every, asked.seed)
            sample_corrupted(campaign, asked.every, asked.seed)
    print(", ".join(f"{n} {outcome}" for outcome, n in campaign.tally.items()))
    return 1 if campaign.broken else 0


if __name__ == "__main__":
    sys.exit(main())
