"""What the parts of `scripts/bench` that need a slow store have in common."""

import subprocess

import __main__ as bench


def prepared(args):
    """The binary to measure, with the gateway and the proxy that stand for the store."""
    bench.run([bench.ROOT / "scripts/setup", "s3"])
    binary = bench.build(args)
    if not args.binary:
        subprocess.run(["cargo", "build", "--release", "-q", "--examples"], cwd=bench.ROOT, check=True)
    return binary
