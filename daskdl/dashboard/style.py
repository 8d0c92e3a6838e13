"""How the Training page looks: one place for sizes, greys and texts."""

from __future__ import annotations

from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource, CustomJSTickFormatter, DataRange1d, FactorRange, HoverTool
from bokeh.models.annotations import Title
from bokeh.plotting import figure

from daskdl.tracking.colors import AXIS_JS, NUMBER_JS

INK = GREY = "#767c86"  # where Bokeh does not know the variables of theme.py
GRID = "#8a919c40"

CHART: dict[str, Any] = {"min_height": 60, "min_width": 100, "toolbar_location": None, "tools": ""}

# A pane of JupyterLab is low or narrow: the loss is what stays.
SIDE = "@media (max-width: 420px) { :host { display: none !important; } }"
LOWER = "@media (max-height: 590px), (max-width: 700px) { :host { display: none !important; } }"
TABLE_SHARE = """
:host { max-height: 34%; }
@media (max-height: 720px) { :host { max-height: 24%; } }
@media (max-height: 590px) { :host { max-height: 40%; } }
"""
LOOK = "@media (max-height: 480px) { :host { display: none !important; } }"


def share(part: float) -> dict[str, str | None]:
    """Return the style of what gets so large a part of a row or column."""
    return {"flex": f"{part} 1 0px", "min-height": "0", "min-width": "0"}


FIXED: dict[str, str | None] = {"flex": "none"}
TABLE = """
.bk-clearfix { width: 100%; }
table { width: 100%; border-collapse: collapse; font: 12px/1.4 system-ui, sans-serif; color: var(--daskdl-ink); }
th { position: sticky; top: 0; background: var(--daskdl-page); text-align: left; font-weight: 500; z-index: 1; }
th { color: var(--daskdl-grey); }
th, td { padding: 2px 8px; white-space: nowrap; }
td { border-top: 1px solid var(--daskdl-grid); font-variant-numeric: tabular-nums; }
.left, .step, .loss, .best { text-align: right; }
.run { max-width: 24em; overflow: hidden; text-overflow: ellipsis; }
i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
b { font-weight: 600; }
.running { color: var(--daskdl-running); }
.finished { color: var(--daskdl-finished); }
.stopped { color: var(--daskdl-stopped); }
.failed { color: var(--daskdl-alert); }
u { display: inline-block; width: 80px; height: 6px; margin-right: 6px; border-radius: 3px; }
u { background: var(--daskdl-grid); vertical-align: middle; overflow: hidden; text-decoration: none; }
s { display: block; height: 100%; }
small { color: var(--daskdl-grey); font-size: 11px; }
.error td, .news td { border-top: none; padding: 0 8px 2px 23px; max-width: 0; overflow: hidden; }
.error td, .news td { text-overflow: ellipsis; }
.error td { color: var(--daskdl-alert); }
.news td { color: var(--daskdl-grey); }
@media (max-width: 760px) { .algorithm, .step { display: none; } th, td { padding: 1px 5px; } u { width: 36px; } }
@media (max-width: 440px) { .left, small { display: none; } }
"""

WORDS = """
.bk-clearfix { width: 100%; }
p, div.title, .key { font: 12px/1.4 system-ui, sans-serif; color: var(--daskdl-ink); margin: 0; padding: 3px 6px 0; }
p { font-weight: 600; }
.key { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline; color: var(--daskdl-grey); }
.key span { white-space: nowrap; }
i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 5px; box-sizing: border-box; }
small { font-size: 11px; color: var(--daskdl-grey); margin-left: 4px; }
"""

WIDGET = """
:host { font: 12px/1.4 system-ui, sans-serif !important; color: var(--daskdl-ink); --font-size: 12px; }
.bk-btn, .bk-input, .choices__inner, .choices__list--dropdown { font: inherit !important; border-radius: 4px; }
.bk-btn, .bk-input { padding: 2px 9px !important; min-height: 0 !important; height: auto !important; }
.bk-btn, .bk-input, .choices__inner, .choices__list--dropdown, .choices__list[aria-expanded] {
  color: var(--daskdl-ink) !important; background-color: var(--daskdl-page) !important;
  border: 1px solid var(--daskdl-edge) !important; box-shadow: none !important; }
.bk-btn:hover:enabled, .choices__item.is-highlighted { background-color: var(--daskdl-field) !important; }
.bk-btn.bk-active { background-color: var(--daskdl-field) !important; color: var(--daskdl-ink) !important; }
.bk-btn:not(.bk-active):not(:hover) { color: var(--daskdl-grey) !important; }
.bk-btn[disabled] { opacity: .6; }
select.bk-input { appearance: auto !important; background-image: none !important; text-overflow: ellipsis; }
"""
# a choice that looks like the title of the chart below it
METRIC = (
    WIDGET
    + """
:host { width: auto !important; max-width: 70%; min-width: 0; }
select.bk-input { border-color: transparent !important; background: transparent !important; cursor: pointer;
  padding: 1px 2px !important; field-sizing: content; max-width: 100%; }
select.bk-input:hover, select.bk-input:focus { border-color: var(--daskdl-edge) !important; }
option { background: var(--daskdl-page); color: var(--daskdl-ink); }
"""
)
ACTION = WIDGET + ".bk-btn:not(:hover) { color: var(--daskdl-ink) !important; }"
CHOICES = (
    WIDGET
    + """
.choices { font-size: 12px; margin: 0; }
.choices__inner { padding: 1px 6px !important; min-height: 0 !important; line-height: 1.5; }
.choices__inner .choices__item { font-size: 11px !important; padding: 0 6px !important; margin: 0 3px 1px 0 !important;
  background: var(--daskdl-field) !important; color: var(--daskdl-ink) !important; border: none !important; }
.choices__inner .choices__button { filter: var(--daskdl-cross); }
.choices__input { font-size: 12px !important; margin: 0 !important; padding: 1px 2px !important;
  color: var(--daskdl-ink); background: transparent !important; }
.choices__input::placeholder { color: var(--daskdl-grey); opacity: 1; }
.choices__list--dropdown .choices__item, .choices__list[aria-expanded] .choices__item {
  font-size: 12px !important; padding: 3px 8px !important; }
"""
)

