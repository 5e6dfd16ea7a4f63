"""The version of this package, as it was installed."""

import importlib.metadata

__version__ = importlib.metadata.version("hyperclone")
