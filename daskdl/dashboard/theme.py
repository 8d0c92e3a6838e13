"""Light and dark: the page around the panels, which chooses a theme, and the colors of each as CSS variables."""

from __future__ import annotations

from typing import Any

# Charts are drawn on a canvas. Bokeh takes the colors of their text and lines from the variables --bk-...; versions
# that do not know them (before 3.9) keep the greys of style.py, which can be read on both backgrounds.
_PAGE = """
{% extends base %}
{% block postamble %}
<meta name="color-scheme" content="light dark">
<style>
:root {
  --daskdl-page: #ffffff; --daskdl-field: #f3f4f6; --daskdl-ink: #1f2937; --daskdl-grey: #626973;
  --daskdl-grid: #e9ebee; --daskdl-edge: #cbd0d6; --daskdl-alert: #b42318; --daskdl-running: #356095;
  --daskdl-finished: #257541; --daskdl-stopped: #8f5c00; --daskdl-cross: invert(1); color-scheme: light;
}
:root[data-theme="dark"] {
  --daskdl-page: #1b1d21; --daskdl-field: #2a2d33; --daskdl-ink: #e4e6ea; --daskdl-grey: #a0a7b2;
  --daskdl-grid: #33373e; --daskdl-edge: #4a5059; --daskdl-alert: #ff8b80; --daskdl-running: #84b2e6;
  --daskdl-finished: #6fcf91; --daskdl-stopped: #e9b24c; --daskdl-cross: none; color-scheme: dark;
}
:root {
  --bk-text-color: var(--daskdl-ink); --bk-major-label-text-color: var(--daskdl-grey);
  --bk-axis-label-text-color: var(--daskdl-grey); --bk-grid-line-color: var(--daskdl-grid);
  --bk-axis-line-color: var(--daskdl-grid);
}
body { background: var(--daskdl-page); color: var(--daskdl-ink); }
</style>
<script>
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)")
  const outside = () => { try { return parent === window ? null : parent.document.body } catch { return null } }
  const follow = () => {
    const light = outside()?.dataset.jpThemeLight  // JupyterLab's own theme counts more than the system's
    const theme = (light === undefined ? dark.matches : light === "false") ? "dark" : "light"
    if (document.documentElement.dataset.theme === theme) return
    document.documentElement.dataset.theme = theme
    for (const drawn of window.Bokeh?.documents ?? [])
      for (const model of drawn._all_models.values()) if (model.type === "Figure") model.change.emit()
  }
  follow()
  dark.addEventListener("change", follow)
  if (outside()) new MutationObserver(follow).observe(outside(), {attributeFilter: ["data-jp-theme-light"]})
})()
</script>
{% endblock %}
"""


def template() -> Any:
    """Return the page as a Jinja template: Bokeh's own, with both themes."""
    from bokeh.core.templates import FILE

    return FILE.environment.from_string(_PAGE)
