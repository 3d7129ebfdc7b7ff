"""All stages and parts of `small.py` in the fewest updates and samples, for many whole runs.

Its pictures are those of `own_images.py`, decoded into a cache. Learning rates are high, so that an
update that is lost or done twice is seen in every number.
"""

import os
import runpy

HERE = os.path.dirname(os.path.abspath(__file__))
small = runpy.run_path(os.path.join(HERE, "small.py"))


def get_config(variant=""):
    """The small run with a narrower network and rounds from 4 steps."""
    config = small["get_config"](variant)
    config.data.name = "folder"
    config.data.image_size = 8
    config.data.channels = 1
    config.model.width = 8
    for stage, num_updates in ((config.teacher, 6), (config.step_one, 4)):
        stage.num_updates = num_updates
        stage.learning_rate = 1e-2
        stage.warmup_updates = 0
    config.step_two.start_steps = 4
    with config.ignore_type():
        config.step_two.rounds = small["base"]["rounds_down"](
            4, num_updates=4, last_updates=4, learning_rate=1e-2
        )
        config.evaluation.w = (0.0, 3.0)
        config.evaluation.num_steps = (1, 2)
        config.evaluation.baseline_num_steps = (1,)
    config.evaluation.translations = ()
    config.log_every = 1
    config.checkpoint_every = 2
    config.evaluation.num_samples = 40
    config.evaluation.batch_size = 20
    config.evaluation.classifier_updates = 20
    return config
