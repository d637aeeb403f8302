"""A job that knows nothing of Everlog: reads Kafka segments as plain files with Spark, in parallel, and sums what it finds.

usage: job.py DIRECTORY TOPIC
Prints one line of JSON: records, the sum of the CRC-32 of their values, segments, bytes, and what Hadoop's FileSystem lists.
"""

import json
import struct
import sys
import zlib

from pyspark.sql import SparkSession


def varint(data, at):
    """A zigzag varint and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def values(segment):
    """The values of all records of a file of uncompressed record batches of format 2."""
    at = 0
    while at < len(segment):
        length, _, magic, _, attributes = struct.unpack_from(">iibIh", segment, at + 8)
        if magic != 2 or attributes & 7:
            raise ValueError(f"batch at {at}: magic {magic}, attributes {attributes}")
        end = at + 12 + length
        if end > len(segment):
            raise ValueError(f"batch at {at} ends behind the file")
        count, position = struct.unpack_from(">i", segment, at + 57)[0], at + 61
        control = attributes & 0x20
        for _ in range(count):
            size, position = varint(segment, position)
            record_end = position + size
            position += 1
            for _ in range(2):
                _, position = varint(segment, position)
            key_length, position = varint(segment, position)
            position += max(key_length, 0)
            value_length, position = varint(segment, position)
            if not control:
                yield segment[position:position + value_length]
            position = record_end
        at = end


def digest(named):
    """(records, sum, bytes) of one segment."""
    records = total = 0
    for value in values(named[1]):
        records += 1
        total += zlib.crc32(value)
    return records, total, len(named[1])


def main():
    directory, topic = sys.argv[1:3]
    spark = SparkSession.builder.master("local[4]").appName("everlog-test").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    jvm = spark._jvm
    fs = jvm.org.apache.hadoop.fs.FileSystem.get(jvm.java.net.URI("file:///"), spark._jsc.hadoopConfiguration())
    listed = {}
    statuses = fs.listStatus(jvm.org.apache.hadoop.fs.Path(f"file://{directory}"))
    for status in statuses:
        name = status.getPath().getName()
        if name.startswith(f"{topic}-"):
            files = [f for f in fs.listStatus(status.getPath()) if f.getPath().getName().endswith(".log")]
            listed[name] = {f.getPath().getName(): f.getLen() for f in files}
    segments = spark.sparkContext.binaryFiles(f"file://{directory}/{topic}-*/*.log", minPartitions=8)
    found = segments.map(digest).collect()
    print(json.dumps({
        "records": sum(f[0] for f in found),
        "crc32_sum": sum(f[1] for f in found),
        "bytes": sum(f[2] for f in found),
        "segments": len(found),
        "listed": listed,
    }))
    spark.stop()


if __name__ == "__main__":
    main()
