#!/usr/bin/python3
"""A filesystem in memory as a plug-in, from docs/syslink.md and docs/vfs.md alone: the standard library, nothing else."""
import errno, mmap, os, random, socket, stat, struct, time

GROUP, UINT, INT, BYTES, TEXT = 0, 1, 2, 3, 4
HELLO, COMMAND, REPLY, CANCEL, BYE, PING, PONG = range(1, 8)
HEADER = struct.Struct("<2sBBIQQIHHQ")
NODE, NAME, OFFSET, LEN, PLACE, COOKIE, NEW_DIR, NEW_NAME, KEEP, TARGET, ENTRY, TITLE, WRITABLE, VALID = range(1, 15)
NUMBER, MODE, SIZE, NLINK, UID, GID, RDEV, ATIME, MTIME, CTIME = range(20, 30)
BLOCK, BLOCKS, FREE, FILES, FILES_FREE, NAME_MAX = range(30, 36)


def element(tag, kind, value):
    return struct.pack("<HBBI", tag, kind, 0, len(value)) + value


def uint(tag, n):
    return element(tag, UINT, struct.pack("<Q", n))


def signed(tag, n):
    return element(tag, INT, struct.pack("<q", n))


def group(tag, *parts):
    return element(tag, GROUP, b"".join(parts))


def parse(value):
    """What is in a group: the first value of each tag."""
    found, at = {}, 0
    while at < len(value):
        tag, kind, _, length = struct.unpack_from("<HBBI", value, at)
        raw = value[at + 8 : at + 8 + length]
        if kind in (UINT, INT):
            raw = struct.unpack("<Q" if kind == UINT else "<q", raw)[0]
        found.setdefault(tag, parse(raw) if kind == GROUP else raw)
        at += 8 + length
    return found


class Link:
    """One packet a message; the host commands, we reply."""

    def __init__(self, fd):
        self.socket = socket.socket(fileno=fd)
        self.sent = self.seen = 0

    def send(self, kind, call=0, argument=0, body=b""):
        self.sent += 1
        head = HEADER.pack(b"SL", 1, kind, HEADER.size + len(body), self.sent, call, argument, 0, 0, self.seen)
        self.socket.send(head + body)

    def messages(self):
        while packet := self.socket.recv(1 << 17):
            _, _, kind, _, number, _, _, _, _, _ = HEADER.unpack_from(packet)
            self.seen = number
            yield kind, number, packet[HEADER.size :]


class Node:
    def __init__(self, number, mode, uid=0, gid=0, target=b""):
        self.number, self.mode, self.uid, self.gid, self.target = number, mode, uid, gid, target
        self.data, self.children, self.rdev = bytearray(), {}, 0
        self.atime = self.mtime = self.ctime = time.time_ns()

    def attributes(self):
        directory = stat.S_ISDIR(self.mode)
        size = len(self.target) or len(self.data)
        links = 2 + sum(stat.S_ISDIR(c.mode) for c, _ in self.children.values()) if directory else 1
        numbers = [(NUMBER, self.number), (MODE, self.mode), (SIZE, size), (NLINK, links)]
        numbers += [(UID, self.uid), (GID, self.gid), (RDEV, self.rdev)]
        times = [(ATIME, self.atime), (MTIME, self.mtime), (CTIME, self.ctime)]
        return b"".join([uint(t, n) for t, n in numbers] + [signed(t, n) for t, n in times])


class Refused(Exception):
    pass


