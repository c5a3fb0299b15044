#!/bin/sh
# Writes requirements/lock.txt: the newest releases that pyproject.toml admits, resolved in a new
# environment. PyTorch alone is held at the version in the present lock, because moving it is a decision
# (its builds are large and differ by platform): HOLDFAST_TORCH=x.y.z make lock moves it.
set -eu
python=${1:-python3}
cd "$(dirname "$0")/.."
torch=${HOLDFAST_TORCH:-$(sed -n 's/^torch==//p' requirements/lock.txt)}
: "${torch:?requirements/lock.txt holds no torch; name one: HOLDFAST_TORCH=2.13.0 make lock}"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m venv "$place/venv"
pip="$place/venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet --upgrade 'pip>=25.1' # the first with --group
$pip install --quiet "torch==$torch"
$pip install --quiet --upgrade setuptools "torch==$torch" --editable '.[all]' --group dev
$pip check

{
  cat <<'HEADER'
# Exact versions for development, CI and `make demo`. Written by `make lock`; do not edit.
# Resolved on Linux with Python 3.11. The package itself declares ranges: see pyproject.toml.
# Builds of PyTorch for particular hardware bring their own libraries, which are not listed here.
HEADER
  # `list`, not `freeze`: it never prints where a file came from. A local label (+cpu) names one build only.
  $pip list --format=freeze --exclude-editable --exclude pip |
    sed 's/+[A-Za-z0-9.]*$//' | grep -v -i -E '^(nvidia-|cuda-|triton==)' | LC_ALL=C sort -f
} > "$place/lock.txt"
cp "$place/lock.txt" requirements/lock.txt
echo "requirements/lock.txt: $(grep -c == requirements/lock.txt) packages"
