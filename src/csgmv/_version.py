"""The version, where the build, the tuner and `csgmv.__version__` read it."""

__version__ = "0.1.0.dev0"
