"""The documentation's settings for Sphinx; `make docs` builds it into docs/_build/html."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import pyrovi  # noqa: E402

project = "pyrovi"
author = "The pyrovi developers"
copyright = "the pyrovi developers, Apache-2.0"
version = release = pyrovi.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks as they were executed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathematics",
    "docstrings",
]
exclude_patterns = ["_build", "_extensions", "**/.ipynb_checkpoints"]
nitpicky = False  # single backticks in docstrings are links where there is something to link to, and code elsewhere
default_role = "py:obj"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "pyrovi"
html_static_path = ["_static"]
html_css_files = ["pyrovi.css"]
html_math_renderer = "svg"
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # fetched from the pages, which a browser does not allow where they are files
pygments_style = "default"
pygments_dark_style = "github-dark"

linkcheck_anchors = True
linkcheck_timeout = 20
linkcheck_retries = 2

# Sphinx reads nothing outside of this folder, and the notebooks lie beside it.
executed = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
if not executed:
    exclude_patterns += ["notebooks.md"]
    suppress_warnings = ["toc.not_readable"]
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
for notebook in executed:
    (HERE / "notebooks").mkdir(exist_ok=True)
    shutil.copyfile(notebook, HERE / "notebooks" / notebook.name)
