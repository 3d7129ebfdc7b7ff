"""clu's `MetricWriter` over tensorboardX, for machines without TensorFlow."""

import numpy as np
import tensorboardX
from clu.metric_writers import interface


class TensorboardXWriter(interface.MetricWriter):
    """Writes event files; argument names are the interface's, which calls by keyword."""

    def __init__(self, logdir):
        self._writer = tensorboardX.SummaryWriter(logdir)

    def write_scalars(self, step, scalars):
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, np.asarray(value).item(), step)

    def write_images(self, step, images):
        for tag, batch in images.items():
            self._writer.add_images(tag, np.asarray(batch), step, dataformats="NHWC")

    def write_histograms(self, step, arrays, num_buckets=None):
        for tag, values in arrays.items():
            self._writer.add_histogram(tag, np.asarray(values), step)

    def write_texts(self, step, texts):
        for tag, text in texts.items():
            self._writer.add_text(tag, text, step)

    def write_hparams(self, hparams):
        self._writer.add_text("hparams", str(hparams))

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
