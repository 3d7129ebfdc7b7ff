"""What an operation is asked for and its rule cannot do is refused, never ignored."""

from guided_distill.errors import UserError


def refuse(operation, **arguments):
    """Refuses each argument that is not at its default.

    Args:
      operation: name, for the message.
      arguments: `name=(value, default)`.

    Raises:
      UserError: naming the first argument that asks for more than its default.
    """
    for name, (value, default) in arguments.items():
        if value != default:
            raise UserError(
                f"{operation} with {name}={value!r} has no rule (only {default!r}): "
                "export a module that does without it"
            )
