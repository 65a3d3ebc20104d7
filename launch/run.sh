#!/usr/bin/env bash
# Runs an experiment on a bare machine with Python >= 3.11 and pip:
#
#   bash launch/run.sh --config=configs/quickstart.py
#
# The first call makes .venv and installs into it; later ones install nothing. All
# arguments go to `python -m launch.run`; the default --workdir is runs/<config>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
trustml_env
exec "$TRUSTML_PYTHON" -m launch.run "$@"
