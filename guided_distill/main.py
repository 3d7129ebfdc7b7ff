"""The command line: `python -m guided_distill.main --config=… --workdir=… [--mode=…]`."""

import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import signal
import sys
import traceback

from guided_distill.system import interrupts

interrupts_as_before = interrupts.end_at_once()  # until all below is imported, which takes seconds

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from guided_distill.errors import UserError, describe_trouble, nearest  # noqa: E402
from guided_distill.jobs.modes import MODES, help_text  # noqa: E402
from guided_distill.system import processes  # noqa: E402
from guided_distill.system.compilation import use_compilation_cache  # noqa: E402
from guided_distill.system.progress import to_stderr  # noqa: E402
from guided_distill.training.loop import Interrupted  # noqa: E402

interrupts_as_before()

OF_ONE_PROCESS = ("config", "coordinator", "process_id", "compilation_cache")
OF_EVERY_MODE = (
    "config", "workdir", "mode", "compilation_cache", "distributed", "coordinator",
    "num_processes", "process_id", "join_timeout", "heartbeat_timeout", "version",
)  # fmt: skip
NO_CONFIG = "--config is missing: name a config file, such as configs/digits.py"
HELP = {"-h", "-help", "--help", "-helpshort", "--helpshort"}
NUMBERS = {"w": float, "image_shape": int}  # of flags that are lists
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
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do (default train).")
flags.DEFINE_string(
    "stage",
    None,
    "train, plan, benchmark, compile_check: one stage alone (teacher, step_one), a distillation "
    "(step_two/stochastic) or one round (step_two/0064). sample, export: the model to draw from "
    "or to take home (teacher, step_one, step_two/stochastic, single_w/1; default: the "
    "deterministic student of --num_steps).",
)
flags.DEFINE_string(
    "teacher",
    None,
    "train: folder of an imported model, or of a finished stage in any workdir, to distill from. "
    "encode_data: folder of a model that --mode=import made of a diffusers folder. "
    "sample, translate: such a folder, whose text encoders read prompts and whose decoder "
    "makes pictures of latents (default: the run's own).",
)
flags.DEFINE_integer(
    "num_steps",
    None,
    "sample, export: N, the number of sampling steps (default 4, or that of the only student). "
    "translate: N of encoder and "
    "decoder (default: the fewest that both have). encode_data --prompts: of the teacher "
    "(default 50).",
)
flags.DEFINE_list(
    "w",
    None,
    "sample, translate: guidance weights, comma-separated (default 1); 0 is unguided. "
    "encode_data --prompts: one weight, of what the teacher draws (default 1). export: weights to "
    "fold in, a folder each, for pipelines without a dial.",
)
flags.DEFINE_enum(
    "sampler",
    None,
    ("", "ddim", "stochastic", "ancestral"),
    "sample: ddim, stochastic or ancestral (default: what the model was made for).",
)
flags.DEFINE_string(
    "decoder",
    None,
    "sample: folder of a function that makes pictures of latents; default: evaluation.decoder of "
    "the run, or decoder/ in its teacher's folder.",
)
flags.DEFINE_boolean("force", None, "sample: take --sampler though the model was not made for it.")
flags.DEFINE_string("source_label", None, "translate: class of the images, a number or a name.")
flags.DEFINE_string("target_label", None, "translate: class to make of them, a number or a name.")
flags.DEFINE_string(
    "source_prompt",
    None,
    "translate: of a model of texts, what --images show; held-out examples "
    "have captions of their own.",
)
flags.DEFINE_string(
    "target_prompt", None, "translate: of a model of texts, what is to be made of them."
)
flags.DEFINE_float("encoder_w", None, "translate: guidance weight of the encoder (default 0).")
flags.DEFINE_list(
    "images",
    None,
    "translate: image files or folders; default: the data set's held-out images. "
    "evaluate: measure these instead of the run's models.",
)
flags.DEFINE_boolean(
    "skip_broken",
    None,
    "evaluate --images, encode_data: leave out files that cannot be used, and say which.",
)
flags.DEFINE_boolean(
    "skip_missing",
    None,
    "encode_data: leave out pictures without captions and captions without pictures.",
)
flags.DEFINE_list(
    "labels",
    None,
    "sample: classes to cycle through, numbers or names; default: all. A model without classes "
    "takes --prompts, else the conditioning of held-out examples in turn.",
)
flags.DEFINE_integer(
    "n",
    None,
    "sample: number of samples, over all weights (default 64). translate: number of images "
    "(default 64).",
)
flags.DEFINE_integer(
    "seed", None, "sample, translate, encode_data --prompts: seed of the noise (default 0)."
)
flags.DEFINE_string(
    "out",
    None,
    "sample: what to write, an image (grid.png; of latents through a decoder) or arrays "
    "(samples.npz). "
    "translate: the figure to write. reference_stats, convert_inception: the .npz to write. "
    "evaluate --images, plan, benchmark, compile_check: JSON to write as well. import, export, "
    "encode_data: the folder to write.",
)
flags.DEFINE_string(
    "from",
    None,
    "import: a diffusers folder, or one of transformers' CLIPModel, or a Python file whose "
    "get_teacher() gives the arguments of "
    "guided_distill.import_torch, or whose get_function() those of guided_distill.import_function. "
    "encode_data: a folder of pictures with captions or of classes, or of .tar or .parquet shards. "
    "export: the diffusers folder that the teacher was imported from, where it has moved.",
)
flags.DEFINE_string(
    "prompts",
    None,
    "encode_data: a text file, a prompt a line, where there are no pictures. "
    "sample: of a model of texts, such a .txt file or one prompt itself.",
)
flags.DEFINE_string(
    "dtype", None, "encode_data: of latents and embeddings: float32 (default) or bfloat16."
)
flags.DEFINE_string(
    "shard",
    None,
    "encode_data: the share of this process and how many there are, 0/64 to 63/64 (default 0/1).",
)
flags.DEFINE_integer("shard_rows", None, "encode_data: rows of each file (default 1024).")
flags.DEFINE_integer(
    "max_value", None, "encode_data: what is white in pictures of 16 bits (default 65535)."
)
flags.DEFINE_enum(
    "format",
    None,
    ("diffusers", "safetensors", "jax"),
    "export: diffusers (default), a folder that stock pipelines load; safetensors, parameters and "
    "card; or jax, these with the whole sampler as jax.export artifacts.",
)
flags.DEFINE_boolean(
    "link", None, "export: hard links instead of copies of what the student does not change."
)
flags.DEFINE_string(
    "weights", None, "convert_inception: the .pth file that the field's FID tools use."
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "sample, translate: images per compiled call (default 256). encode_data: images per compiled "
    "call (default 16).",
)
flags.DEFINE_boolean(
    "download", None, "prepare_data: let TensorFlow Datasets fetch what is missing."
)
flags.DEFINE_string(
    "topology",
    None,
    "compile_check: TPUs to compile for, such as v5e:2x4 (needs libtpu, no TPU); '' takes the "
    "devices at hand.",
)
flags.DEFINE_string(
    "devices",
    None,
    "plan: kind and number, such as v5e-64, v4-8, h100-8, a100-1; '' times updates on those at "
    "hand.",
)
flags.DEFINE_float(
    "share", None, "plan: of the devices' peak that is taken to be reached (default 0.4)."
)
flags.DEFINE_boolean(
    "compile", None, "plan: take memory and collectives from the TPU's compiler (needs libtpu)."
)
flags.DEFINE_string(
    "against",
    None,
    "benchmark: module:function, which is given (rehearsal, stage) and makes what does one update "
    "of another implementation, timed in turn with ours.",
)
flags.DEFINE_string("profile", None, "benchmark: folder for a profile, which TensorBoard opens.")
flags.DEFINE_integer("rounds", None, "benchmark: times that each is timed (default 10).")
flags.DEFINE_list(
    "image_shape",
    None,
    "plan, benchmark, compile_check: height,width,channels instead of the data set's own.",
)
flags.DEFINE_integer(
    "num_classes", None, "plan, benchmark, compile_check: classes instead of the data set's own.", 1
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
_VERSION = flags.DEFINE_boolean("version", False, "Says which versions these are, and ends.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join("~", ".cache", "guided_distill")),
    "Folder of compiled programs, which later runs reuse; '' keeps none.",
)


def main(argv):
    """Runs the job that the flags describe; returns the exit code."""
    together = False  # Whether all processes of the run end here.
    if _VERSION.value:
        print(versions())
        return 0
    try:
        stop_by_signals()
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]}: flags are written --name=value")
        use_compilation_cache(_CACHE.value)
        join_processes()
        code, together = run_mode() or 0, True
    except UserError as error:
        together = isinstance(error, processes.SharedError)
        code = EXIT_USER_ERROR if together and not processes.is_first() else fail(error)
    except Interrupted as interruption:
        to_stderr(f"\nstopped by {interruption}: the same command goes on from here")
        code, together = 128 + interruption.signum, True
    except KeyboardInterrupt:
        to_stderr("\nstopped: the same command goes on from the last checkpoint")
        code = SIGINT_EXIT
    except Exception as error:
        trouble = describe_trouble(error)
        if not trouble and not processes.several():
            raise
        if processes.several():
            processes.wait_for_verdict()
        if not trouble:
            traceback.print_exc()
        code = fail(trouble) if trouble else EXIT_USER_ERROR
    return processes.leave(code, together=together)


