"""The table of rules: an operation of `torch.export` (ATen's name and overload) in JAX.

A rule takes what PyTorch's operation takes, as arrays, Python numbers, lists and names of dtypes.
What it does not take, or takes and cannot do, is refused. All is float32 and int32: there is no
float64, int64, float16 or bfloat16.
"""

from guided_distill.models.operations.activations import ACTIVATIONS, SOFTMAXES
from guided_distill.models.operations.arithmetic import ARITHMETIC, CASTS, COMPARISONS
from guided_distill.models.operations.convolution import CONVOLUTIONS, POOLINGS
from guided_distill.models.operations.creation import COMPLEX, CREATION, SIZES
from guided_distill.models.operations.fourier import FOURIER
from guided_distill.models.operations.indexing import INDEXING, LOOKUPS
from guided_distill.models.operations.normalisation import NORMALISATIONS
from guided_distill.models.operations.products import PRODUCTS
from guided_distill.models.operations.reductions import REDUCTIONS
from guided_distill.models.operations.resampling import RESAMPLING
from guided_distill.models.operations.sampling import SAMPLING
from guided_distill.models.operations.shapes import CUTS, JOINS, SHAPES

ELEMENTWISE = ARITHMETIC | COMPARISONS | CASTS | ACTIVATIONS  # entry by entry, after broadcasting

OPERATIONS = (
    ELEMENTWISE
    | SOFTMAXES
    | REDUCTIONS
    | SHAPES
    | CUTS
    | JOINS
    | INDEXING
    | LOOKUPS
    | PRODUCTS
    | CONVOLUTIONS
    | POOLINGS
    | NORMALISATIONS
    | RESAMPLING
    | SAMPLING
    | CREATION
    | COMPLEX
    | FOURIER
    | SIZES
)
