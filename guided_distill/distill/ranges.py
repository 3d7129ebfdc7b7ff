"""What a distilled model was made for: an interval of guidance weights, and numbers of steps."""

import math

from guided_distill.errors import UserError


def check_w(w, w_range, *, what):
    """Refuses a guidance weight outside the trained range."""
    w_min, w_max = w_range
    if not (w_min <= w <= w_max and math.isfinite(w)):
        raise UserError(
            f"{what} must lie in the trained range [{w_min:g}, {w_max:g}], got {w:g} "
            "(w = 0 is unguided; what others call a guidance scale is 1 + w)"
        )


def check_distilled(num_steps, distilled_steps, *, what):
    """Refuses a number of steps that no student was distilled to."""
    if num_steps not in distilled_steps:
        known = ", ".join(map(str, sorted(distilled_steps))) or "none yet"
        raise UserError(f"{what} {num_steps} was never distilled; distilled to: {known}")