def versions():
    """Those of the package and of what it computes with."""
    names = "guided_distill", "jax", "jaxlib", "flax", "orbax-checkpoint"
    found = (f"{name} {importlib.metadata.version(name)}" for name in names)
    return ", ".join([*found, f"Python {platform.python_version()}"])


def stop_by_signals():
    """Makes SIGTERM and SIGHUP say that they stop a run, wherever it is; training saves first."""

    def stop(signum, frame):
        raise Interrupted(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, stop)


def join_processes():
    """Joins the run's other processes where there are some, and refuses what differs in them."""
    alone = (_NUM_PROCESSES.value, _PROCESS_ID.value) == (None, None) and not _COORDINATOR.value
    if alone and not _DISTRIBUTED.value:
        return
    if MODES[_MODE.value].alone:
        raise UserError(f"--mode={_MODE.value} is the work of one process: start it without others")
    if _COORDINATOR.value and not re.fullmatch(r".+:\d+", _COORDINATOR.value):
        raise UserError(f"--coordinator must be host:port, got {_COORDINATOR.value}")
    from guided_distill.run import settings

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
    from guided_distill.run import settings

    return {
        "code": processes.code_digest(),
        **{f"--{flag.name}": flag.value for flag in own_flags() if flag.name not in OF_ONE_PROCESS},
        "config": settings.to_plain(_CONFIG.value) if _CONFIG.value else None,
    }


