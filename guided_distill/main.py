"""The command line: `python -m guided_distill.main --config=… --workdir=… [--mode=…]`."""

import os
import pathlib
import re
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from guided_distill import processes
from guided_distill.errors import UserError, nearest
from guided_distill.progress import say, tell
from guided_distill.training.loop import Interrupted

MODES = (
    "train",
    "sample",
    "evaluate",
    "translate",
    "report",
    "prepare_data",
    "reference_stats",
    "convert_inception",
    "compile_check",
)
MODES_OF_ONE_PROCESS = ("prepare_data", "convert_inception", "compile_check")
OF_ONE_PROCESS = ("config", "coordinator", "process_id", "compilation_cache")
NAMED = 3  # differences between processes that are told
EXIT_USER_ERROR = 1
SIGINT_EXIT = 130

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, such as configs/digits.py or configs/digits.py:smoke. Keys are overridden with "
    "--config.step_one.learning_rate=1e-4 or --config.step_two.rounds[0].num_updates=100. "
    "All modes but train take the workdir's own config where none is given.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the same command resumes it.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_STAGE = flags.DEFINE_string(
    "stage",
    "",
    "train: one stage alone (teacher, step_one), a distillation (step_two/stochastic) or one "
    "round (step_two/0064). sample: the model to draw from (teacher, step_one, "
    "step_two/stochastic, single_w/1; default: the deterministic student of --num_steps).",
)
_TEACHER = flags.DEFINE_string(
    "teacher", "", "train: folder of a finished stage, in any workdir, to distill from."
)
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "sample: N, the number of sampling steps (default 4). translate: N of encoder and decoder "
    "(default: the fewest that both have).",
)
_W = flags.DEFINE_list(
    "w", ["1"], "sample, translate: guidance weights, comma-separated; 0 is unguided."
)
_SAMPLER = flags.DEFINE_enum(
    "sampler",
    "",
    ("", "ddim", "stochastic", "ancestral"),
    "sample: the sampler; default: the one that the model was made for.",
)
_FORCE = flags.DEFINE_boolean(
    "force", False, "sample: take --sampler though the model was not made for it."
)
_SOURCE_LABEL = flags.DEFINE_integer("source_label", None, "translate: class of the pictures.")
_TARGET_LABEL = flags.DEFINE_integer("target_label", None, "translate: class to make of them.")
_ENCODER_W = flags.DEFINE_float("encoder_w", 0.0, "translate: guidance weight of the encoder.")
_IMAGES = flags.DEFINE_list(
    "images",
    [],
    "translate: picture files or folders; default: the data set's held-out pictures. "
    "evaluate: measure these instead of the run's models.",
)
_SKIP_BROKEN = flags.DEFINE_boolean(
    "skip_broken", False, "evaluate --images: leave out files that cannot be used, and say which."
)
_LABELS = flags.DEFINE_list(
    "labels", [], "sample: classes to cycle through, numbers or names; default: all."
)
_N = flags.DEFINE_integer(
    "n", 64, "sample: number of samples, over all weights. translate: of pictures."
)
_SEED = flags.DEFINE_integer("seed", 0, "sample, translate: seed of the noise.")
_OUT = flags.DEFINE_string(
    "out",
    "",
    "sample: a picture (grid.png) or arrays (samples.npz). translate: the figure. "
    "reference_stats, convert_inception: the .npz to write. evaluate --images: JSON.",
)
_WEIGHTS = flags.DEFINE_string(
    "weights", "", "convert_inception: the .pth file that the field's FID tools use."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "sample, translate: pictures per compiled call."
)
_DOWNLOAD = flags.DEFINE_boolean(
    "download", False, "prepare_data: let TensorFlow Datasets fetch what is missing."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "compile_check: TPUs to compile for, such as v5e:2x4 (needs libtpu, no TPU); '' takes the "
    "devices at hand.",
)
_IMAGE_SHAPE = flags.DEFINE_list(
    "image_shape", [], "compile_check: height,width,channels instead of the data set's own."
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "compile_check: classes instead of the data set's own.", 1
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "Join the run's other processes as the environment says: a TPU slice, Slurm, Kubernetes, MPI. "
    "The three flags below do it by name.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
    "host:port of process 0, where the processes of one run meet.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one, from 0.", 0)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait for the run's other processes at the start.", 1
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds after which a machine that says nothing counts as lost; a process that dies is "
    "noticed at once.",
    10,
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join("~", ".cache", "guided_distill")),
    "Folder of compiled programs, which later runs reuse; '' keeps none.",
)


