#!/bin/sh
# The programs for tests/deploy: installs nginx, Caddy and Prometheus where that is easy; else says how things stand.
set -eu

wanted=""
command -v nginx >/dev/null 2>&1 || wanted="nginx-light"
command -v caddy >/dev/null 2>&1 || wanted="$wanted caddy"
command -v prometheus >/dev/null 2>&1 || wanted="$wanted prometheus"
if [ -z "$wanted" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Tests in tests/deploy will be skipped: no$wanted here, and no apt-get to install it with."
elif [ "$(id -u)" -ne 0 ]; then
    echo "Tests in tests/deploy will be skipped: install them with: sudo apt-get install $wanted"
else
    # RUNLEVEL=1 keeps the packages from starting their services.
    apt-get -qq update >/dev/null 2>&1 || true
    for package in $wanted; do
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$package" \
            >/dev/null 2>&1 || echo "Tests in tests/deploy will be skipped: apt-get cannot install $package here."
    done
fi
