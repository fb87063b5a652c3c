#!/usr/bin/env python3
"""Runs the rounds of compare.sh and prints medians and ratios. Every proxy has core 0, mock and load have core 1.

CPU per request and per event (user + system time of the proxy's process tree) is the robust figure; absolute
numbers depend on the machine, so the ratios, taken within each round, are the result.
"""
import argparse, json, os, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "target"
LOAD, MOCK = TARGET / "load/release/load", TARGET / "load/release/mock"
TICK = os.sysconf("SC_CLK_TCK")
PROXY_CORE, LOAD_CORE = "0", "1"
# (figure, unit, what it is)
FIGURES = {
    "json_cpu": ("µs", "CPU per request, 1.2 KB answer, 64 connections"),
    "json_rps": ("/s", "requests per second, saturated"),
    "embeddings_cpu": ("µs", "CPU per request, 18 KB answer"),
    "burst_cpu": ("µs", "CPU per SSE event, 16 events a write"),
    "burst_events": ("/s", "SSE events per second, 16 events a write"),
    "paced_cpu": ("µs", "CPU per SSE event, 200 streams, one event per 20 ms"),
    "added_p50": ("µs", "added latency p50 at 500 requests/s"),
    "added_p99": ("µs", "added latency p99 at 500 requests/s"),
    "stream_kib": ("KiB", "memory per open stream (1,000 open)"),
    "idle_mib": ("MiB", "memory when idle (Pss)"),
    "start_ms": ("ms", "start to first answer of the listener"),
}


def tree(pid):
    kids = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                stat = Path(f"/proc/{d}/stat").read_text()
                kids.setdefault(int(stat[stat.rindex(")") + 2:].split()[1]), []).append(int(d))
            except (OSError, ValueError):
                pass
    found, todo = [], [pid]
    while todo:
        p = todo.pop()
        found.append(p)
        todo += kids.get(p, [])
    return found


def cpu_seconds(pid):
    total = 0
    for p in tree(pid):
        try:
            stat = Path(f"/proc/{p}/stat").read_text()
        except OSError:
            continue
        f = stat[stat.rindex(")") + 2:].split()
        total += int(f[11]) + int(f[12])
    return total / TICK


def memory_kib(pid):
    total = 0
    for p in tree(pid):
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{p}/smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):
            pass
    return total


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, process, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        time.sleep(0.002)
    raise RuntimeError(f"port {port} did not open")


def stop(process):
    for p in reversed(tree(process.pid)):
        try:
            os.kill(p, signal.SIGTERM if p == process.pid else signal.SIGKILL)
        except OSError:
            pass
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Proxy:
    """One proxy, started for one round."""

    def __init__(self, name, upstream, work):
        self.name, self.port = name, free_port()
        values = {"PORT": self.port, "UP": upstream, "ADMIN": free_port(), "METERING": "false" if name == "fusebox-unmetered" else "true"}
        conf, dest, command = {
            "nginx": ("nginx.conf", "nginx.conf", ["nginx", "-p", ".", "-c", "nginx.conf"]),
            "fusebox": ("fusebox.yaml", "fusebox.yaml", [TARGET / "release/fusebox", "run", "--config", "fusebox.yaml"]),
            "fusebox-unmetered": ("fusebox.yaml", "fusebox.yaml", [TARGET / "release/fusebox", "run", "--config", "fusebox.yaml"]),
            "agentgateway": ("agentgateway.yaml", "ag.yaml", [os.environ.get("AGENTGATEWAY_BIN", "agentgateway"), "-f", "ag.yaml"]),
        }[name]
        self.dir = work / name
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        text = (HERE / "conf" / conf).read_text()
        for k, v in values.items():
            text = text.replace(f"@{k}@", str(v))
        (self.dir / dest).write_text(text)
        log = open(self.dir / "log.txt", "w")
        started = time.monotonic()
        env = dict(os.environ, RUST_LOG="error")
        self.process = subprocess.Popen(["taskset", "-c", PROXY_CORE, *map(str, command)], cwd=self.dir, stdout=log, stderr=log, env=env)
        wait_port(self.port, self.process)
        self.start_ms = (time.monotonic() - started) * 1000
        self.url = f"http://127.0.0.1:{self.port}/v1/chat/completions"

    @property
    def pid(self):
        return self.process.pid


def pinned(*command):
    return ["taskset", "-c", LOAD_CORE, *map(str, command)]


def load(url, *args):
    out = subprocess.run(pinned(LOAD, "--url", url, *args), capture_output=True, text=True, timeout=180)
    if out.returncode:
        raise RuntimeError(f"load: {out.stderr[-300:]}")
    got = json.loads(out.stdout.strip().splitlines()[-1])
    if got["errors"] or got["bad"]:
        raise RuntimeError(f"load: {got['errors']} errors, {got['bad']} answers differ: {got['last_error']}")
    return got


def wrk(url, body, seconds):
    env = dict(os.environ, LOAD_BODY=str(body))
    out = subprocess.run(pinned("wrk", "-t1", "-c64", f"-d{seconds}s", "--timeout", "10s", "-s", HERE / "conf/post.lua", url),
                         capture_output=True, text=True, env=env)
    got = re.search(r"^JSON (.*)$", out.stdout, re.M)
    if not got:
        raise RuntimeError(f"wrk: {out.stdout[-300:]}{out.stderr[-300:]}")
    got = json.loads(got[1])
    if got["bad"]:
        raise RuntimeError(f"wrk: {got['bad']} bad answers")
    return got


def body(work, kind):
    path = work / f"{kind}.json"
    if kind == "embeddings":
        path.write_text(json.dumps({"model": "text-embedding-3-small", "input": "the quick brown fox"}))
    else:
        path.write_text(subprocess.run([LOAD, "--print-body", kind], capture_output=True, text=True, check=True).stdout)
    return path


