"""A student's first parameters: those of its teacher, and a w branch that starts at zero."""

import flax

W_BRANCH = ("w_0", "w_1", "w_branch")  # of `UNet`, and of imported networks


def init_student(fresh_params, teacher_params):
    """A student's first parameters: the teacher's, plus the fresh ones of the w branch.

    Args:
      fresh_params: parameters of a newly initialised w-conditioned network.
      teacher_params: parameters of the teacher, without a w branch.

    Returns:
      Parameters of the student. The w branch ends in zeros, so the student equals the
      conditional teacher for every w.

    Raises:
      ValueError: where the two differ by anything but the w branch.
    """
    fresh = flax.traverse_util.flatten_dict(fresh_params, sep="/")
    teacher = flax.traverse_util.flatten_dict(teacher_params, sep="/")
    unexpected = sorted(set(teacher) - set(fresh))
    missing = sorted(p for p in set(fresh) - set(teacher) if p.split("/")[0] not in W_BRANCH)
    wrong = sorted(p for p in teacher if p in fresh and teacher[p].shape != fresh[p].shape)
    if unexpected or missing or wrong:
        raise ValueError(
            "the student must be the teacher plus a w branch: "
            f"unexpected {unexpected}, missing {missing}, of another shape {wrong}"
        )
    return flax.traverse_util.unflatten_dict(fresh | teacher, sep="/")


def init_pair(fresh_params, teacher_params):
    """As `init_student`, of both networks of a pair of `guided_by`."""
    return {half: init_student(fresh, teacher_params[half]) for half, fresh in fresh_params.items()}
