"""The site: `sphinx-build -W docs output/site` builds it, or fails at a dead link or a failing cell."""

from timm_p2be import __version__

project, release, author = 'timm-p2be', __version__, 'The timm-p2be developers'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['demo']
html_theme, html_title = 'furo', 'timm-p2be'
html_static_path: list[str] = []

myst_heading_anchors = 3
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_merge_streams = True

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
