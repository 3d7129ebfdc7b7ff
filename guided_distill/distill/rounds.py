"""The halving plan of step two: which students are trained, and from whom."""

from guided_distill.errors import UserError


def check_halving(start_steps, round_steps):
    """Checks that every round's student takes half its teacher's steps.

    Args:
      start_steps: DDIM steps of the step-one model that is distilled first.
      round_steps: each round's `num_steps`, in order.

    Raises:
      UserError: naming the first round that does not halve.
    """
    teacher_steps = start_steps
    for k, num_steps in enumerate(round_steps):
        if teacher_steps % 2 or num_steps != teacher_steps // 2:
            half = f" ({teacher_steps // 2})" if teacher_steps % 2 == 0 else ", which is odd"
            raise UserError(
                f"step_two.rounds[{k}].num_steps must halve the teacher's "
                f"{teacher_steps}{half}, got {num_steps}"
            )
        teacher_steps = num_steps
