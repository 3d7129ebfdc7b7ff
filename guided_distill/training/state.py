"""Everything an update changes."""

from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """State of one stage.

    Attributes:
      update: updates done so far, int32 scalar.
      params: parameters being trained.
      ema: exponential moving average of `params`; None where the stage keeps none.
      opt_state: the optimizer's state.
    """

    update: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @property
    def final_params(self):
        """What the stage hands on: the average where one is kept."""
        return self.params if self.ema is None else self.ema


def init_state(params, optimizer, *, keep_ema):
    """A stage's first state: fresh optimizer, average equal to the parameters."""
    return TrainState(
        update=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        opt_state=optimizer.init(params),
    )
