"""How programs are compiled, and where they are kept."""

import os

import jax


def use_compilation_cache(folder):
    """Keeps compiled programs on disk, so that a restart does not compile again."""
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)
    if folder:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def jit_once(function, **options):
    """`jax.jit` of what runs once, such as the draw of first parameters.

    CPUs get it without optimisation: a U-Net's draw compiles in a third of the time, and runs in
    milliseconds either way.
    """
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=quick, **options)
