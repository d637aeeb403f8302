"""`scripts/bench cold`: cold reads through Everlog and its peers, with the raw client and the local disk as limits.

A real S3 server behind tests/tools/store_proxy.rs, which makes it slow or not and counts requests and bytes.
Every mount begins with an empty cache unless a figure says otherwise; candidates alternate; medians and all values are printed.
"""

import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import threading
import time
from pathlib import Path

import __main__ as bench
from bench_shared import prepared

BUCKET = "logs"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "rig", "AWS_SECRET_ACCESS_KEY": "rigsecret", "AWS_REGION": "us-east-1"}
# Of this shell's settings for clouds, peers get none.
PEER_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
READ_BYTES = 1 << 20
RANDOM_READS = 200
RANDOM_BYTES = 64 << 10


class Gateway:
    """versitygw over a directory."""

    def __init__(self, work):
        self.port = bench.free_port()
        (work / "buckets" / BUCKET).mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [bench.RIG / "bin/versitygw", "--port", f"127.0.0.1:{self.port}", "--access", "rig", "--secret", "rigsecret",
             "--quiet", "posix", work / "buckets"],
            stdin=subprocess.DEVNULL, stdout=open(work / "versitygw.out", "wb"), stderr=subprocess.STDOUT)
        bench.wait_for("versitygw", self.listens, 30)

    def listens(self):
        import socket
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class Proxy:
    """The store as clients see it: its pace, and what they asked for."""

    def __init__(self, program, gateway, latency_ms, connection_bytes_per_second):
        self.process = subprocess.Popen(
            [program, "--upstream", f"127.0.0.1:{gateway.port}", "--latency-ms", str(latency_ms),
             "--connection-bytes-per-second", str(connection_bytes_per_second)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def environment(self):
        return os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint()}

    def stats(self):
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        stats = json.loads(self.process.stdout.readline())
        return stats["get"] + stats["put"] + stats["other"], stats["bytes_down"]

    def set(self, name, value):
        self.process.stdin.write(f"set {name} {value}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer.strip() != "ok":
            bench.die(f"store-proxy: {answer}")

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)


class Peer:
    """A mount of the bucket, by a command that serves in the foreground."""

    def __init__(self, work, name, command, environment, below):
        self.name, self.point = name, work / f"mount-{name}"
        self.point.mkdir(exist_ok=True)
        self.below = below
        self.log = open(work / f"{name}.out", "ab")
        self.process = subprocess.Popen([str(c).replace("@POINT@", str(self.point)) for c in command],
                                        env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        bench.wait_for(f"{name} to mount", self.serves, 60)

    def serves(self):
        if self.process.poll() is not None:
            bench.die(f"{self.name} ended: {open(self.log.name).read()[-2000:]}")
        return bench.mounted(self.point)

    def paths(self):
        return [self.point / path for path in self.below]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "-l", self.point])
            self.process.kill()
            self.process.wait()
        if bench.mounted(self.point):
            subprocess.run(["umount", "-l", self.point])


class World:
    """Objects, their local copies, and who can mount them."""

    def __init__(self, args, work, binary, gateway):
        self.args, self.work, self.binary = args, work, binary
        self.examples = binary.parent / "examples"
        self.local = sorted((work / "logs").glob("cold-*/00000000000000000000.log"))
        bucket = work / "buckets" / BUCKET
        self.objects = sorted(str(p.relative_to(bucket)) for p in bucket.glob("bench/topics/cold-*/*/00000000000000000000.*.log"))
        if len(self.objects) != 4 or len(self.local) != 4:
            bench.die(f"expected 4 objects, found {self.objects}")
        self.bytes = self.local[0].stat().st_size

    def cache(self, name, keep):
        cache = self.work / f"cache-{name}"
        if not keep:
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(exist_ok=True)
        return cache

    def everlog(self, proxy, keep=False):
        command = [self.binary, "mount", "@POINT@", "--foreground", "--store", f"s3://{BUCKET}/bench",
                   "--cache", self.cache("everlog", keep), *self.args.mount_option]
        below = [p.relative_to(self.work / "logs") for p in self.local]
        return Peer(self.work, "everlog", command, proxy.environment(), below)

    def rclone(self, proxy, keep=False):
        remote = (f":s3,provider=Other,access_key_id=rig,secret_access_key=rigsecret,endpoint='{proxy.endpoint()}',"
                  f"force_path_style=true:{BUCKET}")
        command = ["rclone", "mount", remote, "@POINT@", "--vfs-cache-mode", "full", "--cache-dir", self.cache("rclone", keep), "--read-only"]
        return Peer(self.work, "rclone", command, PEER_ENVIRONMENT, self.objects)

    def s3fs(self, proxy, keep=False):
        passwords = self.work / "s3fs.passwd"
        passwords.write_text("rig:rigsecret")
        passwords.chmod(0o600)
        command = ["s3fs", BUCKET, "@POINT@", "-f", "-o", f"url={proxy.endpoint()},use_path_request_style,passwd_file={passwords},"
                   f"use_cache={self.cache('s3fs', keep)},ro"]
        return Peer(self.work, "s3fs", command, PEER_ENVIRONMENT, self.objects)

    def candidates(self):
        found = [("Everlog", self.everlog)]
        if not self.args.no_peers:
            found += [(name, make) for name, make in [("rclone", self.rclone), ("s3fs", self.s3fs)] if shutil.which(name)]
        return found

    def raw(self, proxy, objects, ranges):
        keys = [o.removeprefix("bench/") for o in objects]
        command = [self.examples / "store-read", "--store", f"s3://{BUCKET}/bench", "--ranges", str(ranges), *keys]
        done = subprocess.run(command, env=proxy.environment(), capture_output=True, text=True)
        if done.returncode:
            bench.die(f"store-read: {done.stderr}")
        return json.loads(done.stdout)["mb_per_s"]

    def raw_first_byte(self, proxy, at):
        command = [self.examples / "store-read", "--store", f"s3://{BUCKET}/bench", "--first-byte-at", str(at), self.objects[0].removeprefix("bench/")]
        done = subprocess.run(command, env=proxy.environment(), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)["first_byte_ms"]


