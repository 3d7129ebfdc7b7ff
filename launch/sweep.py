"""Many runs that differ in what `--sweep` names, and one table of them all.

    python launch/sweep.py --config=configs/digits.py --workdir=runs/sweep --jobs=2 \\
        --sweep=config.step_one.learning_rate=1e-3,4e-3 --sweep=config.seed=0,1,2

Every `--sweep` multiplies the runs (a grid); `--point="config.a=1 config.b=2"` adds one run, as
often as it is given. All other flags go to `guided_distill.main` as they are. Each run has a folder
named by what varies, with its log; the same command goes on with the runs that are not finished. A
run that fails does not stop the others and is named at the end. `sweep.md` and `sweep.png` compare
the runs that have a report. `--job_list=jobs.txt` writes the commands, one a line, instead of
running them (for a Slurm array, or several pods); `--dry_run` prints them.
"""

import concurrent.futures
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys

from absl import app, flags

from guided_distill.errors import UserError
from guided_distill.report.curves import save_sweep
from guided_distill.report.tables import align, main_model
from guided_distill.run import settings
from guided_distill.system.progress import to_stderr

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; each run is one below it.")
_SWEEP = flags.DEFINE_multi_string("sweep", [], "config.key=value,value: a dimension of the grid.")
_POINT = flags.DEFINE_multi_string("point", [], "'config.key=value …': one run more.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
_JOB_LIST = flags.DEFINE_string("job_list", "", "Write the commands to this file, and run nothing.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the commands, and run nothing.")


def expand(sweeps, points):
    """The runs: a list of `{key: value}`, keys without `config.`, values as text.

    Args:
      sweeps: texts `config.key=value,value`; their grid comes first.
      points: texts `config.key=value config.key=value`; each is one run.

    Raises:
      UserError: naming a key that no config has, or a text that is none of these.
    """
    dimensions = []
    for text in sweeps:
        key, values = _split(text)
        dimensions.append([(key, value) for value in _values(values)])
    runs = [dict(pairs) for pairs in itertools.product(*dimensions)] if dimensions else []
    runs += [dict(map(_split, shlex.split(text))) for text in points]
    if not runs:
        raise UserError("nothing varies: name a --sweep=config.key=value,value or a --point")
    settings.check_override_names([f"--config.{key}=" for run in runs for key in run])
    names = [name_of(run) for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"the sweep holds {min(twice)} more than once")
    return runs


def _split(text):
    match = re.fullmatch(r"config\.([^=]+)=(.+)", text, re.DOTALL)
    if not match:
        raise UserError(f"a sweep takes config.key=value, got {text!r}")
    return match.groups()


def _values(text):
    """Values between commas that stand in no brackets."""
    return [value.strip() for value in re.findall(r"(?:[^,(\[]|\([^)]*\)|\[[^\]]*\])+", text)]


def name_of(run):
    """A run's folder, named by what varies in it."""
    text = ",".join(f"{key}={value}" for key, value in run.items())
    return re.sub(r"[^\w.,=+()\[\]-]", "_", text)


def command_of(run, workdir, rest):
    """The command line of a run, a list."""
    overrides = [f"--config.{key}={value}" for key, value in run.items()]
    main = [sys.executable, "-m", "guided_distill.main"]
    return [*main, *rest, f"--workdir={workdir / name_of(run)}", *overrides]


def run_all(runs, workdir, rest, jobs):
    """Runs them, some at a time, each with a log; returns `{name: exit code}`."""

    def start(run):
        folder = workdir / name_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            to_stderr(f"{folder.name}: running, log in {folder / 'log.txt'}")
            code = subprocess.call(
                command_of(run, workdir, rest), stdout=log, stderr=subprocess.STDOUT
            )
        to_stderr(f"{folder.name}: {'done' if code == 0 else f'failed with exit code {code}'}")
        return code

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return dict(zip(map(name_of, runs), pool.map(start, runs), strict=True))


def compare(runs, workdir):
    """Writes `sweep.md` and `sweep.png` of all runs that have a report; returns the table."""
    curves = {}
    for name in map(name_of, runs):
        results = workdir / name / "report" / "results.json"
        if results.exists():
            rows = json.loads(results.read_text("utf-8"))["rows"]
            model = main_model({row["model"] for row in rows})
            curves[name] = [row for row in rows if row["model"] == model]
    if not curves:
        return "no run has a report yet"
    columns = sorted({(row["num_steps"], row["w"]) for rows in curves.values() for row in rows})
    table = [["run", *(f"N = {num_steps}, w = {w:g}" for num_steps, w in columns)]]
    for name, rows in curves.items():
        found = {(row["num_steps"], row["w"]): f"{row['fid']:.2f}" for row in rows}
        table.append([name, *(found.get(column, "") for column in columns)])
    text = "Fréchet distance of each run's students, lower is better\n\n" + align(table)
    (workdir / "sweep.md").write_text(text + "\n", encoding="utf-8")
    save_sweep(workdir / "sweep.png", curves)
    return text


def main(argv):
    """Runs, lists or prints the sweep; returns the exit code."""
    try:
        if not _WORKDIR.value:
            raise UserError("--workdir is missing: name the sweep's folder")
        runs = expand(_SWEEP.value, _POINT.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    commands = [shlex.join(command_of(run, workdir, argv[1:])) for run in runs]
    if _DRY_RUN.value:
        print("\n".join(commands))
        return 0
    if _JOB_LIST.value:
        pathlib.Path(_JOB_LIST.value).write_text("\n".join(commands) + "\n", encoding="utf-8")
        to_stderr(f"{len(commands)} commands: {_JOB_LIST.value}")
        return 0
    codes = run_all(runs, workdir, argv[1:], _JOBS.value)
    print(compare(runs, workdir))
    failed = {name: code for name, code in codes.items() if code}
    for name, code in failed.items():
        to_stderr(f"failed with exit code {code}: {name}: see {workdir / name / 'log.txt'}")
    return 1 if failed else 0


def parse_flags(argv):
    """Keeps the flags of the sweep, and leaves all others for the runs."""
    return flags.FLAGS(argv, known_only=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
