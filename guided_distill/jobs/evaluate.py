"""The job `evaluate`: all finished stages of a workdir compared, or any folder of images."""

import dataclasses
import pathlib
from typing import Any

import jax

from guided_distill.data.dataset import class_counts
from guided_distill.data.folders import check_outside
from guided_distill.distill.distillations import (
    distillation_of,
    network_evaluations,
)
from guided_distill.distill.ranges import check_distilled
from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedClasses, AskedExamples
from guided_distill.evaluation.clip_score import asked_captions, score_real
from guided_distill.evaluation.comparison import Comparison, merge_draws
from guided_distill.evaluation.contenders import list_contenders
from guided_distill.evaluation.nearest import nearest_images
from guided_distill.evaluation.round_gap import measure_round_gaps
from guided_distill.evaluation.style_transfer import (
    coder_steps,
    images_of_pairs,
    list_coders,
    measure_translation,
)
from guided_distill.jobs.common import (
    choose_extractor,
    find_reference,
    load_classifier,
    load_clip,
    make_generators,
    open_data,
    see_data,
)
from guided_distill.jobs.measure_images import measure_images
from guided_distill.report.run_report import (
    STRIP_LENGTH,
    fewest_calls,
    report_is_whole,
    terminal_summary,
    write_report,
)
from guided_distill.report.words import distance_words
from guided_distill.run import settings
from guided_distill.run.checks import check_data
from guided_distill.system.files import local_path, read_json
from guided_distill.system.processes import from_first
from guided_distill.system.progress import to_stderr, to_stdout
from guided_distill.system.workdir import find_stages, own_workdir, params_hashes
from guided_distill.training.metric_writer import make_metric_writer

RESULTS_FORMAT = 4  # of results.json; another one is measured anew


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `evaluate`: the flags of these names, which `--help` explains."""

    config: Any
    workdir: str
    images: tuple[str, ...] = ()
    skip_broken: bool = False
    out: str = ""


def run(request):
    """Evaluates a workdir, or measures the images of the request."""
    workdir = local_path(request.workdir, "`workdir`")
    settings.prepare_config(request.config)
    check_outside(request.config.data, workdir, "`workdir`")
    if request.images:
        measure_images(
            request.config,
            workdir,
            request.images,
            skip_broken=request.skip_broken,
            out=request.out,
        )
        return
    with own_workdir(workdir):
        if not evaluate(request.config, workdir):
            to_stdout(f"evaluated before: {workdir / 'report' / 'index.html'}")


def evaluate(config, workdir, generators=None, dataset=None, seen=None):
    """Compares all finished stages and writes `report/`; False where it stood there already.

    What is left out is made: `make_generators`, `open_data`, `see_data`.
    """
    workdir = pathlib.Path(workdir)
    stages = find_stages(workdir)
    check_evaluation(config, workdir, stages)
    done = read_results(workdir, stages)
    wanted = settings.to_plain(config)["evaluation"], settings.file_digests(config)
    same = done and (evaluation_of(done), done["provenance"]["files"]) == wanted
    if same and from_first(lambda: report_is_whole(workdir / "report", done)):
        return False

    generators = generators or make_generators(config)
    dataset = dataset or open_data(config)
    for stage in stages.values():
        check_data(stage.path, stage.record, dataset.train)
    seen = seen or see_data(config, dataset)
    classifier = load_classifier(config, workdir, seen)
    extractor = choose_extractor(config, seen, classifier)
    reference = find_reference(config, workdir, seen.train, extractor)
    measures = extractor, classifier, reference
    asked, clip = ask(config, dataset), load_clip(config, seen)
    rows, images = compare(config, workdir, stages, generators, (dataset, asked), (*measures, clip))
    weights, seed = config.evaluation.w, config.evaluation.seed
    results = {
        "format": RESULTS_FORMAT,
        "rows": rows,
        "translations": evaluate_translation(config, stages, generators, classifier, dataset.test),
        "round_gaps": measure_round_gaps(stages, dataset.train, weights, seed=seed),
        "provenance": describe(config, stages, *measures, seen)
        | {"prompts": shown(asked, images), "clip": describe_clip(config, clip, dataset, seen)},
    }
    nearest = {}
    if images:
        nearest = nearest_images(fewest_calls(images), extractor, reference, seen.train)
    write_report(workdir / "report", results, images, nearest)
    write_to_tensorboard(workdir, results)
    to_stdout(terminal_summary(results))
    to_stderr(f"report: {workdir / 'report' / 'index.html'}")
    return True


def ask(config, dataset):
    """What samples are asked for: `AskedClasses`, or `AskedExamples` of data without classes."""
    if dataset.num_classes is None:
        return AskedExamples(dataset.test)
    return AskedClasses(class_counts(dataset.train), config.evaluation.num_samples)


def shown(asked, images):
    """The captions of the strips' columns; None where nothing is shown, or none is known."""
    captions = asked.captions(0, min(STRIP_LENGTH, *map(len, images.values()))) if images else []
    return captions if any(captions) else None