def read_whole(path):
    buffer = memoryview(bytearray(READ_BYTES))
    total = 0
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total += n
    return total


def timed_read(paths):
    """MB/s of reading all of them, one thread each; a short read ends the bench."""
    totals = []
    threads = [threading.Thread(target=lambda p=p: totals.append((p, read_whole(p)))) for p in paths]
    began = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    took = time.monotonic() - began
    wanted = sum(os.stat(p).st_size for p in paths)
    if sum(n for _, n in totals) != wanted:
        bench.die(f"read {totals} of {wanted} bytes")
    return wanted / 1e6 / took


def timed_pread(path, at, length):
    fd = os.open(path, os.O_RDONLY)
    try:
        began = time.monotonic()
        got = os.pread(fd, length, at)
        took = (time.monotonic() - began) * 1e3
    finally:
        os.close(fd)
    if len(got) != length:
        bench.die(f"{path}: {len(got)} of {length} bytes")
    return took


class Table:
    """Values by figure and candidate, printed as medians with all values."""

    def __init__(self):
        self.rows = {}

    def add(self, figure, who, value):
        self.rows.setdefault(figure, {}).setdefault(who, []).append(value)

    def print(self, title):
        print(f"\n{title}")
        for figure, by in self.rows.items():
            print(f"  {figure}")
            for who, values in by.items():
                all_values = " ".join(f"{v:.4g}" for v in values)
                print(f"    {who:22} {statistics.median(values):10.4g}   ({all_values})")


