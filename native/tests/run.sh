# Usage: run.sh RUNS_HERE KIND PROGRAM [ARGUMENT...]. Ends with 77, which ctest takes as skipped, on other processors.
runs_here=$1 kind=$2
shift 2
"$runs_here" "$kind" || { echo "this processor has no $kind"; exit 77; }
if setarch -R true 2> /dev/null; then
  exec setarch -R "$@"
fi
exec "$@"