def main(argv):
    """Runs the job that the flags describe; returns the exit code."""
    together = False  # Whether all processes of the run end here.
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]}: flags are written --name=value")
        use_compilation_cache(_CACHE.value)
        join_processes()
        code, together = run_mode() or 0, True
    except UserError as error:
        together = isinstance(error, processes.SharedError)
        code = EXIT_USER_ERROR if together and not processes.is_first() else fail(error)
    except Interrupted as interruption:
        say(f"\nstopped by {interruption}: the same command goes on from here")
        code, together = 128 + interruption.signum, True
    except KeyboardInterrupt:
        say("\nstopped: the same command goes on from the last checkpoint")
        code = SIGINT_EXIT
    except Exception:
        if not processes.several():
            raise
        processes.wait_for_verdict()
        traceback.print_exc()
        code = EXIT_USER_ERROR
    return processes.leave(code, together=together)


def join_processes():
    """Joins the run's other processes where there are some, and refuses what differs in them."""
    alone = (_NUM_PROCESSES.value, _PROCESS_ID.value) == (None, None) and not _COORDINATOR.value
    if alone and not _DISTRIBUTED.value:
        return
    if _MODE.value in MODES_OF_ONE_PROCESS:
        raise UserError(f"--mode={_MODE.value} is the work of one process: start it without others")
    if _COORDINATOR.value and not re.fullmatch(r".+:\d+", _COORDINATOR.value):
        raise UserError(f"--coordinator must be host:port, got {_COORDINATOR.value}")
    from guided_distill import settings

    processes.join(
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        join_timeout=_JOIN_TIMEOUT.value,
        heartbeat_timeout=_HEARTBEAT_TIMEOUT.value,
    )
    processes.check_same(
        describe_run(),
        lambda first, mine: "; ".join(settings.differing_keys(first, mine)[:NAMED]),
    )


def describe_run():
    """What all processes of a run must have in common, as plain JSON."""
    from guided_distill import settings

    own_flags = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    return {
        "code": processes.code_digest(),
        **{f"--{flag.name}": flag.value for flag in own_flags if flag.name not in OF_ONE_PROCESS},
        "config": settings.to_plain(_CONFIG.value) if _CONFIG.value else None,
    }


def run_mode():
    """Calls the job of `--mode` with its flags; returns its exit code, None for 0."""
    without_workdir = {
        "convert_inception": run_convert_inception,
        "prepare_data": run_prepare_data,
        "compile_check": run_compile_check,
    }
    if _MODE.value in without_workdir:
        return without_workdir[_MODE.value]()
    if not (_WORKDIR.value or "").strip(","):
        raise UserError("--workdir is missing: name the run's folder")
    if "://" in _WORKDIR.value:
        raise UserError(f"--workdir={_WORKDIR.value} is no folder: mount the bucket and name that")
    workdirs = [pathlib.Path(_WORKDIR.value).expanduser()]
    if _MODE.value == "report":
        workdirs = [pathlib.Path(path).expanduser() for path in _WORKDIR.value.split(",") if path]
    run = {
        "train": run_train,
        "sample": run_sample,
        "evaluate": run_evaluate,
        "translate": run_translate,
        "report": run_report,
        "reference_stats": run_reference_stats,
    }[_MODE.value]
    return run(*workdirs)


# The jobs are imported once the flags are known to be right: this takes seconds.


def run_train(workdir):
    from guided_distill import runs

    runs.train(chosen_config(), workdir, stage=_STAGE.value, teacher=_TEACHER.value)


