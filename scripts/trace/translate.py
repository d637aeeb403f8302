"""Turns a broker's system calls into the steps of a trace.

Two passes over each run of the broker. The first follows descriptors, names and mappings and keeps what happens below the log dir. The
second puts in what strace cannot see: the index entries that Kafka writes through mappings. Their bytes are known from the index files
themselves (read when the broker is gone); each is put where Kafka writes it, right after the append that it points to.
"""

import errno
import re
import struct
import zlib
from pathlib import Path

from strace_log import string

ENTRY = {".index": 8, ".timeindex": 12}
SEGMENT = re.compile(r"/(\d{20})(\.index|\.timeindex|\.log)(.*)$")


class File:
    """A file that has or had a name in the log dir."""

    def __init__(self, path):
        self.path = path
        self.inode = None
        self.size = 0
        self.model = bytearray()  # of an index: what the trace's replay has in it by now
        self.last_offset = -1  # of a log: that was written
        found = SEGMENT.search(path)
        self.base = int(found[1]) if found else None
        self.kind = found[2] if found else None

    def sibling(self, kind):
        found = SEGMENT.search(self.path or "")
        return found and self.path[: found.start()] + f"/{found[1]}{kind}{found[3]}"


class Step:
    """One line of the trace, and whom it is about."""

    def __init__(self, line, file=None, near=()):
        self.line, self.file, self.near = line, file, near


def last_offset(data):
    """Of the record batches in `data`."""
    at, last = 0, -1
    while at + 61 <= len(data):
        base, length = struct.unpack_from(">qi", data, at)
        last = base + struct.unpack_from(">i", data, at + 23)[0]
        at += 12 + length
    return last


