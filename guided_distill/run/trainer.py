"""Teacher → step one → halving rounds: each stage's student is the next one's teacher."""

import functools
import pathlib
import zlib

from guided_distill.data.batches import Batches
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.models.build import count_params
from guided_distill.run import settings
from guided_distill.run.checks import check_parent, check_settings, check_teacher
from guided_distill.run.programs import StagePrograms
from guided_distill.system import sharding
from guided_distill.system.files import Damaged, write_json
from guided_distill.system.progress import Progress, to_stderr
from guided_distill.system.workdir import GuidedTeacher, StageFolder, lineage
from guided_distill.training.checkpoint import Checkpoints
from guided_distill.training.loop import StopSignals, run_stage
from guided_distill.training.memory import check_fits, device_memory
from guided_distill.training.metric_writer import make_metric_writer
from guided_distill.training.optimizer import learning_rate_at

TOLD = 3  # finished stages that are named


class Trainer:
    """Trains a config's stages in a workdir.

    Args:
      config: a checked ConfigDict.
      workdir: the run's folder.
      dataset: `Dataset` of the config.
      models: (teacher, student), of `make_models`.
      on_stage_end: called for every stage with (stage, finished stage, whether it was trained
        now, updates of the run so far, `write_metrics`).
    """

    def __init__(self, config, workdir, dataset, models, *, on_stage_end):
        self.config = config
        self.workdir = pathlib.Path(workdir)
        self.on_stage_end = on_stage_end
        self.dataset, self.source = dataset, dataset.train
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.programs = StagePrograms(config, self.mesh, models, dataset.example)
        self.updates_before, self.warned_of_metrics = 0, False
        self.newest = None  # The stage found or finished last, whose params are at hand.

    def run(self, stages, teacher=None):
        """Trains the stages that are not finished, in order.

        Args:
          stages: `Stage`s, each after the one that teaches it.
          teacher: `FinishedStage`, in any workdir, that teaches the first of them, and others as
            far as they descend from it or from what it descends from; None looks in this workdir.

        Returns:
          How many stages were trained (0: all were finished before).
        """
        for stage in stages:
            check_settings(stage, self.folder(stage), self.source)
        elsewhere = {} if teacher is None else lineage(teacher)
        if teacher is not None:
            elsewhere[stages[0].parent] = teacher
        write_json(self.workdir / "config.json", settings.to_plain(self.config))
        self.check_memory(stages, device_memory(self.mesh.devices.flat[0]))
        self.tell_stages(stages)
        trained = 0
        with StopSignals() as signals:
            for stage in stages:
                teacher = self.find_teacher(stage, elsewhere)
                is_new = not self.is_finished(self.folder(stage), teacher)
                if is_new:
                    self.train_stage(stage, self.folder(stage), teacher, signals)
                    trained += 1
                self.updates_before += stage.optimization["num_updates"]
                self.on_stage_end(
                    stage, self.newest, is_new, self.updates_before, self.write_metrics
                )
                signals.check()
        return trained

    def find_teacher(self, stage, elsewhere):
        """The `FinishedStage` that teaches a stage; None where there is none to learn from."""
        if stage.parent is None:
            return None
        if stage.parent in elsewhere:
            return elsewhere[stage.parent]
        path = self.workdir / stage.parent
        if self.newest is not None and self.newest.path == path:
            return self.newest
        return StageFolder(path).find()

    def check_memory(self, stages, limit):
        """Refuses updates that a device cannot hold, before the first of them runs.

        Args:
          stages: to be trained, or finished.
          limit: bytes of a device's memory; None checks nothing.
        """
        left = [stage for stage in stages if self.folder(stage).find() is None]
        for stage in self.programs.kinds(left) if limit is not None else ():
            check_fits(self.programs.program(stage), limit, stage.title)

    def tell_stages(self, stages):
        """Says how much there is to train, and what of it was finished before."""
        done = [stage for stage in stages if self.folder(stage).find() is not None]
        total, before = (
            sum(stage.optimization["num_updates"] for stage in some) for some in (stages, done)
        )
        told = f"{len(stages)} stage{'s' if len(stages) > 1 else ''}, {total:,} updates"
        if done:
            told += f"; finished before: {', '.join(stage.title for stage in done[:TOLD])}"
            told += f" and {len(done) - TOLD} more" if len(done) > TOLD else ""
            told += f"; {total - before:,} updates to go"
        to_stderr(told)

    def folder(self, stage):
        """Where a stage lies in this workdir."""
        return StageFolder(self.workdir / stage.name)

    def is_finished(self, folder, teacher):
        """Whether the folder holds a stage of this teacher, finished and whole.

        Raises:
          UserError: where it holds the stage of another teacher.
        """
        check_parent(folder, teacher)
        finished = folder.find()
        if finished is None:
            return False
        try:
            _ = finished.params
        except Damaged as error:
            to_stderr(f"{error}".split(":")[0] + ": finishing the stage again from its checkpoint")
            return False
        self.newest = finished
        return True

    def train_stage(self, stage, folder, teacher, signals):
        """Trains one stage, resuming where it was left, and writes its params and record."""
        teacher_params = parent_sha256 = None
        if stage.parent is not None:
            teacher = teacher or StageFolder(self.workdir / stage.parent).finished()
            check_teacher(stage, teacher, self.source)
            teacher_params, parent_sha256 = teacher.params, teacher.record["params_sha256"]
            if stage.algorithm and teacher.record["stage"] == "teacher":
                teacher_params = self.programs.with_w_branch(stage, teacher_params)
        origin = {
            "config": stage.settings,
            "data_sha256": self.source.sha256,
            "parent_sha256": parent_sha256,
        }
        if teacher and teacher.guide:
            origin["guide_sha256"] = teacher.guide.record["params_sha256"]
        folder.begin(origin, teacher)
        fresh = self.programs.fresh_state(stage, teacher_params)
        with Checkpoints(folder.checkpoints) as checkpoints:
            restored = checkpoints.restore(fresh)
            state = fresh if restored is None else restored
            self.tell_start(stage, state, checkpoints.notices, resumed=restored is not None)
            state = self.run_updates(stage, state, teacher_params, checkpoints, signals)
            seconds = checkpoints.seconds
        parent = teacher and folder.path_to(teacher)
        record = self.record(stage, parent, seconds) | origin | guide_paths(stage, folder, teacher)
        if teacher and teacher.is_brought:
            record |= {
                key: teacher.record[key] for key in ("model", "held") if key in teacher.record
            }
        self.newest = folder.finish(sharding.to_host(state.final_params), record)

    def record(self, stage, parent, seconds):
        """What `stage.json` says of a stage, but for its origin; `parent` is its teacher's path."""
        return {
            "name": stage.name,
            "stage": stage.kind,
            "algorithm": stage.algorithm,
            "num_steps": stage.num_steps,
            "factor": stage.factor,
            "w_range": stage.w_range and list(stage.w_range),
            "schedule": {"name": "cosine"} | stage.settings["schedule"],
            "parameterization": self.programs.model_of(stage).prediction,
            "data": self.dataset.name,
            "num_classes": self.source.num_classes,
            "class_names": list(self.dataset.class_names),
            "image_shape": list(self.source.image_shape),
            "pictures": self.dataset.pictures,
            "updates": stage.optimization["num_updates"],
            "seed": self.config.seed,
            "parent": parent,
            "seconds": round(seconds, 1),
        }

    def run_updates(self, stage, state, teacher_params, checkpoints, signals):
        """The stage's remaining updates, with progress on the screen and in TensorBoard."""
        optimization = stage.optimization
        num_updates, batch_size = optimization["num_updates"], optimization["batch_size"]
        rate = functools.partial(
            learning_rate_at,
            peak=optimization["learning_rate"],
            warmup_updates=optimization["warmup_updates"],
            decay=optimization["learning_rate_decay"],
            num_updates=num_updates,
        )
        if not num_updates:
            return state
        progress = Progress(
            stage.title, total=num_updates, done=int(state.update), images_per_step=batch_size
        )

        def on_progress(done, metrics):
            progress(done, loss=metrics["loss"])
            scalars = metrics | {"learning_rate": rate(done - 1)}
            if progress.images_per_second:  # Not known before the compilation ends.
                scalars["images_per_second"] = progress.images_per_second
            named = {f"{stage.name}/{name}": value for name, value in scalars.items()}
            self.write_metrics(lambda to: to.write_scalars(self.updates_before + done, named))

        bound = self.programs.bind(stage, teacher_params)
        try:
            return run_stage(
                state,
                lambda state, index, batch: bound(state, rate(index), batch),
                Batches(
                    self.source,
                    batch_size=batch_size,
                    seed=zlib.crc32(f"{self.config.seed} {stage.name}".encode()),
                    sharding=sharding.batch_sharding(self.mesh),
                    num_workers=self.config.data.num_workers,
                ).between,
                num_updates=num_updates,
                log_every=self.config.log_every,
                checkpoint_every=self.config.checkpoint_every,
                checkpoints=checkpoints,
                signals=signals,
                on_progress=on_progress,
            )
        finally:
            progress.close()
            self.write_metrics(lambda to: to.flush())

    def write_metrics(self, write):
        """`write(metric writer)`; where that fails the run goes on without, and says so once."""
        try:
            write(self.metric_writer)
        except OSError as error:
            if not self.warned_of_metrics:
                to_stderr(f"{self.workdir / 'metrics'} cannot be written ({error.strerror})")
            self.warned_of_metrics = True

    def tell_start(self, stage, state, notices, resumed):
        """Says what the person should know before the updates begin."""
        for notice in notices:
            to_stderr(notice)
        if stage.optimization["num_updates"] == 0:
            to_stderr(
                f"{stage.title}: a copy, because its target at t = 1 is its teacher's prediction"
            )
        elif resumed:
            to_stderr(f"{stage.title}: going on from update {int(state.update)}")
        if stage.kind == "teacher" and not resumed:
            to_stderr(f"network of {count_params(state.params):,} parameters")

    @functools.cached_property
    def metric_writer(self):
        """clu's writer of the run's TensorBoard files, made when there is something to write."""
        return make_metric_writer(self.workdir / "metrics")


def guide_paths(stage, folder, teacher):
    """Paths in a stage's record of the guide: its teacher's, and its own where it is a pair."""
    if teacher is None or teacher.guide is None:
        return {}
    path, row = folder.path_to(teacher.guide), ALGORITHMS.get(stage.algorithm)
    paths = {"parent_guide": path} if isinstance(teacher, GuidedTeacher) else {}
    return paths | ({"guide": path} if row and row.learns_pair else {})
