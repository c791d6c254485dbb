"""Guides for the recipes, handwritten, one module each, and `auto`: guides by name for any model."""

if __name__ != "pyrovi.guides":
    raise ImportError("import pyrovi.guides instead of guides: this folder is installed inside pyrovi")
