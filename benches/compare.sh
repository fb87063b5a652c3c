#!/usr/bin/env bash
# Measures fusebox beside nginx's plain proxy_pass: the same mock upstream, the same load, interleaved rounds, the
# proxy on one pinned core. Prints the median of each figure and its ratio to nginx. Needs two cores.
#
#   benches/compare.sh                  all figures, 5 rounds
#   ROUNDS=7 ONLY=json,burst benches/compare.sh
#   AGENTGATEWAY_BIN=/path benches/compare.sh      also agentgateway's LLM route, when you have it
set -euo pipefail
cd "$(dirname "$0")/.."

need=()
command -v nginx >/dev/null || need+=(nginx-light)
command -v wrk >/dev/null || need+=(wrk)
if [ ${#need[@]} -gt 0 ]; then
  sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq "${need[@]}"
fi

cargo build --release --bin fusebox
CARGO_TARGET_DIR=target/load cargo build --release --manifest-path benches/load/Cargo.toml
exec python3 benches/compare.py --rounds "${ROUNDS:-5}" --only "${ONLY:-json,embeddings,burst,paced,latency,memory,start}" "$@"
