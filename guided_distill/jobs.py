"""The jobs `train` and `evaluate` on one workdir."""

import pathlib

import jax
import numpy as np

from guided_distill import settings
from guided_distill.data.pictures import read_pictures
from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.data.registry import open_dataset, prepare_builder
from guided_distill.errors import UserError
from guided_distill.evaluation.classifier import load_or_train_classifier
from guided_distill.evaluation.evaluate import (
    STUDENT_MODELS,
    Evaluation,
    list_contenders,
    merge_draws,
)
from guided_distill.evaluation.features import load_inception_extractor
from guided_distill.evaluation.generate import Samplers
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.nearest import nearest_pictures
from guided_distill.evaluation.pictures import grid, save_grid
from guided_distill.evaluation.reference import (
    compute_reference,
    load_reference,
    save_reference,
)
from guided_distill.evaluation.report import align, terminal_summary, write_report
from guided_distill.evaluation.round_gap import measure_round_gaps
from guided_distill.evaluation.translation import (
    can_translate,
    list_coders,
    measure_translation,
    pictures_of_pairs,
)
from guided_distill.pipeline import Trainer
from guided_distill.processes import check_same, from_first, several
from guided_distill.progress import say, tell
from guided_distill.stage_checks import check_data
from guided_distill.stages import (
    find_stages,
    network_evaluations,
    params_hashes,
    plan_stages,
    select_stages,
    stages_after,
)
from guided_distill.training import sharding
from guided_distill.training.checkpoint import read_json, write_json
from guided_distill.training.metric_writer import make_metric_writer
from guided_distill.training.stage_folder import StageFolder

PREVIEW_STEPS = 64  # at most, of the samples drawn after a stage
RESULTS_FORMAT = 2  # of results.json; another one is measured anew
PREVIEW_SAMPLES = 10  # per guidance weight


def train(config, workdir, *, stage_name="", teacher="", on_pictures=None):
    """Trains what is not finished, then evaluates; says so where nothing is left to do.

    Args:
      config: a checked ConfigDict.
      workdir: the run's folder.
      stage_name: one stage alone, without evaluation; '' means all.
      teacher: folder of a finished stage, in any workdir, that the first stage trained learns
        from; the stages up to its kind are left out.
      on_pictures: called with (title, path) of the samples drawn after a stage; None does nothing.

    Returns:
      Whether anything was trained or evaluated.
    """
    workdir = pathlib.Path(workdir)
    settings.check_devices(config, jax.device_count())
    dataset = open_data(config)
    stages = select_stages(plan_stages(config), stage_name)
    teacher_folder = StageFolder(pathlib.Path(teacher)) if teacher else None
    if teacher_folder:
        _, record = teacher_folder.load()
        stages = stages_after(stages, record)
    samplers = make_samplers(config)
    trainer = Trainer(
        config,
        workdir,
        dataset,
        on_stage_end=lambda *args: preview(config, workdir, samplers, on_pictures, *args),
    )
    trained = trainer.run(stages, teacher_folder)
    if stage_name:
        say(f"{stage_name}: {'finished' if trained else 'was finished before'}: {workdir}")
        return bool(trained)
    evaluated = evaluate(config, workdir, samplers, dataset)
    if not trained and not evaluated:
        say(f"this run is finished: {workdir / 'report' / 'index.html'}")
    return bool(trained or evaluated)


def evaluate(config, workdir, samplers=None, dataset=None):
    """Compares all finished stages and writes `report/`; False where it stood there already."""
    workdir = pathlib.Path(workdir)
    folder = workdir / "report"
    stages = find_stages(workdir)
    check_evaluation(config, workdir, stages)
    evaluation = settings.to_plain(config)["evaluation"]
    done = read_results(workdir)
    if done and done["provenance"]["evaluation"] == evaluation:
        return False

    samplers = samplers or make_samplers(config)
    dataset = dataset or open_data(config)
    train_source, test_source = dataset.train, dataset.test
    for stage in stages.values():
        check_data(stage, train_source)
    classifier = load_classifier(config, workdir, dataset)
    extractor = choose_extractor(config, classifier)
    reference = find_reference(config, workdir, train_source, extractor)
    contenders = list_contenders(
        stages,
        samplers,
        start_steps=config.step_two.start_steps,
        num_steps=config.evaluation.num_steps,
        baselines=config.evaluation.baselines,
        baseline_num_steps=config.evaluation.baseline_num_steps,
    )
    draws = [
        Evaluation(
            workdir / "evaluation",
            reference,
            extractor,
            classifier,
            num_classes=train_source.num_classes,
            image_shape=train_source.image_shape,
            num_samples=config.evaluation.num_samples,
            batch_size=config.evaluation.batch_size,
            seed=config.evaluation.seed + draw,
        ).run(contenders, config.evaluation.w)
        for draw in range(config.evaluation.num_draws)
    ]
    rows = [merge_draws(same) for same in zip(*(rows for rows, _ in draws), strict=True)]
    pictures = draws[0][1]
    weights, seed = config.evaluation.w, config.evaluation.seed
    results = {
        "format": RESULTS_FORMAT,
        "rows": rows,
        "translations": evaluate_translation(config, stages, samplers, classifier, test_source),
        "round_gaps": measure_round_gaps(stages, train_source, weights, seed=seed),
        "provenance": describe(config, stages, extractor, classifier, reference, test_source),
    }
    nearest = nearest_pictures(pictures, extractor, reference, train_source)
    write_report(folder, results, pictures, nearest)
    write_to_tensorboard(workdir, results)
    tell(terminal_summary(results))
    say(f"report: {folder / 'index.html'}")
    return True


