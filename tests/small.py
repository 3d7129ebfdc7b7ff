"""The smallest run of all stages on digits: compiled in seconds, it shows nothing.

Variants as in configs/digits.py, of which `:encoder` is tried.
"""

import os
import runpy

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "configs")
base = runpy.run_path(os.path.join(CONFIGS, "base.py"))
digits = runpy.run_path(os.path.join(CONFIGS, "digits.py"))


def get_config(variant=""):
    """The smoke run with a plainer network, rounds from 8 steps, and few updates."""
    config = digits["get_config"]("smoke")
    config.distillations = base["DISTILLATIONS"][variant]
    config.model.channel_mults = (1,)
    config.model.attention_resolutions = ()
    config.teacher.num_updates = 12
    config.step_one.num_updates = 8
    config.step_two.start_steps = 8
    with config.ignore_type():
        config.step_two.rounds = base["rounds_down"](
            8, num_updates=6, last_updates=6, learning_rate=1e-3
        )
    config.log_every = 2
    config.checkpoint_every = 4
    config.evaluation.baseline_num_steps = (1, 4)
    config.evaluation.translations = ((3, 5),)
    config.evaluation.translation_num_steps = 4
    config.evaluation.num_samples = 40
    config.evaluation.batch_size = 40
    config.evaluation.classifier_updates = 20
    return config


def data_settings(name, **changes):
    """The section `config.data` of configs/base.py, changed."""
    settings = base["get_config"]().data
    settings.update({"name": name} | changes)
    return settings
