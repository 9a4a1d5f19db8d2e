"""The site of `make book`: the executed notebooks as they are, with navigation and search, without a network."""

from pathlib import Path

import mathjax  # of the package django-static-mathjax, which holds MathJax's files

project = html_title = "Rare token neurons"
extensions = ["myst_nb"]
exclude_patterns = ["README.md", ".*"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables and formulas in what a cell prints
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_static_path = ["book.css", str(Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg.js")]
html_css_files = ["book.css"]
mathjax_path = "tex-svg.js"  # one file, its fonts in it
html_copy_source = html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # it would be fetched, which a browser refuses a page opened from the disk
