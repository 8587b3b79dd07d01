#!/usr/bin/env bash
# Run a script on a card that is not there: `tests/pretend_card/run.sh count.py step`. PYTHON names the interpreter.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
built=$here/build
mkdir -p "$built"
for part in shim:shim.so libcuda:libcuda.so.1; do
    source=$here/${part%%:*}.c target=$built/${part##*:}
    if [ ! "$target" -nt "$source" ]; then
        # two at a time must not see half a library
        "${CC:-cc}" -shared -fPIC -o "$target.$$" "$source" && mv "$target.$$" "$target"
    fi
done
script=$here/$1
shift
export LD_LIBRARY_PATH=$built${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} LD_PRELOAD=$built/shim.so
export PYTHONPATH=$here/../..:$here${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore
exec "${PYTHON:-python}" "$script" "$@"
