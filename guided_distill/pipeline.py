"""Teacher → step one → halving rounds: each stage's student is the next one's teacher."""

import functools
import pathlib
import zlib

import jax
import numpy as np

from guided_distill import settings
from guided_distill.data.batches import Batches
from guided_distill.data.sources import load_source
from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.errors import UserError
from guided_distill.models.build import build_unet, count_params, init_params
from guided_distill.models.denoiser import init_student
from guided_distill.stages import plan_stages
from guided_distill.training import sharding
from guided_distill.training.checkpoint import Checkpoints, write_json
from guided_distill.training.loop import StopSignals, train
from guided_distill.training.metric_writer import make_metric_writer
from guided_distill.training.optimizer import learning_rate_at, make_optimizer
from guided_distill.training.progress import Progress, say
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
      on_stage_end: called with (stage, folder, updates of the run so far, metric writer).
    """

    def __init__(self, config, workdir, *, on_stage_end):
        self.config = config
        self.workdir = pathlib.Path(workdir)
        self.on_stage_end = on_stage_end
        self.source = load_source(config.data.name, "train")
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.logsnr_fn = functools.partial(
            cosine_logsnr,
            logsnr_min=config.schedule.logsnr_min,
            logsnr_max=config.schedule.logsnr_max,
        )
        self.optimizer = make_optimizer(**config.optimizer)
        self.updates_before = 0

    def run(self, stages, teacher_folder=None):
        """Trains the stages that are not finished, in order.

        Args:
          stages: consecutive `Stage`s.
          teacher_folder: finished stage that teaches the first of them; None looks in the
            workdir.

        Returns:
          How many stages were trained (0: all were finished before).
        """
        for stage in stages:
            self.check_settings(stage, self.folder(stage))
        write_json(self.workdir / "config.json", settings.to_plain(self.config))
        trained = 0
        with StopSignals() as signals:
            for stage in stages:
                folder = self.folder(stage)
                teacher = teacher_folder or self.default_teacher(stage)
                if not self.is_finished(stage, folder, teacher):
                    self.train_stage(stage, folder, teacher, signals)
                    trained += 1
                self.updates_before += stage.optimization["num_updates"]
                teacher_folder = folder
                signals.check()
        return trained

    def folder(self, stage):
        """Where a stage lies in this workdir."""
        return StageFolder(self.workdir / stage.name)

    def default_teacher(self, stage):
        """The stage before, in this workdir; None for the teacher itself."""
        stages = plan_stages(self.config)
        position = [s.name for s in stages].index(stage.name)
        return self.folder(stages[position - 1]) if position else None

    def is_finished(self, stage, folder, teacher):
        """Whether the folder holds this stage, finished and whole.

        Raises:
          UserError: where it holds the stage of another teacher.
        """
        self.check_parent(folder, teacher)
        if folder.record is None:
            return False
        try:
            folder.load()
        except UserError as error:
            say(f"{error}".split(":")[0] + ": finishing the stage again from its checkpoint")
            return False
        return True

    def check_settings(self, stage, folder):
        """Refuses a folder begun with another config or data set."""
        if folder.origin is None:
            return
        differences = settings.differing_keys(folder.origin["config"], stage.settings)
        if differences:
            raise UserError(
                f"{folder.path} holds a run of another config ({'; '.join(differences)}): "
                "take another --workdir, or the config it was begun with"
            )
        if folder.origin["data_sha256"] != self.source.sha256:
            raise UserError(
                f"{folder.path} was trained on other data than {self.source.name} holds now: "
                "take another --workdir"
            )

    def check_parent(self, folder, teacher):
        """Refuses a folder begun with another teacher."""
        teacher_record = teacher.record if teacher else None
        if folder.origin is None or teacher_record is None:
            return
        if folder.origin["parent_sha256"] != teacher_record["params_sha256"]:
            raise UserError(
                f"{folder.path} was distilled from another teacher than {teacher.path}: take "
                "another --workdir, or remove that folder to distill it anew"
            )

    def train_stage(self, stage, folder, teacher_folder, signals):
        """Trains one stage, resuming where it was left, and writes its params and record."""
        teacher_params, teacher_record = None, {"params_sha256": None}
        if teacher_folder is not None:
            teacher_params, teacher_record = teacher_folder.load()
            self.check_teacher(stage, teacher_record, teacher_folder)
        origin = {
            "config": stage.settings,
            "data_sha256": self.source.sha256,
            "parent_sha256": teacher_record["params_sha256"],
        }
        folder.begin(origin)
        fresh = self.fresh_state(stage, teacher_params)
        with Checkpoints(folder.checkpoints) as checkpoints:
            restored = checkpoints.restore(fresh)
            state = fresh if restored is None else restored
            self.tell_start(stage, state, checkpoints.notices, resumed=restored is not None)
            state = self.run_updates(stage, state, teacher_params, checkpoints, signals)
            seconds = checkpoints.seconds
        folder.finish(
            state.final_params,
            {
                "stage": stage.kind,
                "algorithm": stage.settings.get("step_two", {}).get("algorithm"),
                "num_steps": stage.num_steps,
                "w_range": stage.settings.get("w_range"),
                "schedule": {"name": "cosine"} | stage.settings["schedule"],
                "parameterization": stage.settings["model"]["prediction"],
                "data": self.source.name,
                "num_classes": self.source.num_classes,
                "image_shape": list(self.source.image_shape),
                "updates": stage.optimization["num_updates"],
                "seed": self.config.seed,
                "parent": teacher_folder and folder.path_to(teacher_folder),
                "seconds": round(seconds, 1),
                **origin,
            },
        )
        updates_so_far = self.updates_before + stage.optimization["num_updates"]
        self.on_stage_end(stage, folder, updates_so_far, self.metric_writer)

    def check_teacher(self, stage, record, folder):
        """Refuses a teacher that cannot teach this stage."""
        wants = {"step_one": ("teacher",), "step_two": ("step_one", "step_two")}[stage.kind]
        if record["stage"] not in wants:
            raise UserError(
                f"{stage.title} is distilled from {' or '.join(wants)}, "
                f"but {folder.path} holds {record['stage']}"
            )
        if record["stage"] == "step_two" and record["num_steps"] != 2 * stage.num_steps:
            raise UserError(
                f"a student of {stage.num_steps} steps needs a teacher of "
                f"{2 * stage.num_steps}, but {folder.path} has {record['num_steps']}"
            )
        for key in ("schedule", "model"):
            differences = settings.differing_keys(record["config"][key], stage.settings[key])
            if differences:
                raise UserError(f"{folder.path} has another {key}: {'; '.join(differences)}")

    def fresh_state(self, stage, teacher_params):
        """The stage's first state, on the devices: random, or the teacher's params."""

        def init(key, teacher_params):
            network = self.teacher_network if stage.kind == "teacher" else self.student_network
            params = teacher_params
            if stage.kind in ("teacher", "step_one"):
                params = init_params(network, key, self.source.image_shape)
            if stage.kind == "step_one":
                params = init_student(params, teacher_params)
            return init_state(params, self.optimizer, keep_ema=stage.kind != "step_two")

        key = self.stage_key(stage)
        layout = sharding.state_shardings(jax.eval_shape(init, key, teacher_params), self.mesh)
        return jax.jit(init, out_shardings=layout)(key, teacher_params)

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
                ),
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
        stage_key = jax.device_put(self.stage_key(stage), sharding.replicated(self.mesh))
        fixed = [stage_key]
        if stage.kind == "step_two":
            bound = np.float32(1.0 if stage.optimization["clip_teacher"] else np.inf)
            fixed = [np.int32(stage.num_steps), bound, stage_key]
        if teacher_params is not None:
            fixed = [sharding.place(teacher_params, self.mesh), *fixed]
        compiled = getattr(self, f"update_{stage.kind}")

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
        if resumed:
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

    @functools.cached_property
    def update_teacher(self):
        """Compiled update of the teacher."""
        section = self.config.teacher
        return make_update_teacher(
            self.teacher_network,
            self.optimizer,
            label_dropout=section.label_dropout,
            ema_decay=section.ema_decay,
            **self._loss_settings(section),
        )

    @functools.cached_property
    def update_step_one(self):
        """Compiled update of step one."""
        section = self.config.step_one
        return make_update_step_one(
            self.teacher_network,
            self.student_network,
            self.optimizer,
            ema_decay=section.ema_decay,
            w_range=self.config.w_range,
            **self._loss_settings(section),
        )

    @functools.cached_property
    def update_step_two(self):
        """Compiled update of every halving round."""
        return make_update_step_two(
            self.student_network,
            self.optimizer,
            w_range=self.config.w_range,
            **self._loss_settings(self.config.step_two),
        )

    def _loss_settings(self, section):
        return dict(
            prediction=self.config.model.prediction,
            logsnr_fn=self.logsnr_fn,
            loss_weight=LOSS_WEIGHTS[section.loss],
        )
