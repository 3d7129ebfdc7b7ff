"""The config that a workdir was trained with, as a config file: what overrides alone change."""

import re
import sys

from guided_distill.run import settings


def get_config(workdir):
    """The workdir's own config."""
    return settings.read_config(workdir)


def add_config(argv):
    """The command line with `--config` of the workdir where it has overrides and no config.

    Training begins with a config, and is left as it is. `sys.argv`, where overrides are looked for,
    becomes the same.
    """
    flags = dict(_flags(argv))
    overrides = any(name.startswith("config.") for name in flags)
    if not overrides or "config" in flags or not flags.get("workdir"):
        return argv
    if flags.get("mode", "train") == "train":
        return argv
    sys.argv = [*argv[:1], f"--config={__file__}:{flags['workdir']}", *argv[1:]]
    return sys.argv


def _flags(argv):
    """(name, value) of each flag, written `--name=value` or `--name value`."""
    for word, following in zip(argv, [*argv[1:], "-"], strict=True):
        match = re.fullmatch(r"--?([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match:
            apart = "" if following.startswith("-") else following
            yield match[1], apart if match[2] is None else match[2]
