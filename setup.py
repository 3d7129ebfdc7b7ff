"""Installs the package, its console script and its extras."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
init = (here / "guided_distill" / "__init__.py").read_text()

setup(
    name="guided_distill",
    version=re.search(r'__version__ = "(.+)"', init)[1],
    description="Distillation of classifier-free guided diffusion models, in JAX",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["guided_distill", "guided_distill.*"]),
    package_data={
        "guided_distill": ["students/*/*/*"],
        "guided_distill.report": ["paper_results.csv"],
    },
    install_requires=(here / "requirements.txt").read_text().split(),
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.6",
            "ipython>=8.20",
            "ipywidgets>=8",
            "nbformat>=5.10",
        ],
        "torch": ["torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5.24,<6"],
        "parity": ["torch==2.13.0", "torch-fidelity==0.4.0"],
        "tf": ["tensorflow-cpu>=2.21", "tensorboard>=2.21"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
    },
    entry_points={"console_scripts": ["guided-distill = guided_distill.main:run"]},
)
