"""The job `report`: the paper's tables and figures from one or several workdirs."""

import dataclasses
import pathlib

from guided_distill.errors import UserError
from guided_distill.evaluation.style_transfer import (
    SHOWN,
    images_of_pairs,
    list_coders,
    translate_images,
    translation_blocks,
)
from guided_distill.jobs.common import eyes_of, make_generators, make_mesh, open_data
from guided_distill.jobs.evaluate import evaluate, read_results
from guided_distill.report.grids import save_strips
from guided_distill.report.paper_figures import FigureMaker
from guided_distill.report.paper_report import Run, write_paper_report
from guided_distill.run import settings
from guided_distill.system.files import local_path
from guided_distill.system.progress import to_stderr
from guided_distill.system.workdir import find_stages

TRANSLATIONS_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `report`: the flags of these names, which `--help` explains."""

    workdir: str


def run(request):
    """Writes the paper's report of the workdirs into the first of them."""
    whole = local_path(request.workdir, "`workdir`")
    texts = [whole] if whole.is_dir() else request.workdir.split(",")  # A name may have commas.
    write_paper([local_path(text, "`workdir`") for text in texts if text])


def write_paper(workdirs):
    """Writes `report/paper.md` into the first workdir; evaluates what is not evaluated yet.

    Raises:
      UserError: where a workdir holds no run or no student.
    """
    workdirs = [pathlib.Path(workdir) for workdir in workdirs]
    folder = workdirs[0] / "report"
    names = name_runs(workdirs)
    runs = [read_run(*named, folder) for named in zip(workdirs, names, strict=True)]
    write_paper_report(folder, runs)
    to_stderr(f"the paper's tables and figures: {folder / 'paper.html'}")


def name_runs(workdirs):
    """Each workdir's last folder, with as many folders above as it takes to tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["_".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("`workdir` names the same folder twice")


def read_run(workdir, name, folder):
    """One workdir's numbers, and its figures drawn into `folder`/paper/`name`."""
    config = settings.read_config(workdir)
    generators = make_generators(config)
    stages = find_stages(workdir)
    results = read_results(workdir, stages)
    if results is None:
        evaluate(config, workdir, generators)
        results = read_results(workdir, stages)
    if results["rows"][0]["accuracy"] is None:
        raise UserError(
            f"{workdir} has no labelled pictures, and the paper's tables are of those: its own "
            f"report is {workdir / 'report' / 'index.html'}"
        )
    measured = results["provenance"]["evaluation"]
    student = next(stage for stage in stages.values() if stage.record["stage"] == "step_two")
    see = eyes_of(student, settings.decoder_path(config), make_mesh(config))
    drawn = folder / "paper" / name
    maker = FigureMaker(
        stages,
        generators,
        drawn,
        num_steps=measured["num_steps"],
        weights=measured["w"],
        seed=measured["seed"],
        see=see,
    )
    figures = maker.draw_all()
    if results["translations"]:
        figures |= draw_translations(drawn, config, measured, stages, generators, see)
    figures = {caption: f"paper/{name}/{file}" for caption, file in figures.items()}
    return Run(name, results["rows"], results["provenance"], results["translations"], figures)


def draw_translations(folder, config, measured, stages, generators, see):
    """Figures 3, 4 and 12 of the first few pairs measured: `{caption: file name}`."""
    test_source = open_data(config).test
    num_steps = measured["translation_num_steps"]
    coders = list_coders(stages, generators, num_steps=num_steps, seed=measured["seed"])
    figures = {}
    for old, new in measured["translations"][:TRANSLATIONS_SHOWN]:
        x, old_labels, new_labels = images_of_pairs(test_source, [(old, new)])
        x, old_labels, new_labels = (a[:SHOWN] for a in (x, old_labels, new_labels))
        translated = translate_images(
            coders, x, old_labels, new_labels,
            encoder_w=config.w_range[0], weights=measured["w"],
        )  # fmt: skip
        file = f"translation_{old}_to_{new}.png"
        save_strips(folder / file, translation_blocks(x, translated, see), f"{old} to {new}")
        figures[f"Figures 3, 4, 12: {old} to {new}"] = file
    return figures
