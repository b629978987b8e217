#!/bin/sh
# Begin a list of jobs that goes on when this shell ends.
#
#   sh tools/gpu/start.sh LOAD... -- JOBS.toml RESULTS [MINUTES]
#
# LOAD are folders that pack.py filled, unpacked once into ./gpu-work: wheels, data, checkpoints. Without any, `--` comes first.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$PWD/gpu-work
mkdir -p "$work"
loads=
while [ "$1" != -- ]; do loads="$loads $1"; shift; done
shift
jobs=$1 results=$2 minutes=${3:-28}
python=${PYTHON:-python3}
mkdir -p "$results"
# shellcheck disable=SC2086
[ -z "$loads" ] || "$python" "$here/unpack.py" $loads -o "$work" --results "$results"
export PYTHONPATH="$here/../..:$work/site${PYTHONPATH:+:$PYTHONPATH}"
if [ -d "$work/data" ]; then STOCHCL_DATA=$work/data; fi # what came along, not what this machine has besides
export STOCHCL_DATA="${STOCHCL_DATA:-$work/data}"
setsid "$python" "$here/jobs.py" "$jobs" -o "$results" --data "$STOCHCL_DATA" --minutes "$minutes" \
    >>"$results/runner.log" 2>&1 </dev/null &
echo "begun; watch it with: $python $here/wait.py $results --seconds 540 --export EXPORTED"
