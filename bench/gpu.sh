#!/usr/bin/env bash
# The part `train` of the benchmarks on a GPU machine that has no network.
#
#     bash bench/gpu.sh wheels [FOLDER]    with network: download what such a machine lacks
#     bash bench/gpu.sh install [FOLDER]   there: unpack it, may be called for several folders
#     bash bench/gpu.sh run [--tiny]       there: unpack ./build/wheels if it is there, and measure
#
# FOLDER is ./build/wheels. PYTHON names the interpreter (python3); FOR_PYTHON the version that the wheels
# are for, such as 3.12 (that of PYTHON); THERE what need not be carried along, see below. Where OUT names a
# folder, the figures are copied to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
site=$PWD/build/site
# What a machine with PyTorch is expected to have, as its wheels are named.
there=${THERE:-torch torchvision numpy h5py safetensors typer rich tensorboard matplotlib}

lacking() {
    "$python" - "$there" << 'END'
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
print(*(d for d in dependencies if re.match(r"[\w.-]+", d)[0] not in sys.argv[1].split()), sep="\n")
END
}

wheels() {
    local folder=$1 version minor name requirements
    version=${FOR_PYTHON:-$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')}
    local tags=(--platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
    # pip takes a tag to the letter; wheels for an older glibc run on a newer one.
    for minor in $(seq 5 28); do tags+=(--platform "manylinux_2_${minor}_x86_64"); done
    mapfile -t requirements < <(lacking)
    mkdir -p "$folder"
    "$python" -m pip download --quiet --only-binary=:all: --implementation cp --python-version "$version" \
        "${tags[@]}" --constraint constraints.txt --dest "$folder" "${requirements[@]}"
    for name in $there; do rm -f "$folder/$name"-*.whl; done
    du -sm "$folder"
}

# A folder on PYTHONPATH, not a virtual environment: one made inside another does not see its packages.
install() {
    local found=("$1"/*.whl)
    if [[ -e ${found[0]} ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "${found[@]}"
    fi
}

run() {
    local start
    start=$(mktemp)
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    "$python" -m bench train "$@"
    if [[ -n ${OUT:-} ]]; then
        find bench/results -name 'train*.json' -newer "$start" -exec cp {} "$OUT" \;
    fi
    rm -f "$start"
}

command=${1:-}
case $command in
    wheels | install) "$command" "${2:-build/wheels}" ;;
    run)
        install build/wheels
        run "${@:2}"
        ;;
    *)
        echo 'usage: bash bench/gpu.sh wheels [FOLDER] | install [FOLDER] | run [--tiny]' >&2
        exit 2
        ;;
esac
