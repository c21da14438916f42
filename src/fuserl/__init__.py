"""fuserl: train one model from what many said."""

__version__ = "0.1.0"
