"""How Sphinx builds these pages: ``python -m sphinx -W docs FOLDER``, after ``pip install -e ".[docs]"``."""

from importlib.metadata import version as version_of

project, author, project_copyright = "fastbp", "The fastbp developers", "The fastbp developers"
version = release = version_of("fastbp")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["make", "results/*.py"]
html_theme, html_title, html_static_path, html_css_files = "furo", "fastbp", ["static"], ["pages.css"]
html_show_sphinx, html_copy_source = False, False

# Pages are plain Markdown, so that they read as well without Sphinx; their links go to files and to headings in them.
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Docstrings: `name` is a link where Sphinx knows the name, and code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the sections of parameters say what they are
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
numpydoc_validation_checks = {"GL01", "GL03", "GL06", "GL07", "GL08", "PR02", "SS01", "SS02"}
