#!/usr/bin/env python3
"""Measures `fusebox backtest`: exchanges a second through a record of lines and through a ledger, with the built-in rules.

    cargo build --release && python3 benches/backtest.py [--exchanges N] [--agents N] [--binary PATH]
"""
import argparse
import os
import resource
import subprocess
import tempfile
import time

LINE = (
    '{"request_id":"req-%(n)d","time":"%(time)s","agent":"agent-%(agent)d","agent_source":"header","agent_version":"v1",'
    '"execution":"run-%(run)d","execution_source":"header","upstream":"openai","provider":"openai","api":"openai.chat",'
    '"model_requested":"gpt-4o","model_served":"gpt-4o-2024-08-06","status":200,"stream":true,"outcome":"complete",'
    '"usage_source":"reported","input_tokens":%(tokens)d,"output_tokens":200,"total_tokens":%(total)d,'
    '"cached_input_tokens":0,"cache_write_tokens":null,"reasoning_tokens":0,"input_total":%(tokens)d,"output_total":200,'
    '"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":[],"output_chars":800,"ttfb_ms":210.5,'
    '"ttft_ms":230.25,"duration_ms":1800.125,"overhead_us":30,"cost_usd":0.004,"actions":[]}\n'
)


def write(path, exchanges, agents):
    # A hundred exchanges a second; now and then an agent is wild for a while.
    with open(path, "w") as out:
        for n in range(exchanges):
            millis = n * 10
            agent = n % agents
            wild = agent == 7 and (n // 20_000) % 5 == 1
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_795_600_800 + millis // 1000))
            tokens = 9_000 if wild else 900
            out.write(LINE % {
                "n": n, "time": "%s.%03dZ" % (stamp, millis % 1000), "agent": agent, "run": n // agents // 2 * agents + agent,
                "tokens": tokens, "total": tokens + 200,
            })


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--binary", default="target/release/fusebox")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lines, ledger, rules = (os.path.join(work, n) for n in ("record.ndjson", "ledger.db", "rules.yaml"))
        write(lines, args.exchanges, args.agents)
        open(rules, "w").write("{}\n")
        subprocess.run([args.binary, "ledger", "import", ledger, lines], check=True, stderr=subprocess.DEVNULL)
        for name, record, more in (
            ("lines", lines, []), ("ledger", ledger, []), ("lines, two files", lines, ["--against", rules]),
        ):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.monotonic()
            subprocess.run([args.binary, "backtest", record, "--rules", rules, *more], check=True, stdout=subprocess.DEVNULL)
            wall = time.monotonic() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            print(f"{name}: {args.exchanges / wall:,.0f} exchanges/s, {cpu / args.exchanges * 1e6:.2f} µs of CPU each")


if __name__ == "__main__":
    main()
