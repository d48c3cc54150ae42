#!/usr/bin/env bash
# Prints the path of a Prometheus server, for tests; fetches Debian's package into .venv/prometheus if there is none.
# Installs nothing, starts no daemon, and needs no root.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.venv/prometheus
if command -v prometheus; then
    exit 0
fi
if [ ! -x "$folder/usr/bin/prometheus" ]; then
    for program in apt-get dpkg; do
        command -v "$program" >/dev/null || { echo "prometheus: not installed, and there is no $program to fetch it with" >&2; exit 1; }
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && timeout 120 apt-get download -q prometheus >&2) \
        || { echo "prometheus: apt-get download prometheus failed (apt-get update may help)" >&2; exit 1; }
    dpkg -x "$work"/prometheus_*.deb "$work/files"
    mkdir -p "$folder"
    cp -r "$work/files/." "$folder"
fi
echo "$folder/usr/bin/prometheus"
