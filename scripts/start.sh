#!/usr/bin/env bash
# What the image runs: the server on a scenario, the one for this machine unless named. Other words are run as they are,
# as KubeRay does, which starts Ray itself.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1-} in
"" | *.yaml | *.yml) exec python -m serve_app.serve "$@" ;;
*) exec "$@" ;;
esac