def run_evaluate(workdir):
    from guided_distill import jobs, runs

    config = checked_config(workdir)
    if _IMAGES.value:
        jobs.measure_pictures(
            config, workdir, _IMAGES.value, skip_broken=_SKIP_BROKEN.value, out=_OUT.value
        )
        return
    with runs.own_workdir(workdir):
        if not jobs.evaluate(config, workdir):
            tell(f"evaluated before: {workdir / 'report' / 'index.html'}")


def run_report(*workdirs):
    from guided_distill.paper import report

    report(workdirs)


def run_reference_stats(workdir):
    from guided_distill import jobs

    jobs.reference_stats(checked_config(workdir), workdir, _OUT.value)


def run_convert_inception():
    from guided_distill.evaluation.inception_weights import WHERE, convert_inception

    if not _WEIGHTS.value:
        raise UserError(f"--mode=convert_inception needs --weights: {WHERE}")
    if not _OUT.value:
        raise UserError("--mode=convert_inception needs --out, such as --out=inception.npz")
    sha256 = convert_inception(_WEIGHTS.value, _OUT.value)
    print(f"{_OUT.value}: InceptionV3 of 2015-12-05, parameters {sha256}")


def run_prepare_data():
    from guided_distill import jobs

    jobs.prepare_data(checked_config(), download=_DOWNLOAD.value)


def run_compile_check():
    jax.config.update("jax_platforms", "cpu" if _TOPOLOGY.value else None)
    from guided_distill.compile_check import compile_check

    shape = _IMAGE_SHAPE.value and [to_number(n, int, "--image_shape") for n in _IMAGE_SHAPE.value]
    if shape and len(shape) != 3:
        raise UserError(f"--image_shape takes height,width,channels, got {_IMAGE_SHAPE.value}")
    fits = compile_check(
        checked_config(),
        stage_name=_STAGE.value,
        topology=_TOPOLOGY.value,
        image_shape=shape,
        num_classes=_NUM_CLASSES.value,
        out=_OUT.value,
    )
    return 0 if fits else EXIT_USER_ERROR


def run_sample(workdir):
    from guided_distill.sample import sample

    sample(
        workdir,
        stage=_STAGE.value,
        num_steps=4 if _NUM_STEPS.value is None else _NUM_STEPS.value,
        weights=weights(),
        labels=_LABELS.value,
        n=_N.value,
        seed=_SEED.value,
        out=_OUT.value,
        batch_size=_BATCH_SIZE.value,
        sampler=_SAMPLER.value,
        force=_FORCE.value,
    )


def run_translate(workdir):
    from guided_distill.translate import translate

    translate(
        checked_config(workdir),
        workdir,
        source_label=_SOURCE_LABEL.value,
        target_label=_TARGET_LABEL.value,
        encoder_w=_ENCODER_W.value,
        weights=weights(),
        num_steps=_NUM_STEPS.value,
        images=_IMAGES.value,
        n=_N.value,
        seed=_SEED.value,
        out=_OUT.value,
        batch_size=_BATCH_SIZE.value,
    )


def checked_config(workdir=None):
    """`chosen_config`, checked."""
    from guided_distill import runs

    config = chosen_config(workdir)
    runs.check_config(config)
    return config


def chosen_config(workdir=None):
    """The config of `--config`, else the one that `workdir` was trained with."""
    from guided_distill import jobs

    config = _CONFIG.value
    if config is None and workdir is not None:
        config = jobs.load_config(workdir)
    if config is None:
        raise UserError("--config is missing: name a config file, such as configs/digits.py")
    return config


def weights():
    """The numbers of `--w`."""
    if not _W.value:
        raise UserError("--w is empty: name one or more guidance weights, such as --w=0,1")
    return [to_number(w, float, "--w") for w in _W.value]


def to_number(text, kind, flag):
    """`text` as an int or float, or an error that names the flag."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{flag} takes numbers separated by commas, got {text!r}") from None


def use_compilation_cache(folder):
    """Keeps compiled programs on disk, so that a restart does not compile again."""
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)
    if folder:
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
