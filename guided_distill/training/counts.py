"""What a traced function takes, without running or compiling it: operations and live bytes."""

import jax
from jax.extend import core

NEAR = 30  # equations: further apart lie the forward and the backward pass
FUSED = {  # into their users, where these come soon
    "reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "convert_element_type",
    "slice", "rev", "iota", "copy", "stop_gradient", "select_n", "random_bits", "pcast",
    "add", "add_any", "sub", "mul", "div", "neg", "exp", "expm1", "log", "log1p", "logistic",
    "tanh", "sqrt", "rsqrt", "integer_pow", "max", "min", "sign", "abs", "square", "pow", "erf",
    "sin", "cos", "lt", "gt", "le", "ge", "eq", "ne", "and", "or", "not",
}  # fmt: skip


def count_flops(function, *args):
    """Floating-point operations of `function(*args)` by XLA's count before it optimises.

    `args` may be shapes. The body of a loop counts once.
    """
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def live_bytes(function, *args):
    """Bytes alive at once within `function(*args)`, beside its arguments and results; an estimate.

    Every value lives from where it is made to its last use; what is fused into a user within `NEAR`
    equations is not counted.
    """
    return _peak(jax.make_jaxpr(function)(*args).jaxpr)


def _inner(equation):
    """The jaxpr within an equation, if there is one."""
    for key in ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(key)
        if inner is not None:
            yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            return


def _peak(jaxpr):
    last = {}
    for k, equation in enumerate(jaxpr.eqns):
        for var in equation.invars:
            if isinstance(var, core.Var):
                last[var] = k
    results = {var for var in jaxpr.outvars if isinstance(var, core.Var)}
    alive, peak, ends = 0, 0, {}
    for k, equation in enumerate(jaxpr.eqns):
        within = max((_peak(inner) for inner in _inner(equation)), default=0)
        for var in equation.outvars:
            end = last.get(var, k)
            fused = equation.primitive.name in FUSED and end - k <= NEAR
            if var not in results and not fused:
                alive += _bytes(var.aval)
                ends.setdefault(end, []).append(var)
        peak = max(peak, alive + within)
        alive -= sum(_bytes(var.aval) for var in ends.pop(k, ()))
    return peak


def _bytes(aval):
    return aval.size * getattr(aval.dtype, "itemsize", 4)