def one_round(world, proxy, table, slow):
    local, size = world.local, world.bytes
    bench.drop_page_cache_only(world.work)
    table.add("cold sequential, MB/s", "raw, 1 range", world.raw(proxy, world.objects[:1], 1))
    bench.drop_page_cache_only(world.work)
    table.add("cold sequential, MB/s", "raw, 8 ranges", world.raw(proxy, world.objects[:1], 8))
    bench.drop_page_cache_only(world.work)
    table.add("four segments at once, MB/s", "raw, 4 x 4 ranges", world.raw(proxy, world.objects, 4))
    table.add("first byte at 0, ms", "raw", world.raw_first_byte(proxy, 0))
    table.add("first byte in the middle, ms", "raw", world.raw_first_byte(proxy, size // 2))
    for name, make in world.candidates():
        sequential(world, proxy, table, (name, make))
        bench.drop_page_cache_only(world.work)
        with bench.stopping(make(proxy)) as mount:
            table.add("four segments at once, MB/s", name, timed_read(mount.paths()))
            table.add("peak memory with four, MiB", name, bench.peak_mib(mount.process.pid))
            table.add("CPU-s per GB with four", name, bench.cpu_seconds(mount.process.pid) / (4 * size / 1e9))
        if slow:
            small_reads(world, proxy, table, (name, make))
    bench.drop_page_cache_only(world.work)
    table.add("after remount, from the disk cache, MB/s", "local disk", timed_read(local[:1]))
    table.add("again from memory, MB/s", "local disk", timed_read(local[:1]))


def sequential(world, proxy, table, candidate):
    name, make = candidate
    bench.drop_page_cache_only(world.work)
    with bench.stopping(make(proxy)) as mount:
        table.add("cold sequential, MB/s", name, timed_read(mount.paths()[:1]))
        table.add("CPU-s per GB, sequential", name, bench.cpu_seconds(mount.process.pid) / (world.bytes / 1e9))
    bench.drop_page_cache_only(world.work)
    before = proxy.stats()[1]
    with bench.stopping(make(proxy, keep=True)) as mount:
        table.add("after remount, from the disk cache, MB/s", name, timed_read(mount.paths()[:1]))
        table.add("again from memory, MB/s", name, timed_read(mount.paths()[:1]))
    table.add("fetched again after remount, MiB", name, (proxy.stats()[1] - before) / 2**20)


def small_reads(world, proxy, table, candidate):
    name, make = candidate
    with bench.stopping(make(proxy)) as mount:
        first, second = mount.paths()[:2]
        os.stat(first), os.stat(second)
        table.add("first byte at 0, ms", name, timed_pread(first, 0, 4096))
        table.add("first byte in the middle, ms", name, timed_pread(second, world.bytes // 2, 4096))
    with bench.stopping(make(proxy)) as mount:
        path = mount.paths()[0]
        os.stat(path)
        chance = random.Random(7)
        before = proxy.stats()[1]
        took = [timed_pread(path, chance.randrange(world.bytes // RANDOM_BYTES) * RANDOM_BYTES, RANDOM_BYTES) for _ in range(RANDOM_READS)]
        table.add("random 64 KiB, ms per read", name, statistics.mean(took))
        table.add(f"fetched for {RANDOM_READS * RANDOM_BYTES / 2**20:.1f} MiB at random, MiB", name, (proxy.stats()[1] - before) / 2**20)


def make_logs(root, segment_bytes):
    """Four partitions with one closed segment each, of batches with one big record."""
    root.mkdir(parents=True)
    (root / "meta.properties").write_text(f"node.id=1\nversion=1\ncluster.id={bench.CLUSTER}\n")
    (root / ".kafka_cleanshutdown").write_text('{"version":0,"brokerEpoch":-1}')
    batches, bodies = segment_bytes // (1 << 20), [bench.big_batch(seed, 1 << 20) for seed in range(2)]
    for p in range(4):
        directory = root / f"cold-{p}"
        directory.mkdir()
        (directory / "partition.metadata").write_text("version: 0\ntopic_id: BenchTopicIdAAAAAAAAAA")
        (directory / "leader-epoch-checkpoint").write_text("0\n1\n0 0\n")
        for base, count in [(0, batches), (batches, 1)]:
            with open(directory / f"{base:020}.log", "wb") as log:
                for offset in range(base, base + count):
                    log.write(struct.pack(">q", offset) + bodies[(offset + p) % 2])
            (directory / f"{base:020}.index").write_bytes(b"")
            (directory / f"{base:020}.timeindex").write_bytes(b"")
    for name in ["recovery-point-offset-checkpoint", "replication-offset-checkpoint", "log-start-offset-checkpoint"]:
        ends = "".join(f"cold {p} {batches + 1 if 'start' not in name else 0}\n" for p in range(4))
        (root / name).write_text(f"0\n4\n{ends}")


def cold(args):
    binary = prepared(args)
    work = Path(args.dir)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make_logs(work / "logs", args.segment_mb << 20)
    with bench.stopping(Gateway(work)) as gateway:
        environment = os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{gateway.port}"}
        done = subprocess.run([binary, "archive", work / "logs", "--store", f"s3://{BUCKET}/bench", "--once"], env=environment, capture_output=True, text=True)
        if done.returncode:
            bench.die(f"everlog archive: {done.stdout}{done.stderr}")
        world = World(args, work, binary, gateway)
        missing = [n for n in ["rclone", "s3fs"] if not shutil.which(n)]
        if missing and not args.no_peers:
            print(f"without {' and '.join(missing)}: not installed (Debian packages rclone, s3fs)")
        for store, pace in [("slow", (30, 90_000_000)), ("loopback", (0, 0))]:
            if args.store not in (store, "both"):
                continue
            table = Table()
            with bench.stopping(Proxy(world.examples / "store-proxy", gateway, *pace)) as proxy:
                for round_number in range(args.rounds):
                    one_round(world, proxy, table, store == "slow")
                    print(f"{store}: round {round_number + 1} of {args.rounds}", flush=True)
            table.print(f"store: {store} (30 ms per request, 90 MB/s per connection)" if store == "slow" else "store: on loopback")
    shutil.rmtree(work)