def open_data(config):
    """The config's `Dataset`, checked against the rest of the config."""
    dataset = open_dataset(settings.data_settings(config))
    settings.check_data(config, dataset)
    if several():
        check_same(
            dataset.train.sha256, lambda first, mine: f"its data: {mine[:12]}, not {first[:12]}"
        )
    return dataset


def prepare_data(config, *, download=False):
    """The job `prepare_data`: all that runs of this config will read, made and checked."""
    prepare_builder(settings.data_settings(config), download=download)
    dataset = open_data(config)
    height, width, channels = dataset.image_shape
    say(
        f"{dataset.name}: {len(dataset.train):,} pictures to learn from and {len(dataset.test):,} "
        f"held out, {height}x{width}x{channels}, {dataset.num_classes} classes, "
        f"sha256 {dataset.train.sha256[:16]}"
    )


def load_classifier(config, workdir, dataset):
    """The `TrainedClassifier` of a workdir, trained now if it is not there."""
    if dataset.num_classes == 1:
        say(
            "one class: a classifier has nothing to learn, so its features are random ones; "
            "evaluation.inception gives distances that mean more"
        )
    return load_or_train_classifier(
        workdir / "classifier",
        dataset.train,
        dataset.test,
        num_updates=config.evaluation.classifier_updates,
        seed=config.seed,
    )


def measure_pictures(config, workdir, images, *, skip_broken=False, out=""):
    """The job `evaluate` on files: the metrics of any pictures against the data set.

    Args:
      config: the workdir's ConfigDict.
      workdir: where the classifier and the reference statistics lie.
      images: picture files or folders.
      skip_broken: leave out files that cannot be used, and say which.
      out: JSON to write; '' writes none.
    """
    dataset = open_data(config)
    pictures, notices = read_pictures(images, dataset.image_shape, skip_broken=skip_broken)
    for notice in notices:
        say(notice)
    if len(pictures) < 2:
        raise UserError("--images holds one picture: a distance needs two or more")
    classifier = load_classifier(config, workdir, dataset)
    extractor = choose_extractor(config, classifier)
    reference = find_reference(config, workdir, dataset.train, extractor)
    measurement = Measurement(len(pictures), extractor, classifier, reference)
    for start in range(0, len(pictures), config.evaluation.batch_size):
        part = pictures[start : start + config.evaluation.batch_size]
        measurement.add(to_float(part), np.full(len(part), -1), {})
    unlabelled = ("accuracy", "rmse_to_teacher", "rmse_to_step_one")
    row = {key: value for key, value in measurement.result().items() if key not in unlabelled}
    if out:
        write_json(pathlib.Path(out), row | {"reference": reference.provenance})
    numbers = [[key, f"{v:.4f}" if isinstance(v, float) else str(v)] for key, v in row.items()]
    tell(align([["metric", "value"], *numbers]))


def reference_stats(config, workdir, out=""):
    """The job `reference_stats`: statistics of the training pictures, for any later evaluation."""
    dataset = open_data(config)
    classifier = None
    if not config.evaluation.inception:
        classifier = load_classifier(config, workdir, dataset)
    extractor = choose_extractor(config, classifier)
    path = pathlib.Path(out or workdir / "reference" / f"{extractor.name}.npz")
    save_reference(path, compute_reference(dataset.train, extractor))
    say(f"statistics of {len(dataset.train):,} pictures on {extractor.name}: {path}")


def choose_extractor(config, classifier):
    """InceptionV3 where the config names its weights, else the data set's own classifier."""
    if not config.evaluation.inception:
        return classifier
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return load_inception_extractor(config.evaluation.inception, mesh)


def find_reference(config, workdir, source, extractor):
    """`ReferenceStats`: of the file that the config names, of the workdir, or computed now."""
    if config.evaluation.reference_stats:
        return load_reference(config.evaluation.reference_stats, source, extractor)
    path = workdir / "reference" / f"{extractor.name}.npz"
    if from_first(path.exists):
        try:
            return load_reference(path, source, extractor)
        except UserError as error:
            say(f"{error}: computing it again")
    reference = compute_reference(source, extractor)
    save_reference(path, reference)
    return reference


