"""Every model's twin in NumPyro, by name."""

from posteriors import ALL, twins_hierarchies, twins_mixtures, twins_regressions, twins_series

__all__ = ["AS_SAMPLED", "TWINS"]

MODULES = (twins_regressions, twins_series, twins_mixtures, twins_hierarchies)
TWINS = {name: getattr(module, name) for module in MODULES for name in ALL if hasattr(module, name)}

AS_SAMPLED = {"transplants": twins_mixtures.transplants_not_centred, "grunfeld": twins_hierarchies.grunfeld_summed}
"""Those that the reference runs sample in another form, from which they compute the sites of the model."""