class Translator:
    """State that outlives a run of the broker: the names, and how far each file is known."""

    def __init__(self, root):
        self.root = str(root)
        self.names = {}
        self.next_id = 0
        self.begin()

    def begin(self):
        self.handles = {}  # descriptor -> (id, file)
        self.maps = {}  # address -> (length, id, file)
        self.listed = set()
        self.steps = []

    def new_id(self):
        self.next_id += 1
        return self.next_id

    # --- the first pass ------------------------------------------------------------------------------------------------------------

    def below(self, arg):
        """A path argument, relative to the log dir; None when it lies elsewhere."""
        if not arg.startswith('"'):
            return None
        path = string(arg).decode()
        if path == self.root:
            return ""
        return path[len(self.root) + 1:] if path.startswith(self.root + "/") else None

    def run(self, calls, samples, contents):
        """The steps of one run. `samples` are (time, name, inode) of index files, `contents` their bytes at the end."""
        self.begin()
        samples = sorted(samples)
        for call in calls:
            while samples and samples[0][0] <= call.time:
                self.bind(*samples.pop(0)[1:])
            take = getattr(self, "on_" + call.name, None)
            if take:
                take(call)
        for sample in samples:
            self.bind(*sample[1:])
        self.steps.append(Step(["end", 0]))
        return list(Entries(self, contents).woven())

    def bind(self, name, inode):
        file = self.names.get(name)
        if file and file.inode is None:
            file.inode = inode

    def emit(self, call, name, *args, file=None, near=(), result=None):
        recorded = -getattr(errno, call.errno) if call.errno else call.result if result is None else result
        self.steps.append(Step([name, recorded, *args], file, near))

    def opened(self, call, arg, flags, mode):
        path = self.below(arg)
        if path is None:
            return
        words = "|".join(w[2:] for w in flags.split("|") if w not in ("O_CLOEXEC", "O_LARGEFILE"))
        number = self.new_id()
        self.emit(call, "open", number, path, words, int(mode or "0", 8), result=0)
        if call.errno:
            return
        file = self.names.setdefault(path, File(path))
        if "TRUNC" in words:
            file.size, file.model = 0, bytearray()
        self.handles[call.result] = (number, file)

    def on_openat(self, call):
        self.opened(call, call.args[1], call.args[2], call.args[3] if len(call.args) > 3 else None)

    def on_open(self, call):
        self.opened(call, call.args[0], call.args[1], call.args[2] if len(call.args) > 2 else None)

    def handle(self, call):
        return self.handles.get(int(call.args[0], 0), (None, None)) if call.args[0][:1].isdigit() else (None, None)

    def on_close(self, call):
        number, _ = self.handles.pop(int(call.args[0], 0), (None, None))
        if number:
            self.emit(call, "close", number)

    def near(self, file):
        names = [file.sibling(kind) for kind in ENTRY] if file.kind == ".log" else [file.sibling(".log")]
        return tuple(self.names[n] for n in names if n in self.names)

    def on_write(self, call):
        number, file = self.handle(call)
        if number and call.result >= 0:
            data = string(call.args[1])[: call.result]
            near = self.near(file) if file.kind == ".log" else ()
            self.emit(call, "write", number, data.hex(), file=file, near=near)

    def on_pwrite64(self, call):
        number, file = self.handle(call)
        if number and call.result >= 0:
            data = string(call.args[1])[: call.result]
            self.emit(call, "pwrite", number, int(call.args[3]), data.hex(), file=file)

    def on_writev(self, call):
        if self.handle(call)[0]:
            raise ValueError("writev to a file of the log dir: teach the recorder")

    def on_read(self, call):
        number, _ = self.handle(call)
        if number:
            self.emit(call, "read", number, int(call.args[2], 0))

    def on_pread64(self, call):
        number, _ = self.handle(call)
        if number:
            self.emit(call, "pread", number, int(call.args[3], 0), int(call.args[2], 0))

    def on_sendfile(self, call):
        number, _ = self.handles.get(int(call.args[1], 0), (None, None))
        # A full socket or one that is gone says nothing about the file.
        if number and call.result > 0:
            self.emit(call, "sendfile", number, int(re.match(r"\[(\d+)\]", call.args[2])[1]), call.result)

    def on_lseek(self, call):
        number, _ = self.handle(call)
        if number and call.args[2] in ("SEEK_SET", "SEEK_END"):
            self.emit(call, "seek", number, int(call.args[1]), call.args[2])

    def on_ftruncate(self, call):
        number, file = self.handle(call)
        if number:
            self.emit(call, "truncate", number, int(call.args[1], 0), file=file)

    def on_fallocate(self, call):
        if self.handle(call)[0]:
            raise ValueError("fallocate in the log dir: teach the recorder")

    def on_fsync(self, call):
        number, _ = self.handle(call)
        if number:
            self.emit(call, "sync", number)

    on_fdatasync = on_fsync

    def on_fcntl(self, call):
        number, _ = self.handle(call)
        if number and call.args[1] in ("F_SETLK", "F_SETLK64"):
            self.emit(call, "lock", number, re.search(r"l_type=(\w+)", call.args[2])[1])

    def on_rename(self, call):
        self.renamed(call, call.args[0], call.args[1])

    def on_renameat(self, call):
        self.renamed(call, call.args[1], call.args[3])

    on_renameat2 = on_renameat

    def renamed(self, call, a, b):
        a, b = self.below(a), self.below(b)
        if a is None or b is None:
            return
        self.emit(call, "rename", a, b)
        if call.errno:
            return
        for name in [n for n in self.names if n == b or n.startswith(b + "/")]:
            self.names.pop(name).path = None
        for name in [n for n in self.names if n == a or n.startswith(a + "/")]:
            file = self.names.pop(name)
            file.path = b + name[len(a):]
            self.names[file.path] = file

    def removed(self, call, op, arg):
        path = self.below(arg)
        if path is None:
            return
        self.emit(call, op, path)
        if not call.errno and path in self.names:
            self.names.pop(path).path = None

    def on_unlink(self, call):
        self.removed(call, "unlink", call.args[0])

    def on_unlinkat(self, call):
        self.removed(call, "rmdir" if "REMOVEDIR" in call.args[2] else "unlink", call.args[1])

    def on_rmdir(self, call):
        self.removed(call, "rmdir", call.args[0])

    def on_mkdir(self, call):
        path = self.below(call.args[0])
        if path is not None:
            self.emit(call, "mkdir", path, int(call.args[1], 8))

    def on_newfstatat(self, call):
        if call.args[0] == "AT_FDCWD":
            self.asked(call, call.args[1], call.args[2])
        elif call.args[1] == '""':
            self.on_fstat(call)

    def on_stat(self, call):
        self.asked(call, call.args[0], call.args[1])

    on_lstat = on_stat

    def on_statx(self, call):
        if call.args[0] == "AT_FDCWD":
            self.asked(call, call.args[1], call.args[4])

    def asked(self, call, path, shown):
        path = self.below(path)
        if path is not None:
            self.emit(call, "stat", path, result=shown_size(shown))

    def on_fstat(self, call):
        number, _ = self.handle(call)
        if number:
            self.emit(call, "fstat", number, result=shown_size(call.args[-1] if call.name == "fstat" else call.args[2]))

    def on_access(self, call):
        path = self.below(call.args[0])
        if path is not None:
            self.emit(call, "access", path, call.args[1])

    def on_faccessat(self, call):
        call.args.pop(0)
        self.on_access(call)

    on_faccessat2 = on_faccessat

    def on_getdents64(self, call):
        number, _ = self.handle(call)
        if number and number not in self.listed:
            self.listed.add(number)
            self.emit(call, "list", number, result=0)

    def on_utimensat(self, call):
        time = re.findall(r"tv_sec=(\d+), tv_nsec=(\d+)", call.args[2])
        number, _ = self.handle(call)
        path = self.below(call.args[1])
        if time and (number or path is not None):
            seconds, nanos = map(int, time[-1])
            self.emit(call, "utimes", path if number is None else self.handle(call)[1].path, seconds, nanos)

    def on_mmap(self, call):
        if call.args[4].isdigit() and "MAP_SHARED" in call.args[3] and not call.errno:
            number, file = self.handles.get(int(call.args[4]), (None, None))
            if number:
                mapping = self.new_id()
                self.maps[call.result] = (int(call.args[1]), mapping, file)
                self.emit(call, "map", mapping, number, int(call.args[1]), file=file, near=self.near(file), result=0)

    def on_munmap(self, call):
        _, mapping, file = self.maps.pop(int(call.args[0], 0), (None, None, None))
        if mapping:
            self.emit(call, "unmap", mapping, file=file)

    def on_msync(self, call):
        at = int(call.args[0], 0)
        for start, (length, mapping, file) in self.maps.items():
            if start <= at < start + length:
                self.emit(call, "msync", mapping, file=file)

    # --- steps that no broker took: formatting the directory, damage --------------------------------------------------------------

    def outside(self, path, at, data):
        """Somebody else writes `data` into a file at `at`."""
        number = self.new_id()
        file = self.names.setdefault(path, File(path))
        file.size = max(file.size, at + len(data))
        opened = Step(["open", 0, number, path, "RDWR|CREAT", 0o644])
        return [opened, Step(["pwrite", len(data), number, at, data.hex()]), Step(["close", 0, number])]

    def outside_cut(self, path, size):
        """Somebody else shortens a file."""
        number = self.new_id()
        opened = Step(["open", 0, number, path, "RDWR", 0])
        return [opened, Step(["truncate", 0, number, size]), Step(["close", 0, number])]

    def outside_unlink(self, path):
        self.names.pop(path).path = None
        return [Step(["unlink", 0, path])]