def write_to_tensorboard(workdir, results):
    """The report's numbers beside the curves of training, at the run's last update."""
    stages = results["provenance"]["stages"].values()
    scalars = {
        f"report/{metric}, w = {row['w']:g}/{row['model']}_{row['num_steps']:04d}": row[metric]
        for row in results["rows"]
        for metric in ("fid", "is", "accuracy", "rmse_to_teacher")
        if row[metric] is not None
    }
    writer = make_metric_writer(workdir / "metrics")
    writer.write_scalars(sum(stage["updates"] for stage in stages), scalars)
    writer.flush()


def evaluate_translation(config, stages, samplers, classifier, test_source):
    """Rows of `measure_translation` on held-out pictures; none without an encoder."""
    num_steps = config.evaluation.translation_num_steps
    if not config.evaluation.translations or not can_translate(stages, num_steps):
        return []
    rows, _ = measure_translation(
        list_coders(stages, samplers, num_steps=num_steps, seed=config.evaluation.seed),
        *pictures_of_pairs(test_source, config.evaluation.translations),
        encoder_w=config.w_range[0],
        weights=config.evaluation.w,
        classifier=classifier,
    )
    return rows


def read_results(workdir):
    """What `evaluate` measured; None where it did not, or other stages than are there now."""
    results = read_json(workdir / "report" / "results.json")
    if results is None or results.get("format") != RESULTS_FORMAT:
        return None
    hashes = params_hashes(find_stages(workdir))
    return results if results["provenance"]["params_sha256"] == hashes else None


def check_evaluation(config, workdir, stages):
    """Refuses a workdir without students, and an N that none of them has."""
    records = [stage.record for stage in stages.values()]
    distilled = {r["num_steps"] for r in records if r["algorithm"] in STUDENT_MODELS}
    if not distilled:
        raise UserError(f"{workdir} holds no finished student: run --mode=train first")
    for num_steps in config.evaluation.num_steps:
        settings.check_distilled(num_steps, distilled, what="evaluation.num_steps")


def describe(config, stages, extractor, classifier, reference, test_source):
    """What a report's numbers rest on, as plain JSON."""
    return {
        "evaluation": settings.to_plain(config)["evaluation"],
        "params_sha256": params_hashes(stages),
        "data": test_source.name,
        "features": extractor.name,
        "reference": reference.provenance,
        "test_size": len(test_source),
        "classifier": classifier.name,
        "classifier_accuracy": classifier.accuracy,
        "w_range": list(config.w_range),
        "batch_size": config.evaluation.batch_size,
        "stages": {name: stage_summary(stage.record) for name, stage in stages.items()},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def stage_summary(record):
    """What a report says of how a stage was trained."""
    keys = ("algorithm", "num_steps", "factor", "updates", "seconds")
    return {key: record[key] for key in keys} | {"evaluations": network_evaluations(record)}


def make_samplers(config):
    """Samplers for all of a config's devices."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Samplers(mesh, config.evaluation.batch_size, config.evaluation.ancestral_mix)


def preview(config, workdir, samplers, on_pictures, stage, folder, update, writer):
    """Draws a strip per guidance weight after a stage: `samples/<stage>.png`, TensorBoard.

    `on_pictures`, as in `train`, is told of it.
    """
    if stage.algorithm == "encoder":
        return
    params, record = folder.load()
    w_min, w_max = stage.w_range or config.w_range
    weights = [w for w in config.evaluation.w if w_min <= w <= w_max] or [w_min]
    num_steps = stage.num_steps or min(PREVIEW_STEPS, config.step_two.start_steps)
    indices = np.tile(np.arange(PREVIEW_SAMPLES), len(weights))
    x = samplers.of(record)(
        params,
        labels=indices % record["num_classes"],
        w=np.repeat(weights, PREVIEW_SAMPLES),
        indices=indices,
        num_steps=num_steps,
        seed=config.evaluation.seed,
    )
    images = to_uint8(x)
    path = workdir / "samples" / f"{stage.name.replace('/', '_')}.png"
    save_grid(path, images, PREVIEW_SAMPLES)
    writer.write_images(update, {f"{stage.name}/samples": grid(images, PREVIEW_SAMPLES)[None]})
    writer.flush()
    if on_pictures is not None:
        on_pictures(stage.title, path)


def load_config(workdir):
    """The config that a workdir was last trained with."""
    plain = read_json(pathlib.Path(workdir) / "config.json")
    if plain is None:
        raise UserError(f"{workdir} holds no run: train one first, or check --workdir")
    if not all(section in plain for section in settings.ROUND_SECTIONS):
        raise UserError(f"{workdir}/config.json was written by an earlier version: name --config")
    return settings.from_plain(plain)
