#!/usr/bin/env bash
# The GPU machine's part of a session, one step a call: tests | overhead | search | matmul | memory | backward |
# layer_norm | activations | mlp | aot | sanitize | pack | two
#
#   benchmarks/session.sh STEP OUT COMMIT        (in the repository's root there)
#
# COMMIT is what `python -m gristmill.bench.tree HEAD` prints here: the commit, and the digest of its
# sources, by which the machine's copy, which has no git, knows whether it is that commit.
#
# Carry the wheels that the machine lacks in .whl: platformdirs pytest-timeout pytest-xdist execnet.
# On an H200 with 16 cores: tests 2 min (as of issue 2), overhead 1, memory 5, backward 3, matmul 8, mlp 3; two, on
# two GPUs, 1. Measured: the tests and 17 workloads of memory (3 min); the rest is guessed from them.
set -uo pipefail
step=$1 out=$2 commit=$3
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site \
  .whl/{platformdirs,pytest_timeout,pytest_xdist,execnet}*.whl || exit
export PYTHONPATH=$PWD/src:/tmp/site PYTHONUNBUFFERED=1
python3 -m compileall -q src  # as pip does when it installs; that machine keeps no bytecode by itself
# Plans are kept from step to step while the machine is warm; `pack` brings them back.
bench() {
  python3 benchmarks/h200.py --out "$out" --cache /tmp/plans --commit "$commit" "$@" 2> >(tail -c 2000 >&2)
}
suite() {  # pytest-benchmark, which that machine has, warns beside xdist; a warning is an error
  PYTEST_ADDOPTS="-p no:benchmark $1" python3 tools/test.py --only "$2" --json "$out/$3.json" --commit "$commit" \
    | tee "$out/$3.log" | tail -c 6000
}
case $step in
  tests) suite "-n 8" gpu tests ;;
  two) suite "" multi_gpu tests-two ;;
  overhead) bench --parts overhead --deadline 120 ;;
  memory) bench --parts rms_norm silu_and_mul --budget 8 --deadline 540 ;;
  backward) bench --parts rms_norm_backward silu_and_mul_backward --budget 8 --deadline 540 ;;
  layer_norm) bench --parts layer_norm layer_norm_backward add_layer_norm add_layer_norm_backward --budget 8 --deadline 540 ;;
  rotary) bench --parts apply_rotary_pos_emb apply_rotary_pos_emb_backward partial_rotary_emb partial_rotary_emb_backward \
    --budget 8 --deadline 540 ;;
  matmul) bench --parts matmul --budget 6 --deadline 480 ;;
  activations) bench --parts gelu gelu_backward gelu_and_mul gelu_and_mul_backward relu2_and_mul relu2_and_mul_backward \
    --budget 3 --deadline 540 ;;
  search) python3 benchmarks/search.py --out "$out" --cache /tmp/plans --commit "$commit" 2> >(tail -c 2000 >&2) ;;
  mlp) python3 benchmarks/llama_mlp.py --out "$out" --commit "$commit" --tune 6 2> >(tail -c 2000 >&2) ;;
  aot) python3 benchmarks/aot.py --out "$out" --commit "$commit" 2> >(tail -c 2000 >&2) ;;
  sanitize) python3 benchmarks/sanitize.py --out "$out" --commit "$commit" --timeout 180 ;;
  pack) GRISTMILL_CACHE_DIR=/tmp/plans python3 -m gristmill cache export --plans-only "$out/pack.jsonl" ;;
  *) echo "steps: tests overhead memory backward layer_norm rotary activations matmul search mlp aot sanitize pack two" >&2; exit 2 ;;
esac