def compare(config, workdir, stages, generators, data, measures):
    """(rows over all draws, images of the first), as `Comparison.run` has them.

    `data` is (dataset, what `ask` makes of it), `measures` (extractor, classifier, reference,
    `ClipScorer` or None). Of latents that nothing decodes there are no images.
    """
    evaluation, (dataset, asked) = config.evaluation, data
    extractor, classifier, reference, clip = measures
    contenders = list_contenders(
        stages,
        generators,
        start_steps=config.step_two.start_steps,
        num_steps=evaluation.num_steps,
        baselines=evaluation.baselines,
        baseline_num_steps=evaluation.baseline_num_steps,
    )
    draws = [
        Comparison(
            workdir / "evaluation",
            reference,
            extractor,
            classifier,
            asked=asked,
            sample_shape=dataset.image_shape,
            num_samples=evaluation.num_samples,
            batch_size=evaluation.batch_size,
            seed=evaluation.seed + draw,
            clip=clip,
        ).run(contenders, evaluation.w)
        for draw in range(evaluation.num_draws)
    ]
    rows = [merge_draws(same) for same in zip(*(rows for rows, _ in draws), strict=True)]
    return rows, draws[0][1] if extractor.of_pictures else {}


def write_to_tensorboard(workdir, results):
    """The report's numbers beside the curves of training, at the run's last update."""
    stages = results["provenance"]["stages"].values()
    scalars = {
        f"report/{metric}, w = {row['w']:g}/{row['model']}_{row['num_steps']:04d}": row[metric]
        for row in results["rows"]
        for metric in ("fid", "is", "accuracy", "rmse_to_teacher", "clip_score")
        if row.get(metric) is not None
    }
    writer = make_metric_writer(workdir / "metrics")
    writer.write_scalars(sum(stage["updates"] for stage in stages), scalars)
    writer.flush()


def evaluate_translation(config, stages, generators, classifier, test_source):
    """Rows of `measure_translation` on held-out images; none without an encoder."""
    num_steps = config.evaluation.translation_num_steps
    _, both = coder_steps(stages)
    if not config.evaluation.translations or num_steps not in both:
        return []
    rows, _ = measure_translation(
        list_coders(stages, generators, num_steps=num_steps, seed=config.evaluation.seed),
        *images_of_pairs(test_source, config.evaluation.translations),
        encoder_w=config.w_range[0],
        weights=config.evaluation.w,
        classifier=classifier,
    )
    return rows


def evaluation_of(results):
    """The settings that results were measured with, those of earlier versions filled up."""
    return settings.ADDED_SINCE["evaluation"] | results["provenance"]["evaluation"]


def read_results(workdir, stages):
    """What `evaluate` measured; None where it did not, or other stages than `stages`."""
    results = read_json(workdir / "report" / "results.json", derived=True)
    if results is None or results.get("format") != RESULTS_FORMAT:
        return None
    return results if results["provenance"]["params_sha256"] == params_hashes(stages) else None


def check_evaluation(config, workdir, stages):
    """Refuses a workdir without students, and an N that none of them has."""
    records = [stage.record for stage in stages.values()]
    rows = [(record, distillation_of(record)) for record in records]
    distilled = {record["num_steps"] for record, row in rows if row and row.samplers}
    if not distilled:
        raise UserError(f"{workdir} holds no finished student: train one first")
    for num_steps in config.evaluation.num_steps:
        check_distilled(num_steps, distilled, what="evaluation.num_steps")


def describe(config, stages, extractor, classifier, reference, dataset):
    """What a report's numbers rest on, as plain JSON; `dataset` is that of `see_data`."""
    provenance = {
        "evaluation": settings.to_plain(config)["evaluation"],
        "params_sha256": params_hashes(stages),
        "data": dataset.name,
        "pictures": dataset.pictures,
        "decoder": dataset.decoder and dataset.decoder.name,
        "features": extractor.name,
        "reference": reference.provenance | {"sha256": reference.sha256},
        "files": settings.file_digests(config),
        "test_size": len(dataset.test),
        "num_classes": dataset.num_classes,
        "classifier": classifier and classifier.name,
        "classifier_accuracy": classifier and classifier.accuracy,
        "guide": guide_words(stages["teacher"]),
        "w_range": list(config.w_range),
        "batch_size": config.evaluation.batch_size,
        "stages": {name: stage_summary(stage.record) for name, stage in stages.items()},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    return provenance | {"distance": distance_words(provenance, config.evaluation.num_samples)}


def describe_clip(config, clip, dataset, seen):
    """Name of a `ClipScorer` and its score of the real pictures, as plain JSON; None for none."""
    if clip is None:
        return None
    num_samples = config.evaluation.num_samples
    real = score_real(clip, dataset.test, seen.see, num_samples)
    captions = asked_captions(dataset.test, num_samples)
    cut = {"captions": len(captions), "captions_cut": clip.num_cut(captions)}
    return {"name": clip.name, "resize": clip.resize, "real_pictures": real} | cut


def guide_words(teacher):
    """Which model guides the `FinishedStage` of a teacher, None for its own null."""
    guide = teacher.guide
    return guide and f"{guide.path}, sha256 {guide.record['params_sha256'][:16]}"


def stage_summary(record):
    """What a report says of how a stage was trained, with every setting that its params hang on."""
    keys = ("algorithm", "num_steps", "factor", "updates", "seconds", "seed")
    return {key: record[key] for key in keys} | {
        "evaluations": network_evaluations(record),
        "settings": record["config"],
    }
