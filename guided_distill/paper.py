"""The job `report`: the paper's tables and figures from one or several workdirs."""

import pathlib

from guided_distill import jobs
from guided_distill.errors import UserError
from guided_distill.evaluation.paper_figures import FigureMaker
from guided_distill.evaluation.paper_report import Run, write_paper_report
from guided_distill.evaluation.pictures import save_strips
from guided_distill.evaluation.translation import (
    SHOWN,
    list_coders,
    pictures_of_pairs,
    translate_pictures,
    translation_blocks,
)
from guided_distill.progress import say
from guided_distill.stages import find_stages

TRANSLATIONS_SHOWN = 3


def report(workdirs):
    """Writes `report/paper.md` into the first workdir; evaluates what is not evaluated yet.

    Args:
      workdirs: of runs on one data set.

    Raises:
      UserError: where a workdir holds no run or no student.
    """
    workdirs = [pathlib.Path(workdir) for workdir in workdirs]
    folder = workdirs[0] / "report"
    names = name_runs(workdirs)
    runs = [read_run(*named, folder) for named in zip(workdirs, names, strict=True)]
    write_paper_report(folder, runs)
    say(f"the paper's tables and figures: {folder / 'paper.html'}")


def name_runs(workdirs):
    """Each workdir's last folder, with as many folders above as it takes to tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["_".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("--workdir names the same folder twice")


def read_run(workdir, name, folder):
    """One workdir's numbers, and its figures drawn into `folder`/paper/`name`."""
    config = jobs.load_config(workdir)
    samplers = jobs.make_samplers(config)
    results = jobs.read_results(workdir)
    if results is None:
        jobs.evaluate(config, workdir, samplers)
        results = jobs.read_results(workdir)
    measured = results["provenance"]["evaluation"]
    stages = find_stages(workdir)
    pictures = folder / "paper" / name
    maker = FigureMaker(
        stages,
        samplers,
        pictures,
        num_steps=measured["num_steps"],
        weights=measured["w"],
        seed=measured["seed"],
    )
    figures = maker.draw_all()
    if results["translations"]:
        figures |= draw_translations(pictures, config, measured, stages, samplers)
    figures = {caption: f"paper/{name}/{file}" for caption, file in figures.items()}
    return Run(name, results["rows"], results["provenance"], results["translations"], figures)


def draw_translations(folder, config, measured, stages, samplers):
    """Figures 3, 4 and 12 of the first few pairs measured: `{caption: file name}`."""
    test_source = jobs.open_data(config).test
    num_steps = measured["translation_num_steps"]
    coders = list_coders(stages, samplers, num_steps=num_steps, seed=measured["seed"])
    figures = {}
    for old, new in measured["translations"][:TRANSLATIONS_SHOWN]:
        images, old_labels, new_labels = pictures_of_pairs(test_source, [(old, new)])
        images, old_labels, new_labels = (a[:SHOWN] for a in (images, old_labels, new_labels))
        translated = translate_pictures(
            coders, images, old_labels, new_labels,
            encoder_w=config.w_range[0], weights=measured["w"],
        )  # fmt: skip
        file = f"translation_{old}_to_{new}.png"
        save_strips(folder / file, translation_blocks(images, translated), f"{old} to {new}")
        figures[f"Figures 3, 4, 12: {old} to {new}"] = file
    return figures
