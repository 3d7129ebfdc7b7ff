"""The job `convert_inception`: InceptionV3's weights as the evaluation reads them."""

import dataclasses

from guided_distill.errors import UserError
from guided_distill.evaluation.inception_weights import WHERE, convert_inception
from guided_distill.system.progress import to_stdout


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `convert_inception`: the flags of these names, which `--help` explains."""

    weights: str = ""
    out: str = ""


def run(request):
    """Converts the file, and says what it holds."""
    if not request.weights:
        raise UserError(f"`weights` is missing: {WHERE}")
    if not request.out:
        raise UserError("`out` is missing: name the file to write, such as inception.npz")
    sha256 = convert_inception(request.weights, request.out)
    to_stdout(f"{request.out}: InceptionV3 of 2015-12-05, parameters {sha256}")
