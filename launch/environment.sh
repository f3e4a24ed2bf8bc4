# shellcheck shell=bash
# Sourced by the scripts beside it: makes the virtual environment and installs the package, once.
#
#   environment [EXTRA]   leaves the path of its interpreter in $python; EXTRA is an extra of setup.py
#
# PYTHON names the interpreter to start from (python3), VENV the environment (.venv in the clone).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

environment() {
  local extra="${1:-}" venv="${VENV:-$root/.venv}" base="${PYTHON:-python3}" found
  [[ "$venv" == /* ]] || venv="$PWD/$venv"
  python="$venv/bin/python"
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    found="$(_version "$base")" || _fail "no $base here: name a Python 3.11 or newer with PYTHON=..."
    _is_recent "$found" || _fail \
      "$base is Python $found, 3.11 or newer is needed: name another one with PYTHON=..."
    [[ ! -e "$venv" || -f "$venv/pyvenv.cfg" || -z "$(ls -A "$venv")" ]] || _fail \
      "$venv is in the way: it is no virtual environment; name another folder with VENV=..."
    echo "Making a virtual environment in $venv"
    "$base" -m venv --clear "$venv" || _fail \
      "$base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
  elif [[ -n "${PYTHON:-}" && "$(_version "$python")" != "$(_version "$base")" ]]; then
    _fail "$venv has Python $(_version "$python"), not the version of PYTHON=$base: remove $venv," \
      "or name another folder with VENV=..."
  fi

  # What was installed, from where: a stamp that still holds means that there is nothing to do, and
  # no network is needed. A stamp is written last, so that a broken-off installation goes on.
  local stamp="$venv/imgtx_jax${extra:+-$extra}.installed" wanted
  wanted="$root $(cat "$root/setup.py" "$root/pyproject.toml" | cksum)"
  if [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    return
  fi
  echo "Installing imgtx_jax${extra:+[$extra]} into $venv: the first time this downloads several" \
    "hundred MB and takes a few minutes"
  "$python" -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}" ||
    _fail "pip could not install imgtx_jax: see its message above; the same command goes on"
  echo "$wanted" >"$venv/imgtx_jax.installed"
  echo "$wanted" >"$stamp"
}

_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

_is_recent() {
  [[ "${1%%.*}" -gt 3 || ("${1%%.*}" -eq 3 && "${1#*.}" -ge 11) ]]
}

_fail() {
  echo "$*" >&2
  exit 2
}