def run_mode():
    """Runs the job of `--mode` with its flags; returns its exit code, None for 0."""
    name = MODES[_MODE.value].module or _MODE.value
    with interrupts.ending_at_once():
        job = importlib.import_module(f"guided_distill.jobs.{name}")
    return job.run(make_request(job.Request))


def make_request(request_class):
    """The request of a job: each field is the flag of its name, where that was given."""
    names = [field.name for field in dataclasses.fields(request_class)]
    if "workdir" in names:
        check_workdir()
    flag_of = {name: name.rstrip("_") for name in names}  # `from_` is the flag --from.
    refuse_unused(list(flag_of.values()))
    given = {name: flag_value(flag) for name, flag in flag_of.items() if flag in flags.FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if "config" in names:
        given["config"] = choose_config(given.get("workdir"))
    return request_class(**given)


def refuse_unused(names):
    """Refuses flags that were given and that this mode does not take; config keys are named."""
    from guided_distill.run import settings

    for flag in own_flags():
        if flag.present and flag.name not in (*names, *OF_EVERY_MODE):
            keys = [key for key in settings.RULES if key.rpartition(".")[2] == flag.name]
            way_out = f": its config key is {' or '.join(keys)}" if keys else ""
            raise UserError(f"--{flag.name} means nothing to --mode={_MODE.value}{way_out}")


def own_flags():
    """The flags that this module defines."""
    return flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])


