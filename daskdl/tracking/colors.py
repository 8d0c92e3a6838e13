"""The colors of runs, states and phases and the numbers on axes: one look for page, card and plots."""

from __future__ import annotations

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#2aa5a0", "#9d755d", "#d6559b", "#8a9a2b")
TRAIN, VALIDATION = PALETTE[0], PALETTE[1]
STATE_COLORS = {"running": "#4c78a8", "finished": "#3a9a5b", "failed": "#d64545", "stopped": "#c98a1b"}
ALERT = STATE_COLORS["failed"]
# Colors of Okabe and Ito, and one of IBM's, which people with any color vision can tell apart; "boost" and "backward"
# are never of one run. https://jfly.uni-koeln.de/color/
PHASE_COLORS = {
    "data": "#e69f00",
    "to device": "#f0e442",
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "boost": "#0072b2",
    "all-reduce": "#d55e00",
    "optimizer": "#009e73",
    "validation": "#cc79a7",
    "commit": "#785ef0",
    "other": "#9aa0a6",
}
HOST, GPU, PEAK = "#56b4e9", "#009e73", "#8a919c"
# for Bokeh's CustomJSTickFormatter; its own short numbers call a million "m"
AXIS_JS = (
    "return tick >= 1e6 ? +(tick / 1e6).toFixed(2) + ' M' : tick >= 1e3 ? +(tick / 1e3).toFixed(2) + ' k' : '' + tick"
)
MILLISECONDS_JS = "return tick >= 1e3 ? +(tick / 1e3).toFixed(2) + ' s' : +tick.toPrecision(3) + ' ms'"
NUMBER_JS = """
const size = Math.abs(tick), unit = size >= 1e9 ? 1e9 : size >= 1e6 ? 1e6 : size >= 1e4 ? 1e3 : 1
return +(tick / unit).toPrecision(3) + {1: '', 1000: ' k', 1000000: ' M', 1000000000: ' G'}[unit]
"""
BYTES_JS = """
const unit = tick > 0 ? Math.min(Math.floor(Math.log2(tick) / 10), 5) : 0
return tick > 0 ? +(tick / 1024 ** unit).toPrecision(3) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit] : '0'
"""
