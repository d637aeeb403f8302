"""What the broker goes through in each trace. Short: a trace's bytes are kept in the repository.

Pauses are for the broker's own clocks: checkpoints, retention and the cleaner come every second or half.
"""

import time

SMALL = ["internal.segment.bytes=131072"]
# More than a cold read fetches at first (256 KiB), so that a segment can be in the cache in part.
LARGE = ["internal.segment.bytes=400000"]


def create(r, topic, partitions, *config):
    words = [word for pair in config for word in ("--config", pair)]
    r.ledger("topic", "--create", "--topic", topic, "--partitions", partitions, *words)


def produce(r, topic, partitions, records, size=500, keys=0):
    args = ["--light", "--topic", topic, "--partitions", partitions, "--records", records, "--size", size, "--keys", keys]
    r.ledger("produce", "--ledger", r.work / f"{topic}.ledger", "--batch-size", 8192, *args)


def consume(r, topic, *flags):
    r.ledger("consume", "--light", "--ledger", r.work / f"{topic}.ledger", *flags)


def by_time(r, topic, milliseconds):
    """ListOffsets for a timestamp."""
    r.tool("org.apache.kafka.tools.GetOffsetShell", "--topic", topic, "--time", milliseconds, option="--bootstrap-server")


def roll_and_read(r):
    """Rolls, old fetches, ListOffsets by time, DeleteRecords, a clean stop and start in between."""
    r.start()
    create(r, "orders", 2, *LARGE)
    times = []
    for _ in range(4):
        times.append(int(time.time() * 1000))
        produce(r, "orders", 2, 600, 2000)
        time.sleep(2)
    consume(r, "orders")
    for milliseconds in times[1:3]:
        by_time(r, "orders", milliseconds)
    r.stop()
    r.start()
    consume(r, "orders")
    by_time(r, "orders", times[3])
    r.ledger("delete-records", "--topic", "orders", "--partition", 0, "--before", 500)
    produce(r, "orders", 2, 400)
    time.sleep(4)
    consume(r, "orders", "--allow-trimmed")
    r.stop()


def retention(r):
    """Retention by size and by time, a topic deleted and made again under its name."""
    r.start()
    create(r, "events", 2, *SMALL, "retention.bytes=400000", "file.delete.delay.ms=1500")
    create(r, "gone", 1, *SMALL, "file.delete.delay.ms=1500")
    for _ in range(4):
        produce(r, "events", 2, 900)
        produce(r, "gone", 1, 400)
        time.sleep(2)
    consume(r, "events", "--allow-trimmed")
    r.ledger("topic", "--alter", "--topic", "events", "--config", "retention.ms=1000")
    r.ledger("topic", "--delete", "--topic", "gone")
    time.sleep(4)
    (r.work / "gone.ledger").unlink()
    create(r, "gone", 1, *SMALL)
    produce(r, "gone", 1, 900)
    time.sleep(4)
    consume(r, "gone")
    r.stop()


def compaction(r):
    """A topic that is cold in part when it begins to be compacted; then again and again."""
    r.start()
    create(r, "table", 1, *SMALL, "min.cleanable.dirty.ratio=0.01")
    for _ in range(3):
        produce(r, "table", 1, 700, keys=90)
        time.sleep(2)
    consume(r, "table")
    time.sleep(2)
    r.ledger("topic", "--alter", "--topic", "table", "--config", "cleanup.policy=compact", "--config", "delete.retention.ms=500")
    time.sleep(4)
    produce(r, "table", 1, 500, keys=90)
    time.sleep(3)
    consume(r, "table", "--compacted")
    r.stop()
    r.start()
    produce(r, "table", 1, 500, keys=90)
    time.sleep(3)
    r.stop()


def transactions(r):
    """Committed and aborted transactions over several segments, read committed; a kill in an open one."""
    r.start()
    create(r, "money", 1, *SMALL)
    for round_ in range(3):
        r.tool("Transactions", "money", 12, round_)
        time.sleep(2)
    r.kill()
    r.start()
    r.tool("Transactions", "money", 12, 3)
    time.sleep(3)
    r.stop()


def crashes(r):
    """kill -9 and recovery; a torn tail; a lost recovery point, so that every segment is read again."""
    r.start()
    create(r, "lines", 2, *SMALL)
    for _ in range(3):
        produce(r, "lines", 2, 900)
        time.sleep(2)
    r.kill()
    r.start()
    produce(r, "lines", 2, 500)
    time.sleep(2)
    consume(r, "lines")
    r.kill()
    active = r.logs("lines-0")[-1]
    r.write(str(active.relative_to(r.root)), active.stat().st_size, active.read_bytes()[:100] or bytes(100))
    r.unlink("recovery-point-offset-checkpoint")
    r.start()
    consume(r, "lines")
    produce(r, "lines", 2, 300)
    time.sleep(3)
    r.stop()


def damage(r):
    """A flipped byte in an old segment, then one that lost its end, each with a lost recovery point: the broker cuts there and gives up all
    later segments."""
    r.start()
    create(r, "lines", 1, *SMALL)
    for _ in range(3):
        produce(r, "lines", 1, 700)
        time.sleep(3)
    r.kill()
    old = r.logs("lines-0")[5]
    at = old.stat().st_size // 2
    r.write(str(old.relative_to(r.root)), at, bytes([old.read_bytes()[at] ^ 1]))
    r.unlink("recovery-point-offset-checkpoint")
    r.start()
    time.sleep(3)
    (r.work / "lines.ledger").unlink()
    produce(r, "lines", 1, 900)
    time.sleep(4)
    r.kill()
    old = r.logs("lines-0")[2]
    r.cut(str(old.relative_to(r.root)), old.stat().st_size * 2 // 3)
    r.unlink("recovery-point-offset-checkpoint")
    r.start()
    time.sleep(3)
    (r.work / "lines.ledger").unlink()
    produce(r, "lines", 1, 700)
    time.sleep(4)
    r.stop()


def replica(r):
    """A leader whose follower was away; then that one leads, uncleanly, and goes on otherwise: the old leader cuts its log back and follows."""
    controller, other = r.peers
    controller.start()
    other.start()
    r.start()
    config = [word for pair in [*SMALL, "unclean.leader.election.enable=true"] for word in ("--config", pair)]
    placed = ["--create", "--topic", "shared", "--replica-assignment", "3:2", *config]
    r.tool("org.apache.kafka.tools.TopicCommand", *placed, option="--bootstrap-server")
    produce(r, "shared", 1, 700)
    time.sleep(3)
    other.stop()
    produce(r, "shared", 1, 700)
    time.sleep(4)
    r.stop()
    other.start()
    (r.work / "shared.ledger").unlink()
    produce(r, "shared", 1, 300)
    r.start()
    time.sleep(5)
    produce(r, "shared", 1, 400)
    time.sleep(4)
    r.stop()


ALL = {
    "roll-and-read": roll_and_read,
    "retention": retention,
    "compaction": compaction,
    "transactions": transactions,
    "crashes": crashes,
    "damage": damage,
    "replica": replica,
}
# A controller and another broker beside the one that is traced.
WITH_PEERS = {"replica"}
