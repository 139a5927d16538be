#!/bin/sh
# The browser for tests/browser: installs Chromium where that is easy, and otherwise says in one line how things stand.
set -eu

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Browser tests will be skipped: no Chromium here, and no apt-get to install it with."
elif [ "$(id -u)" -ne 0 ]; then
    echo "Browser tests will be skipped: no Chromium here; install it with: sudo apt-get install chromium"
elif ! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1; then
    echo "Browser tests will be skipped: apt-get cannot install chromium here."
fi
