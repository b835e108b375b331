#!/usr/bin/env bash
# The Python package as a user gets it: linted, built as a wheel, installed into a fresh virtual environment, tested there.
# PYTHON is the interpreter. Where it has torch, the tests that need it run too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/duogpt/python-package
export CARGO_TARGET_DIR=$PWD/target # shares compiled dependencies with the crate

"$python" -m venv --clear "$venv"
if torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2> /dev/null); then
    echo "$torch" > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch.pth"
fi
# shellcheck source=/dev/null
source "$venv/bin/activate"
pip install --quiet --disable-pip-version-check maturin mypy numpy pytest

export PYO3_PYTHON=$venv/bin/python
cargo fmt --check --manifest-path python/Cargo.toml
cargo clippy --release --locked --manifest-path python/Cargo.toml -- -D warnings

wheels=$CARGO_TARGET_DIR/wheels
rm -rf "$wheels"
maturin build --release --locked --manifest-path python/Cargo.toml --out "$wheels"
pip install --quiet --disable-pip-version-check "$wheels"/*.whl
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Not from here: the package that is installed is tested, and not the one beside the tests.
cd "$venv"
export MYPY_CACHE_DIR=$venv/mypy
mypy --strict --package duogpt
python -m mypy.stubtest duogpt._duogpt
pytest -p no:cacheprovider -rs "$OLDPWD/python/tests" | tee "$log"
grep -q '^SKIPPED' "$log" || echo "nothing was skipped"
