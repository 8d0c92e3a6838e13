"""How the Training page looks: one place for sizes, greys and texts."""

from __future__ import annotations

from typing import Any

from bokeh.models import BasicTicker, CustomJSTickFormatter
from bokeh.models.annotations import Title
from bokeh.plotting import figure

from daskdl.tracking.colors import AXIS_JS

INK = "#1f2937"
GREY = "#6b7280"
GRID = "#e9ebee"

CHART: dict[str, Any] = {"min_height": 60, "min_width": 100, "toolbar_location": None, "tools": ""}

# the charts of the right-hand side share what is left; a narrow pane shows the loss alone
SIDE = "@media (max-width: 420px) { :host { display: none !important; } }"

TABLE_BOX: dict[str, str | None] = {"max-height": "38%", "overflow-y": "auto", "flex": "none"}
TABLE = """
.bk-clearfix { width: 100%; }
table { width: 100%; border-collapse: collapse; font: 12px/1.4 system-ui, sans-serif; color: #1f2937; }
th { position: sticky; top: 0; background: white; text-align: left; font-weight: 500; color: #6b7280; z-index: 1; }
th, td { padding: 2px 8px; white-space: nowrap; }
td { border-top: 1px solid #e9ebee; font-variant-numeric: tabular-nums; }
.left, .step, .loss, .best { text-align: right; }
.run { max-width: 16em; overflow: hidden; text-overflow: ellipsis; }
i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
u { display: inline-block; width: 80px; height: 6px; margin-right: 6px; border-radius: 3px; background: #e9ebee; }
u { vertical-align: middle; overflow: hidden; text-decoration: none; }
s { display: block; height: 100%; }
small { color: #6b7280; }
.error td { border-top: none; color: #b42318; padding-left: 23px; max-width: 0; overflow: hidden; }
.error td { text-overflow: ellipsis; padding-top: 0; }
@media (max-width: 760px) { .algorithm, .step { display: none; } th, td { padding: 1px 5px; } u { width: 36px; } }
@media (max-width: 440px) { .left, small { display: none; } }
"""

CONTROLS: dict[str, str | None] = {"padding": "2px 8px", "flex": "none"}
CONTROL: dict[str, str | None] = {"font": "12px/1.4 system-ui, sans-serif"}

EMPTY = """
<div style="height:90vh;display:flex;flex-direction:column;align-items:center;justify-content:center;gap:.6em;
font:14px/1.5 system-ui,sans-serif;color:#6b7280;text-align:center">
<svg width="96" height="48" viewBox="0 0 96 48" fill="none" stroke="#c4c9d1" stroke-width="2.5" stroke-linecap="round">
<path d="M3 3V45H93"/><path d="M10 8C20 36 36 36 50 37S80 38 90 38"/></svg>
<b style="color:#1f2937;font-weight:600">No run yet</b>
<span>Start one with <code style="background:#f3f4f6;padding:2px 6px;border-radius:4px">clf.fit(X, y)</code>
and its loss, speed and progress appear here.</span></div>
"""


FILL = ".bk-clearfix { width: 100%; }"


def title_of(chart: figure) -> Title:
    """Return the title of a chart made with one."""
    assert isinstance(chart.title, Title)
    return chart.title


def quiet(chart: figure, ticks: int) -> None:
    """Leave a chart its curves: small text, light grid, few numbers."""
    title = title_of(chart)
    title.text_font_size, title.text_font_style, title.text_color = "12px", "normal", INK
    chart.outline_line_color = None
    chart.grid.grid_line_color = GRID
    chart.axis.axis_line_color = GRID
    chart.axis.minor_tick_line_color = chart.axis.major_tick_line_color = None
    chart.axis.major_label_text_color, chart.axis.major_label_text_font_size = GREY, "10px"
    chart.xaxis.ticker = BasicTicker(desired_num_ticks=5)
    chart.yaxis.ticker = BasicTicker(desired_num_ticks=ticks)
    chart.xaxis.formatter = CustomJSTickFormatter(code=AXIS_JS)
