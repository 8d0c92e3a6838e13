"""The colors of runs and states and the numbers on axes: one look for page, card and plots."""

from __future__ import annotations

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#2aa5a0", "#9d755d", "#d6559b", "#8a9a2b")
TRAIN, VALIDATION = PALETTE[0], PALETTE[1]
STATE_COLORS = {"running": "#4c78a8", "finished": "#3a9a5b", "failed": "#d64545", "stopped": "#c98a1b"}
ALERT = STATE_COLORS["failed"]
# for Bokeh's CustomJSTickFormatter; its own short numbers call a million "m"
AXIS_JS = (
    "return tick >= 1e6 ? +(tick / 1e6).toFixed(2) + ' M' : tick >= 1e3 ? +(tick / 1e3).toFixed(2) + ' k' : '' + tick"
)
