"""Reads strace's output: one whole system call after the other, in the order in which they took effect.

Knows strace's notation and nothing of Kafka or of traces.
"""

import re
from typing import NamedTuple

LINE = re.compile(r"^(\d+)\s+(\d+\.\d+) (.*)$", re.S)
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.S)
CALL = re.compile(r"^(\w+)\((.*)\)\s+= (\S+)(?: ([A-Z][A-Z0-9]+) \(.*\))?", re.S)
UNFINISHED = " <unfinished ...>"


class Call(NamedTuple):
    """One system call. `args` are as strace prints them; `errno` is a name or None."""

    time: float
    name: str
    args: list
    result: int
    errno: str


def split_args(text):
    """Arguments at the top level. Strings are all hexadecimal escapes, so nothing in them needs care."""
    args, depth, start = [], 0, 0
    for at, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            args.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return args + [last] if last or args else []


def fields(name, text):
    """Arguments of a call. A long string is cut out first: going over it letter by letter takes too long."""
    if name in ("write", "pwrite64") and text.count('"') >= 2:
        first, rest = text.split('"', 1)
        data, rest = rest.rsplit('"', 1)
        return [first.rstrip(" ,"), '"' + data + '"'] + split_args(rest)[1:]
    return split_args(text)


def string(arg):
    """The bytes of a quoted argument. Anything that was cut short is an error."""
    if not (arg.startswith('"') and arg.endswith('"')):
        raise ValueError(f"not a whole string: {arg[:80]}")
    return bytes.fromhex(arg[1:-1].replace("\\x", ""))


def parse(time, text):
    found = CALL.match(text)
    if not found or found[3] == "?":
        return None
    return Call(time, found[1], fields(found[1], found[2]), int(found[3], 0), found[4])


def closing(time, text):
    """A descriptor is free from the call's begin on: another thread may have got it before the call ends."""
    return Call(time, "close", [text[len("close("):].rstrip(") ")], 0, None)


def calls(path):
    """All calls of a process whose `strace -f -ttt -xx -o path` is complete."""
    open_calls = {}
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = LINE.match(line.rstrip("\n"))
            if not found:
                continue
            thread, time, text = found[1], float(found[2]), found[3]
            resumed = RESUMED.match(text)
            if resumed:
                begun = open_calls.pop((thread, resumed[1]), None)
                if begun is None:
                    continue
                text = begun + resumed[2]
            elif text.endswith(UNFINISHED):
                begun = text[: -len(UNFINISHED)]
                if begun.startswith("close("):
                    yield closing(time, begun)
                else:
                    open_calls[(thread, begun.split("(", 1)[0])] = begun
                continue
            call = parse(time, text)
            if call:
                yield call
