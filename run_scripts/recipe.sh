# Sourced by the recipes, from the root of the project.

# Usage: needs_nsmc VARIABLE...; a missing file that one of them names ends the recipe and says where NSMC is to be had.
needs_nsmc() {
    local name missing=()
    for name in "$@"; do
        if [[ ${!name} == *.txt && ! -e ${!name} ]]; then missing+=("$name=${!name}"); fi
    done
    if [ ${#missing[@]} -gt 0 ]; then
        echo "error: no such file: ${missing[*]}; NSMC is at https://github.com/e9t/nsmc:" \
            "put its ratings_train.txt and ratings_test.txt into data/nsmc/, or set $*" >&2
        exit 2
    fi
}

# Usage: needs_environment; uses .venv, and makes it the first time, when `python` does not have our packages.
needs_environment() {
    if ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pytorch_lightning") is None)' 2>/dev/null; then
        source run_scripts/environment.sh requirements.txt
    fi
}
