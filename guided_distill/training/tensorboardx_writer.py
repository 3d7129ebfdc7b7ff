"""clu's `MetricWriter` over tensorboardX, for machines without TensorFlow."""

import pathlib
import time

import numpy as np
from clu.metric_writers import interface
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event


class TensorboardXWriter(interface.MetricWriter):
    """Writes event files; argument names are the interface's, which calls by keyword.

    It has no thread, as tensorboardX's own writer has: an error of the disk would end that one
    with a traceback, and the run would wait for it for ever.
    """

    def __init__(self, logdir):
        pathlib.Path(logdir).mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(f"{logdir}/events")

    def write_scalars(self, step, scalars):
        for tag, value in scalars.items():
            self._write(step, summary.scalar(tag, np.asarray(value).item()))

    def write_images(self, step, images):
        for tag, batch in images.items():
            self._write(step, summary.image(tag, np.asarray(batch), dataformats="NHWC"))

    def write_histograms(self, step, arrays, num_buckets=None):
        for tag, values in arrays.items():
            self._write(step, summary.histogram(tag, np.asarray(values), "tensorflow"))

    def write_texts(self, step, texts):
        for tag, text in texts.items():
            self._write(step, summary.text(tag, text))

    def write_hparams(self, hparams):
        self.write_texts(0, {"hparams": str(hparams)})

    def write_summaries(self, step, values, metadata=None):
        raise NotImplementedError("raw summaries need TensorFlow: install the extra [tf]")

    def write_audios(self, step, audios, *, sample_rate):
        raise NotImplementedError("audio needs TensorFlow: install the extra [tf]")

    def write_videos(self, step, videos):
        raise NotImplementedError("video needs TensorFlow: install the extra [tf]")

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()

    def _write(self, step, what):
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=what))
