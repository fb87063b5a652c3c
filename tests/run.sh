#!/usr/bin/env bash
# Everything that is checked before a change is merged, from a clean clone: form, lints, tests, recorded traffic,
# official clients, real receivers of alerts, fuzzing for a bounded time, documentation, the demo. One line for each
# stage; exits with 1 when anything failed.
#
#   tests/run.sh [STAGE…]    only these stages: format lint test corpus doctest alerts clients fuzz doc demo
#
# FUSEBOX_CORPUS        recorded traffic (default ../shared/corpus); the stage says so when there is none
# FUSEBOX_FUZZ_SECONDS  how long each fuzz target runs (default 10)
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never RUST_BACKTRACE=0

root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Debian packages, only where something is missing.
need=()
command -v cc >/dev/null || need+=(build-essential)
command -v curl >/dev/null || need+=(curl)
python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3 python3-venv)
command -v prometheus-alertmanager >/dev/null || need+=(prometheus-alertmanager)
command -v npm >/dev/null || need+=(nodejs npm)
if [ ${#need[@]} -gt 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${need[*]}"
  root apt-get -qq update && root apt-get -qq install -y --no-install-recommends "${need[@]}" >/dev/null || exit 1
  # The tests start one of their own, on a free port.
  if [[ " ${need[*]} " == *" prometheus-alertmanager "* ]] && [ -d /run/systemd/system ]; then
    root systemctl --quiet disable --now prometheus-alertmanager
  fi
fi
command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
total_passed=0 total_failed=0 summary=()

# stage NAME COMMAND…: runs it; its tests are counted, a command without tests counts as one.
stage() {
  local name=$1 log="$logs/$1" begun=$SECONDS code passed failed
  shift
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
  echo "== $name: $*"
  "$@" >"$log" 2>&1
  code=$?
  # Totals of `cargo test`, one for each binary, and of the clients.
  passed=$(sed -nE 's/^test result: .* ([0-9]+) passed; .*/\1/p; s/^clients: ([0-9]+) passed.*/\1/p' "$log" | paste -sd+ | bc_)
  failed=$(sed -nE 's/^test result: .* ([0-9]+) failed; .*/\1/p; s/^clients: .* ([0-9]+) failed$/\1/p' "$log" | paste -sd+ | bc_)
  if [ "$passed$failed" = 00 ]; then passed=$((code == 0)); fi
  if [ "$code" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
  grep -E '^(SKIPPED|corpus |usage was asked|fuzz )|^  [a-z.]+[a-z_]+ +[0-9]+ of' "$log" | sort -u
  if [ "$failed" != 0 ]; then
    echo "-- $name failed; the end of what it said:"
    tail -n 150 "$log"
  fi
  total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed))
  summary+=("$(printf '%-8s %5d passed, %d failed in %d s' "$name" "$passed" "$failed" $((SECONDS - begun)))")
  echo "== ${summary[-1]}"
}

bc_() { local sum; read -r sum || sum=0; echo $((${sum:-0})); }

demo() {
  local out
  out=$(timeout 180 "${CARGO_TARGET_DIR:-target}/debug/fusebox" demo 2>&1) || { echo "$out"; echo "the demo ended with $?"; return 1; }
  echo "$out"
  grep -qi incident <<<"$out" || return 1
  # The other scenarios end with 0 only when all that must happen has happened. Side by side: they mostly wait.
  local name at bad=0 pids=() names=(upstream-outage runaway-loop latency-creep bad-deploy) dir
  dir=$(mktemp -d)
  for name in "${names[@]}"; do
    timeout 180 "${CARGO_TARGET_DIR:-target}/debug/fusebox" demo --scenario "$name" >"$dir/$name" 2>&1 &
    pids+=($!)
  done
  for at in "${!names[@]}"; do
    wait "${pids[$at]}" || { bad=1; cat "$dir/${names[$at]}"; echo "the scenario ${names[$at]} did not come to its end"; }
  done
  rm -r "$dir"
  return $bad
}

wanted=("$@")
fuzz_seconds=${FUSEBOX_FUZZ_SECONDS:-10}

stage format cargo fmt --check
stage lint cargo clippy --all-targets --locked --quiet -- -D warnings
# Fuzzing and recorded traffic have stages of their own.
export FUSEBOX_FUZZ_SECONDS=0
stage test cargo test --locked --no-fail-fast --lib --bins --tests -- --skip corpus::
stage corpus cargo test --locked --test it corpus:: -- --nocapture
stage doctest cargo test --locked --doc
stage alerts sh -c 'cargo build --locked --quiet && python3 tests/alerts/run.py'
stage clients sh -c 'cargo build --locked --quiet && python3 tests/clients/run.py'
export FUSEBOX_FUZZ_SECONDS=$fuzz_seconds
stage fuzz cargo test --locked --test fuzz -- --nocapture
stage doc env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
stage demo demo

echo
printf '%s\n' "${summary[@]}"
echo "$total_passed passed, $total_failed failed"
[ "$total_failed" = 0 ]
