"""What tests of drawings share."""

from __future__ import annotations

import pytest
from bokeh.core.property.bases import Property


@pytest.fixture(autouse=True)
def validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bokeh's switch of validation is one for all threads: pages that are updated at once, by two, can leave it off."""
    monkeypatch.setattr(Property, "_should_validate", True)
