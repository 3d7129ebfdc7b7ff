"""The command line: `python -m guided_distill.main --config=… --workdir=… [--mode=…]`."""

import os
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from guided_distill.errors import UserError, nearest
from guided_distill.training.loop import Interrupted

MODES = ("train", "sample", "evaluate")
EXIT_USER_ERROR = 1
SIGINT_EXIT = 130

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, such as configs/digits.py or configs/digits.py:smoke. Keys are overridden with "
    "--config.step_one.learning_rate=1e-4 or --config.step_two.rounds[0].num_updates=100. "
    "sample and evaluate take the workdir's own config where none is given.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the same command resumes it.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_STAGE = flags.DEFINE_string(
    "stage",
    "",
    "train: one stage alone (teacher, step_one, step_two, or one round such as step_two/0064). "
    "sample: the model to draw from (teacher, step_one; default: the student of --num_steps).",
)
_TEACHER = flags.DEFINE_string(
    "teacher", "", "train: folder of a finished stage, in any workdir, to distill from."
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 4, "sample: N, the number of sampling steps.")
_W = flags.DEFINE_list("w", ["1"], "sample: guidance weights, comma-separated; 0 is unguided.")
_LABELS = flags.DEFINE_list("labels", [], "sample: classes to cycle through; default: all.")
_N = flags.DEFINE_integer("n", 64, "sample: number of samples, over all weights.")
_SEED = flags.DEFINE_integer("seed", 0, "sample: seed of the noise.")
_OUT = flags.DEFINE_string("out", "", "sample: a picture (grid.png) or arrays (samples.npz).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "sample: samples per compiled call.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join("~", ".cache", "guided_distill"),
    "Folder of compiled programs, which later runs reuse; '' keeps none.",
)


def main(argv):
    """Runs the job that the flags describe; returns the exit code."""
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]}: flags are written --name=value")
        use_compilation_cache(_CACHE.value)
        run_mode()
    except UserError as error:
        return fail(error)
    except Interrupted as interruption:
        print(f"\nstopped by {interruption}: the same command goes on from here", file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from the last checkpoint", file=sys.stderr)
        return SIGINT_EXIT
    return 0


def run_mode():
    """Calls the job of `--mode` with its flags."""
    # Imported once the flags are known to be right: this takes seconds.
    from guided_distill import jobs, settings
    from guided_distill.sample import sample

    if not _WORKDIR.value:
        raise UserError("--workdir is missing: name the run's folder")
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    if _MODE.value == "sample":
        sample(
            workdir,
            stage=_STAGE.value,
            num_steps=_NUM_STEPS.value,
            weights=[to_number(w, float, "--w") for w in _W.value],
            labels=[to_number(label, int, "--labels") for label in _LABELS.value],
            n=_N.value,
            seed=_SEED.value,
            out=_OUT.value,
            batch_size=_BATCH_SIZE.value,
        )
        return
    config = _CONFIG.value
    if config is None and _MODE.value == "evaluate":
        config = jobs.load_config(workdir)
    if config is None:
        raise UserError("--config is missing: name a config file, such as configs/digits.py")
    settings.check_config(config)
    if _MODE.value == "train":
        jobs.train(config, workdir, stage_name=_STAGE.value, teacher=_TEACHER.value)
    elif not jobs.evaluate(config, workdir):
        print(f"evaluated before: {workdir / 'report' / 'report.md'}")


def to_number(text, kind, flag):
    """`text` as an int or float, or an error that names the flag."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{flag} takes numbers separated by commas, got {text!r}") from None


def use_compilation_cache(folder):
    """Keeps compiled programs on disk, so that a restart does not compile again."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def parse_flags(argv):
    """Parses the command line; a mistake there is one line too, not a traceback."""
    from guided_distill import settings

    try:
        settings.check_override_names(argv)
        rest = flags.FLAGS(argv)
        hasattr(_CONFIG.value, "items")  # A file that could not be read raises at first use.
        return rest
    except UserError as error:
        sys.exit(fail(error))
    except flags.UnrecognizedFlagError as error:
        sys.exit(fail(f"unknown flag --{error.flagname}{nearest(error.flagname, flags.FLAGS)}"))
    except IndexError:
        sys.exit(fail("an override names a round that step_two.rounds does not have"))
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        # A mistake inside the config file comes as a traceback: its last line is the message.
        sys.exit(fail(f"bad command line or config file: {str(error).strip().splitlines()[-1]}"))


def fail(error):
    """Prints an error in one line; returns the exit code."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return EXIT_USER_ERROR


def run():
    """Entry point of the console script."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