def shown_size(shown):
    """Of a regular file; a directory's size is its filesystem's own business."""
    size = re.search(r"stx?_size=(\d+)", shown)
    return int(size[1]) if size and "S_IFREG" in shown else 0


class Entries:
    """The second pass."""

    def __init__(self, translator, contents):
        self.names, self.new_id, self.contents = translator.names, translator.new_id, contents
        self.steps = translator.steps
        self.mapping = {}  # file -> id
        self.touched = []

    def woven(self):
        for step in self.steps:
            op, file = step.line[0], step.file
            if op == "end":
                for index in self.touched:
                    yield from self.bring(index, index.size)
            if op == "truncate" and file.kind in ENTRY and step.line[3] < file.size:
                yield from self.bring(file, step.line[3])
            yield step
            if op == "map" and file.kind in ENTRY:
                self.mapping[file] = step.line[2]
                self.touched.append(file)
                log = step.near[0] if step.near else None
                yield from self.bring(file, file.size, log.last_offset if log else -1)
            elif op == "unmap" and self.mapping.get(file) == step.line[2]:
                del self.mapping[file]
            elif op == "truncate":
                resize(file, step.line[3])
            elif op == "write" and file.kind == ".log":
                file.last_offset = max(file.last_offset, last_offset(bytes.fromhex(step.line[3])))
                for index in step.near:
                    if index in self.mapping:
                        yield from self.bring(index, index.size, file.last_offset)

    def bring(self, index, size, upto=None):
        """Writes the entries below `size` that the replay has not got yet; with `upto` only those of offsets that are there."""
        content = self.contents.get(index.inode)
        width = ENTRY[index.kind]
        if content is None or (index.path is None and index not in self.mapping):
            return
        at, run = 0, None
        size = min(size, len(content), len(index.model)) // width * width
        while at < size:
            entry = content[at:at + width]
            offset = struct.unpack_from(">i", entry, 0 if width == 8 else 8)[0] + index.base
            if entry != index.model[at:at + width] and (upto is None or offset <= upto):
                run = run if run is not None else at
            elif run is not None:
                yield from self.put(index, run, content[run:at])
                run = None
            at += width
        if run is not None:
            yield from self.put(index, run, content[run:at])

    def put(self, index, at, data):
        index.model[at:at + len(data)] = data
        mapping = self.mapping.get(index)
        if mapping:
            yield Step(["put", 0, mapping, at, data.hex()])
            return
        number, mapping = self.new_id(), self.new_id()
        yield Step(["open", 0, number, index.path, "RDWR", 0])
        yield Step(["map", 0, mapping, number, index.size])
        yield Step(["put", 0, mapping, at, data.hex()])
        yield Step(["unmap", 0, mapping])
        yield Step(["close", 0, number])


def resize(file, size):
    file.size = size
    if file.kind in ENTRY:
        del file.model[size:]
        file.model.extend(bytes(size - len(file.model)))


def tree(root):
    """What is below a directory: names with size and CRC-32 of files, null for directories."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        name = str(path.relative_to(root))
        found[name] = None if path.is_dir() else [path.stat().st_size, zlib.crc32(path.read_bytes())]
    return found
