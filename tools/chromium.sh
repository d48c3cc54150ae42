#!/usr/bin/env bash
# Prints the path of a Chromium browser, for tests; installs Debian's package by apt-get where that is allowed and there
# is none.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name"; then
        exit 0
    fi
done
command -v apt-get >/dev/null || { echo "chromium: not installed, and there is no apt-get to install it with" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "chromium: not installed, and apt-get install chromium needs root" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
timeout 300 apt-get install -y -q --no-install-recommends chromium >&2 \
    || { echo "chromium: apt-get install chromium failed (apt-get update may help)" >&2; exit 1; }
command -v chromium || { echo "chromium: apt-get installed no program of that name" >&2; exit 1; }