def flag_value(name):
    """A flag's value as requests have it: lists as tuples, numbers where numbers are meant."""
    value = flags.FLAGS[name].value
    if name == "w" and value == []:
        raise UserError("--w is empty: name one or more guidance weights, such as --w=0,1")
    if name in NUMBERS and value is not None:
        return tuple(to_number(text, NUMBERS[name], name) for text in value)
    return tuple(value) if isinstance(value, list) else value


def to_number(text, kind, name):
    """`text` as an int or float, or an error that names the flag."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"--{name} takes numbers separated by commas, got {text!r}") from None


def check_workdir():
    """Refuses a missing `--workdir`."""
    if not (_WORKDIR.value or "").strip(","):
        raise UserError("--workdir is missing: name the run's folder")


def choose_config(workdir):
    """The config of `--config`, else, but for training, the one `workdir` was trained with."""
    from guided_distill.run import settings

    if _CONFIG.value is not None:
        return _CONFIG.value
    if workdir is None or _MODE.value == "train":
        raise UserError(NO_CONFIG)
    return settings.read_config(workdir)


def tell_help(argv):
    """Prints the help, of one mode where that is named, and ends, if it was asked for."""
    if not HELP & set(argv[1:]):
        return
    words = " ".join(argv[1:])
    mode = re.search(r"--?mode[= ](\S+)", words)
    if mode and mode[1] not in MODES:
        sys.exit(fail(f"--mode is none of {', '.join(MODES)}{nearest(mode[1], MODES)}"))
    print(help_text(own_flags(), mode[1] if mode else ""))
    sys.exit(0)


def parse_flags(argv):
    """Parses the command line; a mistake there is one line too, not a traceback."""
    tell_help(argv)
    with interrupts.ending_at_once():
        from guided_distill.run import settings, workdir_config

    try:
        argv = workdir_config.add_config(argv)
        settings.check_override_names(argv)
        rest = flags.FLAGS(argv)
        hasattr(_CONFIG.value, "items")  # A file that could not be read raises at first use.
        return rest
    except UserError as error:
        sys.exit(fail(error))
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            sys.exit(fail(f"{NO_CONFIG}, for --{error.flagname} to change"))
        sys.exit(fail(f"unknown flag --{error.flagname}{nearest(error.flagname, flags.FLAGS)}"))
    except IndexError:
        sys.exit(fail("an override names a round that step_two.rounds does not have"))
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        # A mistake inside the config file comes as a traceback: its last line is the message.
        reason = str(error).strip().splitlines()[-1]
        _, is_ours, ours = reason.partition("guided_distill.errors.UserError: ")
        if is_ours:
            sys.exit(fail(ours))
        missing = re.search(r"No such file or directory: '(.+\.py)'", reason)
        if missing:
            reason = f"there is no {missing[1]}{nearest_file(missing[1])}"
        sys.exit(fail(f"bad command line or config file: {reason}"))


def nearest_file(path):
    """`nearest` among the files beside a path that is not there, and the project's configs."""
    folders = {pathlib.Path(path).parent, pathlib.Path("configs")}
    return nearest(path, sorted(file for folder in folders for file in folder.glob("*.py")))


def fail(error):
    """Prints an error in one line; returns the exit code."""
    message = re.sub(r"`(\w+)`", name_flag, " ".join(str(error).split()))
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def name_flag(match):
    """An argument of the library, in backticks, as the flag that a person typed."""
    return f"--{match[1]}" if match[1] in flags.FLAGS else match[1]


def run():
    """Entry point of the console script."""
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:  # Before `main`, or while it leaves.
        sys.exit(SIGINT_EXIT)


if __name__ == "__main__":
    run()
