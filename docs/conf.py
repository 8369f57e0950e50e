"""How `make docs` makes a site of these pages. Nothing that it shows is fetched from elsewhere."""

import osaurus

project = "Osaurus"
project_copyright = "2026 The Osaurus developers"
release = osaurus.__version__

extensions = ["myst_parser"]
# Headings are linked to as code hosts do it, so that the pages' links work in both places.
myst_heading_anchors = 4
# Blocks without a language are trees and the like.
highlight_language = "none"

html_theme = "furo"
html_title = "Osaurus"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#6fd3ae", "color-brand-content": "#6fd3ae"},
}