def measure(proxy, what, work, seconds):
    """The figures of one proxy in one round."""
    got = {}
    cpu = lambda: cpu_seconds(proxy.pid)
    if "start" in what:
        got["start_ms"] = proxy.start_ms
    wrk(proxy.url, body(work, "json"), 1)  # warm
    if "json" in what:
        c = cpu()
        r = wrk(proxy.url, body(work, "json"), seconds)
        got["json_cpu"] = (cpu() - c) / r["requests"] * 1e6
        got["json_rps"] = r["requests"] / (r["duration_us"] / 1e6)
    if "embeddings" in what:
        c = cpu()
        r = wrk(proxy.url.replace("chat/completions", "embeddings"), body(work, "embeddings"), seconds)
        got["embeddings_cpu"] = (cpu() - c) / r["requests"] * 1e6
    if "burst" in what:
        c = cpu()
        r = load(proxy.url, "--mode", "tput", "-c", 64, "--seconds", seconds, "--batch", 16)
        got["burst_cpu"] = (cpu() - c) / r["events"] * 1e6
        got["burst_events"] = r["events_per_s"]
    if "paced" in what:
        c = cpu()
        r = load(proxy.url, "--mode", "paced", "-c", 200, "--delay-us", 20000, "--chunks", 100, "--seconds", seconds)
        got["paced_cpu"] = (cpu() - c) / r["events"] * 1e6
    if "latency" in what:
        r = load(proxy.url, "--mode", "rate", "--rps", 500, "-c", 16, "--seconds", seconds + 1)
        got["p50"], got["p99"] = r["lat_us"]["p50"], r["lat_us"]["p99"]
    if "memory" in what:
        before = memory_kib(proxy.pid)
        n = 1000
        holder = subprocess.Popen(pinned(LOAD, "--url", proxy.url, "--mode", "hold", "-c", n, "--delay-us", 1000000, "--seconds", 30),
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = re.search(r"READY (\d+)", holder.stdout.readline())
        time.sleep(3)
        if ready and int(ready[1]):
            got["stream_kib"] = (memory_kib(proxy.pid) - before) / int(ready[1])
        holder.stdin.close()
        holder.wait(60)
    return got


def idle_memory(name, upstream, work):
    proxy = Proxy(name, upstream, work)
    try:
        time.sleep(1)
        return memory_kib(proxy.pid) / 1024
    finally:
        stop(proxy.process)


def spin():
    """Keeps the cores awake at idle priority: a virtual core that halts between packets doubles every latency."""
    return [subprocess.Popen(["taskset", "-c", c, "chrt", "-i", "0", "timeout", "1800", "sh", "-c", "while :; do :; done"])
            for c in (PROXY_CORE, LOAD_CORE)]


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--seconds", type=int, default=3, help="length of each load window")
    args.add_argument("--only", default="json,embeddings,burst,paced,latency,memory,start")
    args.add_argument("--json", help="also write every round to this file")
    args = args.parse_args()
    what = args.only.split(",")
    names = ["nginx", "fusebox", "fusebox-unmetered"] + (["agentgateway"] if os.environ.get("AGENTGATEWAY_BIN") else [])
    upstream = free_port()
    rounds = []
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        mock = subprocess.Popen(pinned(MOCK, "--addr", f"127.0.0.1:{upstream}"), stderr=subprocess.DEVNULL)
        spinners = spin()
        try:
            wait_port(upstream, mock)
            for i in range(args.rounds):
                this = {}
                if "latency" in what:
                    r = load(f"http://127.0.0.1:{upstream}/v1/chat/completions", "--mode", "rate", "--rps", 500, "-c", 16, "--seconds", args.seconds)
                    direct = r["lat_us"]
                for name in names if i % 2 == 0 else reversed(names):
                    proxy = Proxy(name, upstream, work)
                    try:
                        got = measure(proxy, what, work, args.seconds)
                    finally:
                        stop(proxy.process)
                    if "p50" in got:
                        got["added_p50"], got["added_p99"] = got.pop("p50") - direct["p50"], got.pop("p99") - direct["p99"]
                    if "memory" in what:
                        got["idle_mib"] = idle_memory(name, upstream, work)
                    this[name] = got
                rounds.append(this)
                print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
        finally:
            for p in [mock, *spinners]:
                stop(p)
    if args.json:
        Path(args.json).write_text(json.dumps(rounds))
    table(rounds, names)


def table(rounds, names):
    median = lambda values: statistics.median(values) if values else None
    print("| figure | " + " | ".join(names) + " | " + " | ".join(f"{n} ÷ nginx" for n in names[1:]) + " |")
    print("|---" * (2 * len(names)) + "|")
    for figure, (unit, words) in FIGURES.items():
        if not any(figure in r["nginx"] for r in rounds):
            continue
        medians = [median([r[n][figure] for r in rounds if figure in r[n]]) for n in names]
        ratios = [median([r[n][figure] / r["nginx"][figure] for r in rounds if figure in r[n] and r["nginx"].get(figure)]) for n in names[1:]]
        cells = [f"{m:,.1f} {unit}" if m is not None else "–" for m in medians] + [f"{x:.2f}" if x is not None else "–" for x in ratios]
        print(f"| {words} | " + " | ".join(cells) + " |")
    both = [r["fusebox"]["json_cpu"] / r["fusebox-unmetered"]["json_cpu"] for r in rounds if "json_cpu" in r["fusebox"]]
    if both:
        print(f"\nCPU per request, metering on ÷ off: {median(both):.3f} (median of {len(both)} rounds)")


if __name__ == "__main__":
    main()
