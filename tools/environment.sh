#!/usr/bin/env bash
# Makes .venv: torch, triton, gristmill (editable) and what its tests need.
#
# With a GPU and a system Python whose torch has CUDA, that torch is used as it is; with a GPU and
# none, PyPI's torch (CUDA) is installed; without a GPU, a CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.13.0
triton_version=3.6.0
cpu_wheels=https://download.pytorch.org/whl/cpu
system_python=${PYTHON:-python3}
python=.venv/bin/python

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }
pip() { "$python" -m pip --disable-pip-version-check install -qq "$@"; }

# Where the system's torch with CUDA lies; fails where there is none.
system_torch() {
    "$system_python" -c '
import pathlib, sys, torch
if not torch.version.cuda: sys.exit(1)
print(pathlib.Path(torch.__file__).parent.parent)' 2>/dev/null
}

if [ ! -x "$python" ]; then
    echo "making .venv"
    "$system_python" -m venv .venv
fi

if has_gpu && packages=$(system_torch); then
    echo "using the system's torch in $packages"
    # Not --system-site-packages: from within a virtual environment that would reach its parent's.
    here=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$packages" > "$here/system_torch.pth"
elif has_gpu; then
    echo "installing torch with CUDA"
    pip "torch==$torch_version"
elif [ "$(uname -s)" = Linux ]; then
    echo "installing torch for CPU"
    # A CPU wheel that pip already knows of (a local index), else PyTorch's own index.
    pip "torch==$torch_version+cpu" "triton==$triton_version" 2>/dev/null ||
        pip --extra-index-url "$cpu_wheels" "torch==$torch_version+cpu" "triton==$triton_version"
else
    echo "installing torch"
    pip "torch==$torch_version"
fi

echo "installing gristmill and its development tools"
pip --editable '.[dev]'