HEADING: dict[str, str | None] = {"flex": "none", "align-items": "center", "padding-left": "24px"}  # of the axis
STRIP: dict[str, str | None] = {"padding": "2px 6px", "flex": "none", "align-items": "center"}

NOTICE = """
.bk-clearfix { width: 100%; height: 100%; }
div.notice { height: 100%; min-height: 90px; display: flex; flex-direction: column; align-items: center;
  justify-content: center; gap: .5em; font: 14px/1.5 system-ui, sans-serif; color: var(--daskdl-grey);
  text-align: center; padding: 0 1em; box-sizing: border-box; }
b { color: var(--daskdl-ink); font-weight: 600; }
small { font-size: 12px; max-width: 46em; }
svg { stroke: var(--daskdl-edge); }
code { background: var(--daskdl-field); color: var(--daskdl-ink); padding: 2px 6px; border-radius: 4px; }
em { width: 120px; height: 3px; border-radius: 2px; overflow: hidden; background: var(--daskdl-grid); }
em::after { content: ""; display: block; width: 40%; height: 100%; background: var(--daskdl-running);
  animation: slide 1.6s ease-in-out infinite alternate; }
@keyframes slide { from { transform: translateX(0) } to { transform: translateX(150%) } }
@media (prefers-reduced-motion) { em::after { animation: none; } }
"""
_CURVE = """<svg width="96" height="48" viewBox="0 0 96 48" fill="none" stroke-width="2.5" stroke-linecap="round">
<path d="M3 3V45H93"/><path d="M10 8C20 36 36 36 50 37S80 38 90 38"/></svg>"""
EMPTY = f"""{_CURVE}<b>No run yet</b>
<span>Start one with <code>clf.fit(X, y)</code> and its loss, speed and progress appear here.</span>"""


def notice(html: str) -> str:
    """Return words for the middle of an empty panel."""
    return f'<div class="notice">{html}</div>'


def title_of(chart: figure) -> Title:
    """Return the title of a chart made with one."""
    assert isinstance(chart.title, Title)
    return chart.title


def curves(title: str, source: ColumnDataSource, marks: ColumnDataSource, ticks: int = 3, **options: Any) -> figure:
    """Return a chart of curves and of marks on them (``view.LINE``, ``view.MARK``)."""
    chart = figure(title=Title(text=title), sizing_mode="stretch_both", **{**CHART, **options})
    stroke: dict[str, Any] = {"color": "color", "line_dash": "dash", "line_width": "width", "line_alpha": "alpha"}
    lines = chart.multi_line("xs", "ys", source=source, line_join="round", **stroke)
    chart.add_tools(HoverTool(renderers=[lines], tooltips="@run: @metric $snap_y{0.0000} at step $snap_x{0,0}"))
    shape: dict[str, Any] = {"marker": "marker", "size": "size", "fill_color": "fill", "line_color": "line"}
    dots = chart.scatter("x", "y", source=marks, line_width=1.2, **shape)
    chart.add_tools(HoverTool(renderers=[dots], tooltips="@event at step @x{0,0}: @text"))
    quiet(chart)
    chart.xaxis.ticker = BasicTicker(desired_num_ticks=5)
    chart.xaxis.formatter = CustomJSTickFormatter(code=AXIS_JS)
    if options.get("y_axis_type") != "log":
        chart.yaxis.ticker = BasicTicker(desired_num_ticks=ticks)
    chart.yaxis.formatter = CustomJSTickFormatter(code=NUMBER_JS)
    return chart


def bars(factors: FactorRange) -> figure:
    """Return a chart of horizontal bars by rank, without any yet."""
    ranges = {"y_range": factors, "x_range": DataRange1d(start=0, range_padding=0.06)}
    chart = figure(title=Title(), sizing_mode="stretch_both", **{**CHART, **ranges, "min_height": 50})
    quiet(chart)
    chart.ygrid.grid_line_color = None
    return chart


def explain(chart: figure, bars: Any) -> None:
    """Say what a bar is when the mouse is on it."""
    chart.add_tools(HoverTool(renderers=[bars], tooltips="@what: @text"))


def quiet(chart: figure) -> None:
    """Leave a chart its data: small text, light grid."""
    title = title_of(chart)
    title.text_font_size, title.text_font_style, title.text_color = "12px", "normal", INK
    chart.outline_line_color = None
    chart.grid.grid_line_color = GRID
    chart.axis.axis_line_color = GRID
    chart.axis.minor_tick_line_color = chart.axis.major_tick_line_color = None
    chart.axis.major_label_text_color, chart.axis.major_label_text_font_size = GREY, "10px"
