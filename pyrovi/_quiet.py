"""Pyro loads tqdm, which warns in a notebook without ipywidgets; nothing here uses its bars, so the warning would only mislead."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")
    import tqdm.auto  # noqa: F401
