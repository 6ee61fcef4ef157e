#!/bin/sh
# Make the environments of the benchmark's peers under .venv-peers/ (ignored by git, a few hundred MB, no root).
#
#     sh benchmarks/peers.sh                 all of them
#     sh benchmarks/peers.sh kornia          one
#
# The two albumentations share a package name, so each peer has a folder of its own. torch, torchvision and timm are not
# installed again: a .pth file lets the peers see those of .venv (or of the Python named by PYTHON), after their own
# packages. AlbumentationsX is under the AGPL: it is a peer that is measured, never a dependency of this package.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
for peer in "$@"; do
    case $peer in
        all | kornia | albumentations | albumentationsx | openvino) ;;
        *) echo "$peer: no such peer; there are kornia, albumentations, albumentationsx, openvino" >&2; exit 2 ;;
    esac
done
command -v "$PYTHON" > /dev/null || { echo "$PYTHON: no such program; run make setup, or set PYTHON" >&2; exit 2; }
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

make_peer() {
    name=$1
    shift
    home=.venv-peers/$name
    test -x "$home/bin/pip" || "$PYTHON" -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    own=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$packages" "$PWD/src" > "$own/zz-shared.pth"
    echo "$home is ready: $*"
}

for peer in "${@:-all}"; do
    case $peer in
        kornia | all)
            # Without its dependencies: they are torch, packaging and kornia_rs, and pip would fetch torch again.
            make_peer kornia packaging kornia_rs
            .venv-peers/kornia/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'kornia>=0.9,<0.10'
            ;;
    esac
    case $peer in
        albumentations | all) make_peer albumentations 'albumentations==2.0.8' opencv-python-headless ;;
    esac
    case $peer in
        albumentationsx | all) make_peer albumentationsx 'albumentationsx>=2.5,<2.6' opencv-python-headless ;;
    esac
    case $peer in
        openvino | all) make_peer openvino 'openvino>=2026.4' ;;  # for infer.py, which this Python then runs
    esac
done
