"""Curves and pictures for TensorBoard through clu, with or without TensorFlow.

`clu.metric_writers` imports TensorFlow for one of its writers. Where TensorFlow is absent, a
module of the same name takes that writer's place before the import; it writes the same event
files through tensorboardX.
"""

import importlib.util
import sys
import types

from guided_distill.system.processes import is_first


def make_metric_writer(directory):
    """A clu `MetricWriter` of event files in `directory`; silent but in the first process."""
    if not all(importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard")):
        stand_in = types.ModuleType("clu.metric_writers.summary_writer")
        stand_in.SummaryWriter = _make_tensorboardx_writer
        sys.modules.setdefault(stand_in.__name__, stand_in)
    from clu.metric_writers import MultiWriter, SummaryWriter

    return MultiWriter([SummaryWriter(str(directory))] if is_first() else [])


def _make_tensorboardx_writer(logdir):
    # Imported late: its base class lies in the package that is being given the stand-in.
    from guided_distill.training.tensorboardx_writer import TensorboardXWriter

    return TensorboardXWriter(logdir)
