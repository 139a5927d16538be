"""What the browser tests need beyond the rest. A module that imports this is skipped where it is missing.

All modules are skipped in the same line of this one, so that pytest's summary gives the reason once.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PATIENCE = 60_000
"""Milliseconds until a test gives up on something in a page. Nothing takes that long, even on a busy machine."""

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = None
if find_spec("playwright") is None:
    MISSING = "Playwright is not installed (pip install playwright)"
elif CHROMIUM is None:
    MISSING = "no Chromium found (on Debian, tests/browser/install_chromium.sh installs it)"
if MISSING:
    pytest.skip(f"browser tests: {MISSING}", allow_module_level=True)

from playwright.async_api import async_playwright, expect  # noqa: E402 - only where it is installed

__all__ = ["CHROMIUM", "PATIENCE", "async_playwright", "expect"]
