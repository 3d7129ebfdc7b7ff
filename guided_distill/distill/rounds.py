"""The plan of step two: which students are trained, and from whom."""

from guided_distill.errors import UserError


def step_factors(start_steps, round_steps, *, name="step_two"):
    """By what each round divides its teacher's steps: 2 in the paper, any whole number here.

    Args:
      start_steps: DDIM steps of the model that is distilled first.
      round_steps: each round's `num_steps`, in order.
      name: config section of the rounds, for messages.

    Returns:
      One factor of 2 or more per round.

    Raises:
      UserError: naming the first round that does not divide.
    """
    factors = []
    teacher_steps = start_steps
    for k, num_steps in enumerate(round_steps):
        factor, rest = divmod(teacher_steps, num_steps)
        if rest or factor < 2:
            half = f" (half: {teacher_steps // 2})" if teacher_steps % 2 == 0 else ""
            raise UserError(
                f"{name}.rounds[{k}].num_steps must divide the teacher's {teacher_steps}{half} "
                f"by a whole factor of 2 or more, got {num_steps}"
            )
        factors.append(factor)
        teacher_steps = num_steps
    return factors
