"""The head of every page: what it loads, its title, and the colours of its first paint.

Dropped are repeated inline scripts, Thebe, MathJax on a page without a formula, and Font Awesome's script, which is a
third of what a page would load and draws the icons once more that the theme's own web font has drawn already.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup
from sphinx.errors import ExtensionError

ICON_SCRIPT = "_static/scripts/fontawesome.js"
# The theme follows the system's choice of dark or light by a deferred script: until then a dark page would be white.
FIRST_PAINT = """<script>
  {
    const page = document.documentElement.dataset;
    page.mode = localStorage.getItem("mode") || "auto";
    if (!["light", "dark"].includes(page.mode))
      page.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }
</script>
"""
# Without JavaScript the buttons above a page do nothing: the menu that one of them opens stands below the page instead.
NO_SCRIPT = """<noscript><style>
  .bd-header-article :is(button, .dropdown) { display: none !important; }
  @media (max-width: 959.98px) {
    .bd-container__inner { flex-wrap: wrap; }
    .bd-sidebar-primary {
      order: 1;
      position: static;
      visibility: visible;
      width: 100%;
      max-width: none;
      height: auto;
      max-height: none;
      margin: 0;
    }
  }
</style></noscript>
"""


def drop_needless_files(app, pagename, templatename, context, doctree) -> None:
    """Drop the scripts and styles that a page does not need.

    A browser refuses a repeated inline script with an error (fixed in Sphinx 8: sphinx issue 13402). Thebe is switched
    off, and names a server. Sphinx loads MathJax on a page where one of those below it has a formula, too.
    """
    has_formula = 'class="math' in context.get("body", "")
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        name = str(getattr(script, "filename", ""))
        thebe = "thebe" in name or "THEBE_JS_URL" in (body or "")
        idle = app.config.mathjax_path in name and not has_formula
        if not (thebe or idle) and (body is None or body not in seen):
            kept.append(script)
        seen.add(body)
    context["script_files"] = kept
    context["css_files"] = [style for style in context.get("css_files", []) if "thebe" not in str(style.filename)]


def write_head(app, pagename, templatename, context, doctree) -> None:
    """Give the template layout.html what it asks for."""
    context["site_title"] = app.config.ogp_site_name  # the landing page's own title is the site's
    context["lean_head"] = lean_head


def lean_head(html: str) -> Markup:
    """Return the theme's styles and scripts without the script of its icons, and with the theme known at once.

    Raises ExtensionError where the script is not there: a theme that names it otherwise would load it unseen.
    """
    lines = str(html).splitlines(keepends=True)
    kept = [line for line in lines if ICON_SCRIPT not in line]
    if len(kept) != len(lines) - 1:
        raise ExtensionError(f"the theme's head has {len(lines) - len(kept)} lines with {ICON_SCRIPT}, not one")
    return Markup("".join(kept) + FIRST_PAINT + NO_SCRIPT)


def setup(app) -> None:
    """Register the above with Sphinx."""
    app.config.templates_path.append(str(Path(__file__).parent / "templates"))
    app.connect("html-page-context", write_head)
    # after the theme and the launch buttons have added theirs
    app.connect("html-page-context", drop_needless_files, priority=900)
