"""Teacher → step one → halving rounds: each stage's student is the next one's teacher."""

import functools
import pathlib
import zlib

import jax
import numpy as np

from guided_distill import settings
from guided_distill.data.batches import Batches
from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.errors import UserError
from guided_distill.models.build import build_unet, count_params, init_params
from guided_distill.models.denoiser import init_student
from guided_distill.progress import Progress, say
from guided_distill.stage_checks import check_parent, check_settings, check_teacher
from guided_distill.stages import lineage
from guided_distill.training import sharding
from guided_distill.training.checkpoint import Checkpoints, write_json
from guided_distill.training.loop import StopSignals, train
from guided_distill.training.metric_writer import make_metric_writer
from guided_distill.training.optimizer import learning_rate_at, make_optimizer
from guided_distill.training.stage_folder import StageFolder
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    make_update_step_one,
    make_update_step_two,
    make_update_teacher,
)


class Trainer:
    """Trains a config's stages in a workdir; compiles each kind of update once.

    Args:
      config: a checked ConfigDict.
      workdir: the run's folder.
      dataset: `Dataset` of the config.
      on_stage_end: called with (stage, folder, updates of the run so far, metric writer).
    """

    def __init__(self, config, workdir, dataset, *, on_stage_end):
        self.config = config
        self.workdir = pathlib.Path(workdir)
        self.on_stage_end = on_stage_end
        self.dataset, self.source = dataset, dataset.train
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.logsnr_fn = functools.partial(
            cosine_logsnr,
            logsnr_min=config.schedule.logsnr_min,
            logsnr_max=config.schedule.logsnr_max,
        )
        self.optimizer = make_optimizer(**config.optimizer)
        self.updates_before = 0
        self._updates = {}

    def run(self, stages, teacher_folder=None):
        """Trains the stages that are not finished, in order.

        Args:
          stages: `Stage`s, each after the one that teaches it.
          teacher_folder: finished stage, in any workdir, that teaches the first of them, and
            others as far as they descend from it or from what it descends from; None looks in
            this workdir.

        Returns:
          How many stages were trained (0: all were finished before).
        """
        for stage in stages:
            check_settings(stage, self.folder(stage.name), self.source)
        elsewhere = {} if teacher_folder is None else lineage(teacher_folder)
        write_json(self.workdir / "config.json", settings.to_plain(self.config))
        trained = 0
        with StopSignals() as signals:
            for stage in stages:
                if stage is stages[0] and teacher_folder is not None:
                    teacher = teacher_folder
                else:
                    teacher = elsewhere.get(stage.parent) or self.folder(stage.parent)
                if not self.is_finished(self.folder(stage.name), teacher):
                    self.train_stage(stage, self.folder(stage.name), teacher, signals)
                    trained += 1
                self.updates_before += stage.optimization["num_updates"]
                signals.check()
        return trained

    def folder(self, stage_name):
        """Where a stage lies in this workdir; None for no stage."""
        return StageFolder(self.workdir / stage_name) if stage_name else None

    def is_finished(self, folder, teacher):
        """Whether the folder holds a stage of this teacher, finished and whole.

        Raises:
          UserError: where it holds the stage of another teacher.
        """
        check_parent(folder, teacher)
        if folder.record is None:
            return False
        try:
            folder.load()
        except UserError as error:
            say(f"{error}".split(":")[0] + ": finishing the stage again from its checkpoint")
            return False
        return True

    def train_stage(self, stage, folder, teacher_folder, signals):
        """Trains one stage, resuming where it was left, and writes its params and record."""
        teacher_params, teacher_record = None, {"params_sha256": None}
        if teacher_folder is not None:
            teacher_params, teacher_record = teacher_folder.load()
            check_teacher(stage, teacher_record, teacher_folder, self.source)
        origin = {
            "config": stage.settings,
            "data_sha256": self.source.sha256,
            "parent_sha256": teacher_record["params_sha256"],
        }
        folder.begin(origin)
        if stage.algorithm == "two_student" and teacher_record["stage"] == "teacher":
            teacher_params = self.with_w_branch(stage, teacher_params)
        fresh = self.fresh_state(stage, teacher_params)
        with Checkpoints(folder.checkpoints) as checkpoints:
            restored = checkpoints.restore(fresh)
            state = fresh if restored is None else restored
            self.tell_start(stage, state, checkpoints.notices, resumed=restored is not None)
            state = self.run_updates(stage, state, teacher_params, checkpoints, signals)
            seconds = checkpoints.seconds
        folder.finish(state.final_params, self.record(stage, teacher_folder, seconds) | origin)
        updates_so_far = self.updates_before + stage.optimization["num_updates"]
        self.on_stage_end(stage, folder, updates_so_far, self.metric_writer)

    def record(self, stage, teacher_folder, seconds):
        """What `stage.json` says of a stage, but for its origin."""
        folder = self.folder(stage.name)
        return {
            "name": stage.name,
            "stage": stage.kind,
            "algorithm": stage.algorithm,
            "num_steps": stage.num_steps,
            "factor": stage.factor,
            "w_range": stage.w_range and list(stage.w_range),
            "schedule": {"name": "cosine"} | stage.settings["schedule"],
            "parameterization": stage.settings["model"]["prediction"],
            "data": self.dataset.name,
            "num_classes": self.source.num_classes,
            "class_names": list(self.dataset.class_names),
            "image_shape": list(self.source.image_shape),
            "updates": stage.optimization["num_updates"],
            "seed": self.config.seed,
            "parent": teacher_folder and folder.path_to(teacher_folder),
            "seconds": round(seconds, 1),
        }

    def fresh_state(self, stage, teacher_params):
        """The stage's first state, on the devices: random, or the teacher's params."""

        def init(key, teacher_params):
            params = teacher_params
            if stage.kind == "teacher":
                params = init_params(self.teacher_network, key, self.source.image_shape)
            if stage.kind == "step_one":
                fresh = init_params(self.student_network, key, self.source.image_shape)
                params = init_student(fresh, teacher_params)
            return init_state(params, self.optimizer, keep_ema=stage.kind != "step_two")

        key = self.stage_key(stage)
        layout = sharding.state_shardings(jax.eval_shape(init, key, teacher_params), self.mesh)
        return jax.jit(init, out_shardings=layout)(key, teacher_params)

    def with_w_branch(self, stage, teacher_params):
        """The teacher's params in the students' network: the same model, for every w.

        Algorithm 5 distils the guided pair itself, so its first teacher knows no w yet.
        """

        def widen(key, teacher_params):
            fresh = init_params(self.student_network, key, self.source.image_shape)
            return init_student(fresh, teacher_params)

        return sharding.to_host(jax.jit(widen)(self.stage_key(stage), teacher_params))

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
            scalars = metrics | {
                "learning_rate": rate(done - 1),
                "images_per_second": progress.images_per_second,
            }
            named = {f"{stage.name}/{name}": value for name, value in scalars.items()}
            self.metric_writer.write_scalars(self.updates_before + done, named)

        try:
            return train(
                state,
                self.bind_update(stage, teacher_params, rate),
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
            self.metric_writer.flush()

    def bind_update(self, stage, teacher_params, rate):
        """The stage's compiled update with all that stays fixed over the stage: see `train`."""
        fixed = [jax.device_put(self.stage_key(stage), sharding.replicated(self.mesh))]
        if stage.kind == "step_two":
            bound = np.float32(1.0 if stage.optimization["clip_teacher"] else np.inf)
            fixed = [np.int32(stage.num_steps), bound, *fixed]
        if stage.kind != "teacher":
            w_range = np.asarray(stage.w_range, np.float32)
            fixed = [sharding.place(teacher_params, self.mesh), w_range, *fixed]
        compiled = self.compiled_update(stage)

        def update(state, index, images, labels):
            return compiled(state, *fixed, rate(index), images, labels)

        return update

    def stage_key(self, stage):
        """PRNG key of everything a stage draws."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.name.encode()))

    def tell_start(self, stage, state, notices, resumed):
        """Says what the person should know before the updates begin."""
        for notice in notices:
            say(notice)
        if stage.optimization["num_updates"] == 0:
            say(f"{stage.title}: a copy, because its target at t = 1 is its teacher's prediction")
        elif resumed:
            say(f"{stage.title}: going on from update {int(state.update)}")
        elif notices:
            say(f"{stage.title}: no whole checkpoint is left, starting the stage anew")
        if stage.kind == "teacher" and not resumed:
            say(f"network of {count_params(state.params):,} parameters")

    @functools.cached_property
    def metric_writer(self):
        """clu's writer of the run's TensorBoard files, made when there is something to write."""
        return make_metric_writer(self.workdir / "metrics")

    @functools.cached_property
    def teacher_network(self):
        """The unconditioned-by-w U-Net, with the teacher's dropout."""
        return self._network(w_conditioned=False, dropout=self.config.teacher.dropout)

    @functools.cached_property
    def student_network(self):
        """The w-conditioned U-Net of every distilled stage."""
        return self._network(w_conditioned=True, dropout=0.0)

    def _network(self, **kwargs):
        return build_unet(self.config.model, num_classes=self.source.num_classes, **kwargs)

    def compiled_update(self, stage):
        """The compiled update of a stage's kind, algorithm and factor, made once."""
        key = (stage.kind, stage.algorithm, stage.factor)
        if key not in self._updates:
            make = {
                "teacher": self._make_update_teacher,
                "step_one": self._make_update_step_one,
                "step_two": self._make_update_step_two,
            }[stage.kind]
            self._updates[key] = make(stage)
        return self._updates[key]

    def _make_update_teacher(self, stage):
        section = self.config.teacher
        return make_update_teacher(
            self.teacher_network,
            self.optimizer,
            label_dropout=section.label_dropout,
            ema_decay=section.ema_decay,
            **self._loss_settings(section),
        )

    def _make_update_step_one(self, stage):
        section = self.config.step_one
        return make_update_step_one(
            self.teacher_network,
            self.student_network,
            self.optimizer,
            ema_decay=section.ema_decay,
            **self._loss_settings(section),
        )

    def _make_update_step_two(self, stage):
        return make_update_step_two(
            self.student_network,
            self.optimizer,
            algorithm=stage.algorithm,
            factor=stage.factor,
            **self._loss_settings(self.config.step_two),
        )

    def _loss_settings(self, section):
        return dict(
            prediction=self.config.model.prediction,
            logsnr_fn=self.logsnr_fn,
            loss_weight=LOSS_WEIGHTS[section.loss],
            augmentations=tuple(self.config.data.augmentations),
        )
