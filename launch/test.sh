#!/usr/bin/env bash
# The tests, from an empty clone: a virtual environment, the package with its test extra, pytest.
#
#   bash launch/test.sh [arguments of pytest]     those that are not marked slow
#   bash launch/test.sh -m slow                   the others: several processes, many tries
#
# PYTHON and VENV as in environment.sh. The tests' tolerances are those of float32 on a CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

environment test
cd "$root"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "$python" -m pytest -n 2 --dist worksteal -m "not slow" "$@"
