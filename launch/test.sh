#!/usr/bin/env bash
# Runs the tests on a bare machine with Python >= 3.11 and pip:
#
#   bash launch/test.sh                       all but the slow ones
#   bash launch/test.sh tests/privacy -x      arguments go to pytest
#   TRUSTML_DATA=/path bash launch/test.sh    with the tests of the real data sets
#
# The first call makes .venv and installs into it; later ones install nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
trustml_env dev
cd "$TRUSTML_ROOT"
exec "$TRUSTML_PYTHON" -m pytest -n 2 --dist worksteal "$@"
