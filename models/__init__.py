"""The models of the documents, one module each: `model`, `load` (its data) and `exact` (its right answer).

>>> from pyrovi.models import normal_mean
>>> sorted(normal_mean.load())
['x']
"""

if __name__ != "pyrovi.models":
    raise ImportError("import pyrovi.models instead of models: this folder is installed inside pyrovi")
