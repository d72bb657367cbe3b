# Sourced by the scripts that set themselves up: makes the virtual environment .venv (or $VENV) from a requirements
# file, once, and puts it first on the path. Usage: source run_scripts/environment.sh requirements.txt
requirements=$1
VENV=${VENV:-.venv}
if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2
    exit 2
fi
stamp="$VENV/installed-$(cat requirements.txt "$requirements" | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements into $VENV ..."
    [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"  # one that is there keeps its Python
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$stamp"
fi
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
export PATH