class Memory:
    """The filesystem. Numbers begin at random: those of an earlier process mean nothing here."""

    def __init__(self, arena):
        self.arena = arena
        self.next = random.getrandbits(40) << 20
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}
        self.cookie = 0
        hello = self.make(self.nodes[1], b"hello.txt", stat.S_IFREG | 0o644)
        hello.data += b"Hello from Python.\n"

    def node(self, number):
        if number not in self.nodes:
            raise Refused(errno.ESTALE)
        return self.nodes[number]

    def child(self, c):
        directory = self.node(c[NODE])
        if not stat.S_ISDIR(directory.mode):
            raise Refused(errno.ENOTDIR)
        if c[NAME] not in directory.children:
            raise Refused(errno.ENOENT)
        return directory, directory.children[c[NAME]][0]

    def make(self, directory, name, mode, **rest):
        if name in directory.children:
            raise Refused(errno.EEXIST)
        self.next += 1
        node = self.nodes[self.next] = Node(self.next, mode, **rest)
        self.put(directory, name, node)
        return node

    def put(self, directory, name, node):
        self.cookie += 1
        directory.children[name] = (node, self.cookie)
        directory.mtime = directory.ctime = node.ctime = time.time_ns()

    def start(self, c):
        return element(TITLE, TEXT, b"python") + uint(WRITABLE, 1) + uint(VALID, 60_000)

    def lookup(self, c):
        return self.child(c)[1].attributes()

    def getattr(self, c):
        return self.node(c[NODE]).attributes()

    def readdir(self, c):
        entries = sorted((cookie, name, node) for name, (node, cookie) in self.node(c[NODE]).children.items())
        page = [e for e in entries if e[0] > c.get(COOKIE, 0)][: min(c[LEN], 150)]
        return b"".join(
            group(ENTRY, element(NAME, BYTES, name), uint(COOKIE, cookie), node.attributes()) for cookie, name, node in page
        )

    def read(self, c):
        data = self.node(c[NODE]).data[c.get(OFFSET, 0) :][: c[LEN]]
        self.arena[c[PLACE] : c[PLACE] + len(data)] = bytes(data)
        return uint(LEN, len(data))

    def readlink(self, c):
        return element(TARGET, BYTES, self.node(c[NODE]).target)

    def statfs(self, c):
        return uint(BLOCK, 4096) + uint(BLOCKS, 1000) + uint(FREE, 500) + uint(NAME_MAX, 255)

    def create(self, c):
        e = c[ENTRY]
        target, uid, gid = c.get(TARGET, b""), e.get(UID, 0), e.get(GID, 0)
        return self.make(self.node(c[NODE]), c[NAME], e[MODE], uid=uid, gid=gid, target=target).attributes()

    def write(self, c):
        node, at, end = self.node(c[NODE]), c.get(OFFSET, 0), c.get(OFFSET, 0) + c[LEN]
        node.data.extend(bytes(max(0, end - len(node.data))))
        node.data[at:end] = self.arena[c[PLACE] : c[PLACE] + c[LEN]]
        node.mtime = node.ctime = time.time_ns()
        return b""

    def setattr(self, c):
        node, e = self.node(c[NODE]), c[ENTRY]
        if SIZE in e:
            del node.data[e[SIZE] :]
            node.data.extend(bytes(e[SIZE] - len(node.data)))
        if MODE in e:
            node.mode = stat.S_IFMT(node.mode) | e[MODE] & 0o7777
        node.uid, node.gid = e.get(UID, node.uid), e.get(GID, node.gid)
        node.atime, node.mtime, node.ctime = e.get(ATIME, node.atime), e.get(MTIME, node.mtime), time.time_ns()
        return node.attributes()

    def unlink(self, c):
        directory, node = self.child(c)
        if node.children:
            raise Refused(errno.ENOTEMPTY)
        del directory.children[c[NAME]], self.nodes[node.number]
        directory.mtime = directory.ctime = time.time_ns()
        return b""

    def rename(self, c):
        directory, node = self.child(c)
        to = self.node(c[NEW_DIR])
        if c[NEW_NAME] in to.children:
            if c.get(KEEP):
                raise Refused(errno.EEXIST)
            self.unlink({NODE: to.number, NAME: c[NEW_NAME]})
        del directory.children[c[NAME]]
        self.put(to, c[NEW_NAME], node)
        return b""

    def sync(self, c):
        return b""


def main():
    link = Link(int(os.environ["DARNER_LINK_FD"]))
    fs = Memory(mmap.mmap(int(os.environ["DARNER_ARENA_FD"]), 0))
    commands = [None, fs.start, fs.lookup, fs.getattr, fs.readdir, fs.read, fs.readlink, fs.statfs, fs.create]
    commands += [fs.write, fs.setattr, fs.unlink, fs.unlink, fs.rename, fs.sync]
    for kind, number, body in link.messages():
        if kind == HELLO:
            limits = group(4, *(uint(n + 1, v) for n, v in enumerate([1 << 16, 16, 4096, 0, 0, 64, 1 << 24])))
            link.send(HELLO, body=group(1, uint(1, 1), uint(2, 1), element(3, TEXT, b""), limits))
        elif kind == PING:
            link.send(PONG)
        elif kind == COMMAND:
            tag = struct.unpack_from("<H", body)[0]
            try:
                if tag >= len(commands):
                    raise Refused(errno.ENOSYS)
                link.send(REPLY, number, 0, group(tag, commands[tag](parse(body[8:]))))
            except Refused as no:
                link.send(REPLY, number, 256 + no.args[0], group(0, element(1, TEXT, b"")))


if __name__ == "__main__":
    main()
