# Sourced by the recipes, from the root of the project.

# Usage: needs_files WHERE VARIABLE...; a missing file that one of them names ends the recipe and says where it is to be
# had. Names without a file's ending are taken for names of the hub.
needs_files() {
    local where=$1 name missing=()
    shift
    for name in "$@"; do
        if [[ ${!name} =~ \.(txt|tsv|jsonl?)$ && ! -e ${!name} ]]; then missing+=("$name=${!name}"); fi
    done
    if [ ${#missing[@]} -gt 0 ]; then
        echo "error: no such file: ${missing[*]}; $where, or set $*" >&2
        exit 2
    fi
}
needs_nsmc() {
    needs_files "NSMC is at https://github.com/e9t/nsmc: put its ratings_train.txt and ratings_test.txt into data/nsmc/" "$@"
}
needs_klue() {
    needs_files "KLUE is at https://github.com/KLUE-benchmark/KLUE: put the files of its klue_benchmark/ into data/klue/" "$@"
}

# Usage: needs_environment; uses .venv, and makes it the first time, when `python` does not have our packages.
needs_environment() {
    if ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pytorch_lightning") is None)' 2>/dev/null; then
        source run_scripts/environment.sh requirements.txt
    fi
}
