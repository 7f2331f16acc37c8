"""Hand-written kernels behind one contract (`reference`). Never imports the rest of fastbp."""

if not __name__.startswith("fastbp."):
    raise ImportError('this folder is installed as fastbp.kernels; use "import fastbp" (pip install -e .)')

from . import reference as reference  # whose declarations every walk reads
