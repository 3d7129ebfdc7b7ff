"""Every command that README and docs print means something, and those of the README's first page run."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, environment
from own_images import write_folder

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAIN = ["python", "-m", "guided_distill.main"]
OWN = {"my_config.py": "configs/imported.py"}  # what readers write themselves
CONFIGS = {  # of the workdirs that commands without a config take up
    "runs/digits": "configs/digits.py", "runs/mine": "configs/folder.py",
    "runs/paper": "configs/digits.py:paper", "runs/factor4": "configs/digits.py:factor4",
    "runs/sd15": "configs/diffusers.py:sd15", "runs/dit": "configs/diffusers.py:dit",
}  # fmt: skip


def commands_of(path):
    """The lines of a page's shell blocks, continued ones joined, as lists of words."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def main_arguments(command):
    """What main is given by a command; None where it is another program's."""
    words = [word for word in command if not re.fullmatch(r"[A-Z]+=\S+", word)]
    return words[3:] if words[:3] == MAIN else None


ALL = [(path.name, command) for path in DOCS for command in commands_of(path)]

UNDERSTAND = """
import dataclasses, importlib, json, os, pathlib, sys, traceback
from absl import flags
from guided_distill import main
from guided_distill.run import settings

for mode in main.MODES:
    importlib.import_module("guided_distill.jobs." + (main.MODES[mode].module or mode))

def understand(arguments):
    sys.argv = ["main", *arguments]  # Where overrides of a config are looked for.
    assert len(main.parse_flags(sys.argv)) == 1
    mode = flags.FLAGS.mode
    job = importlib.import_module("guided_distill.jobs." + (main.MODES[mode].module or mode))
    assert dataclasses.is_dataclass(main.make_request(job.Request))

for workdir, config in json.loads(sys.argv[1]).items():
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True)
    plain = settings.to_plain(settings.load_config(config))
    (folder / "config.json").write_text(json.dumps(plain))
for arguments in json.loads(sys.argv[2]):
    child = os.fork()  # Flags of a config stay once they are there.
    if not child:
        try:
            understand(arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, arguments
print("understood")
"""


def test_every_command_of_main_is_understood(tmp_path):
    """Flags, modes, configs and overrides: as far as a command goes before it looks at files."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    given = [main_arguments(command) for _, command in ALL if main_arguments(command)]
    given = [[OWN.get(a.partition("=")[2], "") and f"--config={OWN[a.partition('=')[2]]}" or a
              for a in arguments] for arguments in given]  # fmt: skip
    assert len(given) > 50
    done = subprocess.run(
        [sys.executable, "-c", UNDERSTAND, json.dumps(CONFIGS), json.dumps(given)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.endswith("understood\n"), done.stdout.splitlines()[-1:] + [done.stderr]


def test_other_programs_are_there():
    """Beside main there are pip and pytest, our launchers and the scripts of the tests."""
    for page, command in ALL:
        if main_arguments(command) is None and command[:2] != ["python", "-m"]:
            script = next(w for w in command if "/" in w and not w.startswith("-") and "=" not in w)
            assert (ROOT / script).is_file(), (page, command)


def test_pages_link_to_what_is_there():
    for page in DOCS:
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def shrunk(command):
    """A command of the README at a size for tests: the smallest variant of its config."""
    words = [sys.executable if word == "python" else word for word in command]
    return [f"{word}:smoke" if re.fullmatch(r"--config=\S+\.py", word) else word for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mine"])
def test_the_commands_of_a_run_follow_each_other(name, tmp_path):
    """Train, then sample, then from Python: in the README's order and words, at smoke size."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_folder(tmp_path / "pictures", per_class=24)
    for shape, animal in (("disc", "cat"), ("ring", "dog")):
        (tmp_path / "pictures" / shape).rename(tmp_path / "pictures" / animal)
    commands = [c for c in commands_of(ROOT / "README.md") if f"--workdir=runs/{name}" in c]
    commands = [c for c in commands if "configs/imported.py" not in " ".join(c)]
    assert len(commands) == 2 and commands[1][4] == "--mode=sample"
    for command in map(shrunk, commands):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600
        )
        assert not done.returncode, done.stderr
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert (tmp_path / f"runs/{name}/report/index.html").exists()
    if name == "digits":
        (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        snippet = snippet.replace("configs/digits.py", "configs/digits.py:smoke")
        snippet += "\nassert images.shape == (3, 8, 8, 1), images.shape"
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, env=environment(),
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        assert "this run is finished" in done.stderr
