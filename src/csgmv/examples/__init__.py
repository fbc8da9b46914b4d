"""Programs to run as they are and to begin one's own from, on a GPU or without one:

python -m csgmv.examples.kernels
python -m csgmv.examples.transformers
python -m csgmv.examples.tune_and_overlay
"""

from csgmv.cli import interpret_without_gpu

interpret_without_gpu()  # before an example imports Triton
