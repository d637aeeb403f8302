"""`scripts/bench replay` and `scripts/bench isolation`: a real broker whose log is cold, behind a slow store.

Replay: everything from offset 0, through the mount and on plain disk with the page cache dropped, alternating.
Isolation: what a paced producer and a consumer of the tail notice of a replay of other partitions, and of a store that hangs.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import __main__ as bench
from bench_cold import BUCKET, CREDENTIALS, Gateway, Proxy
from bench_shared import prepared

LIGHT = ["--size", "1000", "--acks", "all", "--batch-size", "131072", "--linger-ms", "5", "--light"]


# Before a replay is measured: what the consumer's and the broker's JVM spend on their own code is not to be in it.
WARM_UP_MB = 800


def s3(port):
    return {"store": f"s3://{BUCKET}/bench", "environment": os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}}


def produce(common, topic, partitions, mb, segment_mb, ledger):
    bench.run(bench.java("Ledger", "topic", "--create", *common, "--topic", topic, "--partitions", str(partitions), "--config", f"segment.bytes={segment_mb << 20}"))
    bench.run(bench.java("Ledger", "produce", *common, "--topic", topic, "--partitions", str(partitions), *LIGHT, "--records", str(mb * 1000), "--ledger", ledger))


def all_cold(mount):
    totals = mount.status()["totals"]
    return totals["lag_segments"] == 0 and totals["cold_segments"] == totals["closed_segments"]


def filled(args, directory, binary, gateway, topic, partitions):
    """A log dir with a cold topic, archived at full speed; broker and mount are stopped again."""
    directory.mkdir(parents=True)
    mounted = gateway is not None
    with contextlib.ExitStack() as stack:
        log_dir = directory / "logs"
        if mounted:
            mount = stack.enter_context(bench.stopping(bench.Mount(binary, directory, "--hot-bytes", "1", **s3(gateway.port))))
        else:
            log_dir.mkdir()
        broker = stack.enter_context(bench.stopping(bench.Broker(directory, log_dir)))
        common = ["--bootstrap", broker.bootstrap]
        produce(common, "warm", 6, WARM_UP_MB, 1024, directory / "warm.json")
        produce(common, topic, partitions, args.mb, args.segment_mb, directory / "ledger.json")
        if mounted:
            bench.wait_for("everything closed to go cold", lambda: all_cold(mount), 900)
            totals = mount.status()["totals"]
            print(f"{totals['cold_bytes'] / 1e6:.0f} MB cold in {totals['cold_segments']} segments, {totals['active_bytes'] / 1e6:.0f} MB active", flush=True)


def replayed(args, directory, binary, proxy, consumers):
    """One replay with nothing in any cache: figures."""
    if proxy:
        shutil.rmtree(directory / "data/cache", ignore_errors=True)
    bench.drop_page_cache()
    hole = bench.fill_page_cache(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(hole.unlink)
        pids = {}
        if proxy:
            mount = stack.enter_context(bench.stopping(bench.Mount(binary, directory, "--hot-bytes", "1", *args.mount_option, **s3(proxy.port))))
            pids["everlog"] = mount.process.pid
        broker = stack.enter_context(bench.stopping(bench.Broker(directory, directory / "logs", formatted=True)))
        pids["broker"] = broker.process.pid
        warm, ledger = directory / "warm.json", directory / "ledger.json"
        command = bench.java("Ledger", "consume", "--bootstrap", broker.bootstrap, "--ledger", ledger, "--consumers", str(consumers), "--light", "--warm-up", warm)
        before = {who: bench.cpu_seconds(pid) for who, pid in pids.items()}
        result = bench.last_json(bench.run(command))
        used = sum(bench.cpu_seconds(pid) - before[who] for who, pid in pids.items())
        if proxy:
            reads = mount.status()["reads"]
            if reads["errors"]:
                print(f"note: {reads['errors']} reads failed and were repeated by the consumer")
        gb = (result["bytes"] + WARM_UP_MB * 1e6) / 1e9
        return {"MB/s": result["mb_per_s"], "first record ms": result["first_record_ms"], "longest gap ms": result["longest_gap_ms"],
                "CPU-s per GB, broker and daemon": used / gb}


def replay(args):
    binary = prepared(args)
    work = Path(args.dir)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    values = {}
    with bench.stopping(Gateway(work)) as gateway:
        filled(args, work / "native", binary, None, "cold", 6)
        filled(args, work / "mount", binary, gateway, "cold", 6)
        with bench.stopping(Proxy(binary.parent / "examples/store-proxy", gateway, 30, 90_000_000)) as proxy:
            for round_number in range(args.rounds):
                modes = [("native", None), ("mount", proxy)]
                for consumers in (1, 4):
                    for mode, through in modes if round_number % 2 == 0 else reversed(modes):
                        for name, value in replayed(args, work / mode, binary, through, consumers).items():
                            values.setdefault((consumers, name), {}).setdefault(mode, []).append(value)
                print(f"round {round_number + 1} of {args.rounds}", flush=True)
    print(f"\n{args.mb} MB in 6 partitions, segments of {args.segment_mb} MiB, store with 30 ms per request and 90 MB/s per connection")
    for (consumers, name), by in values.items():
        text = "; ".join(f"{mode} {statistics.median(v):.1f} ({' '.join(f'{x:.1f}' for x in v)})" for mode, v in by.items())
        print(f"  {consumers} consumer{'s' if consumers > 1 else ' '} {name:32} {text}")
    shutil.rmtree(work)


def paced(args, broker, directory, seconds):
    """Latencies of a producer at a pace and of a consumer behind it."""
    common = ["--bootstrap", broker.bootstrap]
    tail = subprocess.Popen(bench.java("Ledger", "tail", *common, "--topic", "hot", "--partitions", "4", "--seconds", str(seconds + 10)),
                            stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    tail.stdout.readline()
    rate = args.paced_mb_per_s * 1000
    made = bench.last_json(bench.run(bench.java(
        "Ledger", "produce", *common, "--topic", "hot", "--partitions", "4", "--records", str(rate * (seconds + 5)), "--unmeasured", str(rate * 5),
        "--rate", str(rate), "--size", "1000", "--acks", "all", "--light", "--ledger", directory / "hot.json")))
    seen = bench.last_json(tail.communicate()[0])
    return {"produce p50 ms": made["latency_p50_ms"], "produce p99 ms": made["latency_p99_ms"], "produce longest ms": made["latency_max_ms"],
            "tail p99 ms": seen["age_p99_ms"], "tail longest gap ms": seen["longest_gap_ms"]}


class Replays:
    """A consumer that reads the cold topic from the start, over and over."""

    def __init__(self, broker, directory):
        self.command = bench.java("Ledger", "consume", "--bootstrap", broker.bootstrap, "--ledger", directory / "ledger.json", "--light", "--patience-s", "200")
        self.process, self.rounds, self.stopped = None, 0, False
        import threading
        self.thread = threading.Thread(target=self.go_on)
        self.thread.start()

    def go_on(self):
        while not self.stopped:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)
            said = self.process.communicate()[0]
            if self.process.returncode and not self.stopped:
                print(f"a replay failed: {said[-300:]}")
            self.rounds += self.process.returncode == 0

    def stop(self):
        self.stopped = True
        if self.process:
            self.process.terminate()
        self.thread.join()


def isolation(args):
    binary = prepared(args)
    work = Path(args.dir)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    directory = work / "mount"
    values = {}
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(bench.stopping(Gateway(work)))
        filled(args, directory, binary, gateway, "cold", 20)
        proxy = stack.enter_context(bench.stopping(Proxy(binary.parent / "examples/store-proxy", gateway, 30, 90_000_000)))
        shutil.rmtree(directory / "data/cache", ignore_errors=True)
        # A small cache: each replay comes from the store.
        mount = stack.enter_context(bench.stopping(bench.Mount(binary, directory, "--hot-bytes", "1", "--cache-bytes", "128MiB", "--exclude", "hot", *args.mount_option, **s3(proxy.port))))
        broker = stack.enter_context(bench.stopping(bench.Broker(directory, directory / "logs", formatted=True)))
        bench.run(bench.java("Ledger", "topic", "--create", "--bootstrap", broker.bootstrap, "--topic", "hot", "--partitions", "4"))
        paced(args, broker, directory, 5)

        def note(state, figures):
            for name, value in figures.items():
                values.setdefault(name, {}).setdefault(state, []).append(value)

        for pair in range(args.pairs):
            for state in ["alone", "replay"] if pair % 2 == 0 else ["replay", "alone"]:
                with contextlib.ExitStack() as beside:
                    replays = beside.enter_context(bench.stopping(Replays(broker, directory))) if state == "replay" else None
                    before = proxy.stats()[1]
                    note(state, paced(args, broker, directory, args.seconds))
                    if replays:
                        print(f"pair {pair + 1}: {(proxy.stats()[1] - before) / 1e6:.0f} MB fetched beside the producer", flush=True)
        with bench.stopping(Replays(broker, directory)):
            proxy.set("hang", 1)
            note("store hangs", paced(args, broker, directory, 60))
            proxy.set("hang", 0)
        print(f"reads while the store hung: {json.dumps({k: v for k, v in mount.status()['reads'].items() if v})}")
        result = bench.last_json(bench.run(bench.java("Ledger", "consume", "--bootstrap", broker.bootstrap, "--ledger", directory / "ledger.json", "--light")))
        print(f"afterwards everything is there: {result['records']} records, {result['mb_per_s']:.0f} MB/s")
    print(f"\nproducer at {args.paced_mb_per_s} MB/s to 4 partitions; replay of {args.mb} MB in 20 others through the slow store")
    for name, by in values.items():
        base = by["alone"]
        text = "; ".join(f"{state} {statistics.median(v):.1f} ({' '.join(f'{x:.1f}' for x in v)})" for state, v in by.items())
        print(f"  {name:24} {text}; ratio with a replay {statistics.median(a / b for a, b in zip(by['replay'], base)):.2f}")
    shutil.rmtree(work)
