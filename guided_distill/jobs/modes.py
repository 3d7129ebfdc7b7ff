"""What `--mode` can be: one row a mode, with what it does and one command of it; and the help."""

import dataclasses
import re
import textwrap

WIDTH = 80
COMMAND = "python -m guided_distill.main"
EVERY_MODE = "every mode"


@dataclasses.dataclass(frozen=True)
class Mode:
    """One mode.

    Attributes:
      does: in a few words.
      example: flags of a command.
      module: of `jobs`, where it cannot have the mode's name.
      alone: whether it is the work of one process.
    """

    does: str
    example: str
    module: str = ""
    alone: bool = False


MODES = {
    "train": Mode(
        "trains a teacher, distills it and evaluates; goes on where it was",
        "--config=configs/digits.py --workdir=runs/digits --config.seed=1",
    ),
    "sample": Mode(
        "draws samples of a run, or of students that come with the package",
        "--mode=sample --workdir=package:digits --num_steps=4 --w=0,1,2,4 --n=40 --out=dial.png",
    ),
    "evaluate": Mode(
        "measures the models of a run, or any images, against the data",
        "--mode=evaluate --workdir=runs/digits --config.evaluation.num_samples=2000",
    ),
    "translate": Mode(
        "turns images of one class or prompt into another, by a distilled encoder",
        "--mode=translate --workdir=runs/digits --source_label=3 --target_label=5 --w=0,1,2,4",
    ),
    "report": Mode(
        "writes the paper's tables and figures of one or several runs",
        "--mode=report --workdir=runs/paper",
    ),
    "import": Mode(
        "makes a teacher of a PyTorch module or a diffusers folder",
        "--mode=import --from=sd15 --out=teachers/sd15",
        module="import_model",
        alone=True,
    ),
    "encode_data": Mode(
        "turns captioned pictures, or prompts, into a teacher's latents and embeddings",
        "--mode=encode_data --teacher=teachers/sd15 --from=pictures --out=latents",
        alone=True,
    ),
    "export": Mode(
        "takes a student home: a diffusers folder, parameters, a program",
        "--mode=export --workdir=runs/sd15 --num_steps=4 --out=sd15-4",
        alone=True,
    ),
    "prepare_data": Mode(
        "makes and checks what runs of a config will read",
        "--mode=prepare_data --config=configs/cifar10.py --config.data.path=tfds",
        alone=True,
    ),
    "reference_stats": Mode(
        "keeps the statistics of a data set for evaluations to come",
        "--mode=reference_stats --config=configs/digits.py --workdir=runs/digits --out=digits.npz",
    ),
    "convert_inception": Mode(
        "reads InceptionV3's weights from the file that the field's tools use",
        "--mode=convert_inception --weights=pt_inception-2015-12-05-6726825d.pth "
        "--out=inception.npz",
        alone=True,
    ),
    "plan": Mode(
        "says what a recipe takes: operations, memory, hours, disk",
        "--mode=plan --config=configs/cifar10.py --devices=v5e-8 --image_shape=32,32,3 "
        "--num_classes=10",
        alone=True,
    ),
    "benchmark": Mode(
        "times updates, in parts, and sampling, on the devices at hand",
        "--mode=benchmark --config=configs/digits.py --stage=step_two --profile=profile",
        alone=True,
    ),
    "compile_check": Mode(
        "compiles every update for devices that need not be there",
        "--mode=compile_check --config=configs/cifar10.py --topology=v5e:2x4 "
        "--image_shape=32,32,3 --num_classes=10",
        alone=True,
    ),
}  # in the order of the help


def split_help(text):
    """`{mode: text}` of a flag's help, whose sentences name modes: "sample, export: N. train: …".

    What names none is of every mode.
    """
    text = re.sub(r"^<[^>]*>: ", "", text)  # What absl says of an enum.
    names = "|".join(MODES)
    label = rf"(?:^|(?<=[.)] ))((?:{names})(?: --\w+)?(?:, (?:{names})(?: --\w+)?)*): "
    first, *pairs = re.split(label, " ".join(text.split()))
    found = {EVERY_MODE: first.strip()} if first.strip() else {}
    for labels, words in zip(pairs[0::2], pairs[1::2], strict=True):
        for name in labels.split(", "):
            mode, _, with_flag = name.partition(" ")
            note = f"(with {with_flag}) " if with_flag else ""
            found[mode] = " ".join([found.get(mode, ""), note + words.strip()]).strip()
    return found


def help_text(flags, mode=""):
    """The help: what each mode does, an example, its flags; of one mode where it is named.

    Args:
      flags: absl flags, each with `name`, `help` and `short_name`.
      mode: one of `MODES`; "" for all.
    """
    of_flag = {flag.name: split_help(flag.help) for flag in flags}
    parts = [] if mode else [_overview()]
    for name in [mode] if mode else MODES:
        example = textwrap.fill(
            f"{COMMAND} {MODES[name].example}", WIDTH - 2, initial_indent="  ",
            subsequent_indent="      ", break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        title = textwrap.fill(f"--mode={name}: {MODES[name].does}", WIDTH)
        lines = [title, "", example.replace("\n", " \\\n"), ""]
        own = {flag: texts[name] for flag, texts in of_flag.items() if name in texts}
        parts.append("\n".join([*lines, *map(_flag_line, own, own.values())]).rstrip())
    every = {flag: texts[EVERY_MODE] for flag, texts in of_flag.items() if EVERY_MODE in texts}
    parts.append("\n".join([f"{EVERY_MODE}:", "", *map(_flag_line, every, every.values())]))
    return "\n\n".join(parts)


def _overview():
    width = max(map(len, MODES))
    below = " " * (width + 4)
    lines = [
        textwrap.fill(f"  {name:{width}}  {mode.does}", WIDTH, subsequent_indent=below)
        for name, mode in MODES.items()
    ]
    usage = (
        f"{COMMAND} --config=FILE --workdir=FOLDER \\\n    [--mode=MODE] [--config.KEY=VALUE ...]"
    )
    more = "--help --mode=sample tells of that mode alone, --helpfull of every flag."
    return "\n".join([usage, "", "Modes, train where none is given:", "", *lines, "", more])


def _flag_line(name, words):
    start = f"  --{name}  "
    return textwrap.fill(start + words, WIDTH, subsequent_indent="      ")
