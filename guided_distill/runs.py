"""A run as programs, notebooks and the command line start it: a config and a workdir."""

import contextlib
import os
import pathlib
import runpy

from guided_distill import jobs, processes, settings
from guided_distill.errors import UserError
from guided_distill.locks import hold_lock
from guided_distill.paper import report


def load_config(path):
    """The ConfigDict of a config file, such as "configs/digits.py" or "configs/digits.py:smoke".

    Raises:
      UserError: where there is no such file.
      ValueError: where it has no such variant.
    """
    path, _, variant = str(path).partition(":")
    if not os.path.isfile(path):
        raise UserError(f"no config file {path}: name one, such as configs/digits.py")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(variant) if variant else get_config()


def check_config(config):
    """Checks a config, and makes its data path one that holds wherever a later command is run."""
    settings.check_config(config)
    if config.data.path:
        config.data.path = os.path.abspath(os.path.expanduser(config.data.path))


def train(config, workdir, *, stage="", teacher="", on_pictures=None):
    """Trains and evaluates whatever of a run is not finished; an interrupted call goes on.

        config = guided_distill.load_config("configs/digits.py")
        guided_distill.train(config, "runs/digits")

    Args:
      config: ConfigDict, as `load_config` gives it.
      workdir: the run's folder.
      stage: one stage alone, without evaluation, such as "teacher"; '' means all.
      teacher: folder of a finished stage, in any workdir, that the first stage learns from.
      on_pictures: called with (title, path) whenever samples of a finished stage were drawn.

    Returns:
      Whether there was anything left to do.

    Raises:
      UserError: where the config is wrong, or another run holds the workdir.
      Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    workdir = pathlib.Path(workdir).expanduser()
    check_config(config)
    with own_workdir(workdir):
        trained = jobs.train(
            config, workdir, stage_name=stage, teacher=teacher, on_pictures=on_pictures
        )
        if trained and config.evaluation.paper_report and not stage:
            report([workdir])
    return trained


@contextlib.contextmanager
def own_workdir(workdir):
    """Refuses a workdir that another run is writing; a run that died holds nothing."""

    def refuse(holder):
        raise UserError(f"{workdir} is in use by {holder}: wait for it, or take another --workdir")

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "lock").touch()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    with contextlib.ExitStack() as held:
        processes.first_only(held.enter_context)(hold_lock(workdir / "lock", on_taken=refuse))
        processes.check_shared(workdir)
        yield
