"""A small engine in Python, so that the client can be tested alone, and against one that lies.

It serves what one host needs of ABI 1 in the plainest way: a turn takes every SQE it can, runs
them by class, and publishes. `FakeRing` is the engine's end of one ring; a test may step it by hand
or let `FakeEngine` run it. It is no model of the real engine's scheduling.

    fake.py SOCKET [LIE]        serves until it is killed; prints `listening`
"""

import array
import fcntl
import mmap
import os
import pathlib
import select
import socket
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))

import verbring_abi as abi  # noqa: E402

LOW32 = 0xFFFF_FFFF
F_ADD_SEALS, SHRINK_AND_GROW = 1033, 2 | 4
BOOT_ID = (0x1234, 0x5678)
# Places of two of the counters in the header page.
BELLS_RUNG, SLEEPS = abi.AT_COUNTERS // 8 + 4, abi.AT_COUNTERS // 8 + 5
# What `lie` may be: each is told in one place of the ring or of a copy.
LIES = ("res", "detail", "flags", "record", "data", "immediate", "old")


def memory(name, size_bytes, seals=SHRINK_AND_GROW):
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd, mmap.mmap(fd, size_bytes)


def lay_out(sq_entries, cq_entries, first_index, strides):
    """Returns the header's fields for packed tables, each from a page boundary."""
    def pages(size_bytes):
        return -(-size_bytes // 4096) * 4096

    sqe_stride, cqe_stride, fate_stride = strides
    cq_offset = 4096 + pages(sq_entries * sqe_stride)
    fate_offset = cq_offset + pages(cq_entries * cqe_stride)
    return dict(
        magic=abi.MAGIC, abi_version=abi.ABI_VERSION, header_bytes=4096, sq_entries=sq_entries,
        cq_entries=cq_entries, sq_offset=4096, cq_offset=cq_offset, fate_offset=fate_offset,
        sqe_stride=sqe_stride, cqe_stride=cqe_stride, fate_stride=fate_stride,
        first_index=first_index, segment_bytes=fate_offset + pages(cq_entries * fate_stride),
        boot_id=BOOT_ID)


class FakeRing:
    """The engine's end of a ring in a memfd of its own."""

    def __init__(self, number=0, sq_entries=4, cq_entries=8, first_index=0xFFFF_FFFD,
                 strides=(64, 32, 16), **header):
        self.header = dict(lay_out(sq_entries, cq_entries, first_index, strides), ring=number)
        self.segment_bytes = self.header["segment_bytes"]
        self.fd, self.map = memory("fake-ring", self.segment_bytes)
        self.map[:abi.SEGMENT.size] = abi.SEGMENT.pack(**{**self.header, **header})
        self.words, self.words64 = memoryview(self.map).cast("I"), memoryview(self.map).cast("Q")
        for at in (abi.AT_SQ_TAIL, abi.AT_CQ_HEAD, abi.AT_SQ_HEAD, abi.AT_CQ_TAIL):
            self.words[at // 4] = first_index
        self.words[abi.AT_BELL_AT // 4] = (first_index - 1) & LOW32
        self.sq_head = self.cq_tail = self.cq_published = first_index
        self.taken = self.reserved = 0
        self.queue = []
        self.fence = threading.Lock()
        self.sq_bell, self.client_sq_bell = socket.socketpair()
        self.cq_bell, self.client_cq_bell = socket.socketpair()
        for end in (self.sq_bell, self.client_sq_bell, self.cq_bell, self.client_cq_bell):
            end.setblocking(False)

    def load(self, at):
        return self.words[at // 4]

    def store(self, at, value):
        self.words[at // 4] = value & LOW32

    def waiting(self):
        return (self.load(abi.AT_SQ_TAIL) - self.sq_head) & LOW32

    def room(self):
        unread = (self.cq_tail - self.load(abi.AT_CQ_HEAD)) & LOW32
        return self.header["cq_entries"] - unread - self.reserved

    def slot(self):
        """Returns the bytes of the SQE slot at the head."""
        index = self.sq_head & (self.header["sq_entries"] - 1)
        at = self.header["sq_offset"] + index * self.header["sqe_stride"]
        return self.map[at:at + abi.SQE.size]

    def take(self, slots=1):
        """Takes the SQE at the head, promising it CQ slots; returns (number, SQE)."""
        assert self.waiting() and self.room() >= slots
        taken = self.taken, abi.SQE.unpack(self.slot())
        self.taken += 1
        self.reserved += slots
        self.sq_head = (self.sq_head + 1) & LOW32
        self.store(abi.AT_SQ_HEAD, self.sq_head)
        return taken

    def push(self, **fields):
        """Writes a CQE, to be seen after `publish`."""
        index = self.cq_tail & (self.header["cq_entries"] - 1)
        at = self.header["cq_offset"] + index * self.header["cqe_stride"]
        self.map[at:at + abi.CQE.size] = abi.CQE.pack(**fields)
        self.cq_tail = (self.cq_tail + 1) & LOW32
        self.reserved -= 1

    def publish(self):
        """Publishes, and rings the client's bell if that is due; returns whether it was."""
        old, self.cq_published = self.cq_published, self.cq_tail
        self.store(abi.AT_CQ_TAIL, self.cq_tail)
        with self.fence:
            pass
        bell_at = self.load(abi.AT_BELL_AT)
        due = (self.cq_tail - bell_at - 1) & LOW32 < (self.cq_tail - old) & LOW32
        if due:
            self.words64[BELLS_RUNG] += 1
            self.ring_client()
        return due

    def ring_client(self):
        try:
            self.cq_bell.send(b"\1", socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError):
            pass

    def rung(self):
        """Drains the SQ bell; returns the number of times the client rang it."""
        try:
            return len(self.sq_bell.recv(4096))
        except BlockingIOError:
            return 0

    def fall_asleep(self):
        """Sets NEED_WAKEUP; False if SQEs came in the meantime."""
        self.store(abi.AT_ENGINE_FLAGS, self.load(abi.AT_ENGINE_FLAGS) | abi.ENGINE_NEED_WAKEUP)
        with self.fence:
            pass
        asleep = self.waiting() == 0
        self.words64[SLEEPS] += asleep
        return asleep

    def wake(self):
        self.store(abi.AT_ENGINE_FLAGS, self.load(abi.AT_ENGINE_FLAGS) & ~abi.ENGINE_NEED_WAKEUP)

    def fate(self, place, number, stage, record=1):
        at = (self.header["fate_offset"] + place * self.header["fate_stride"]) // 8
        self.words64[at] = record
        self.words64[at + 1] = number << abi.FATE_SHIFT | stage

    def hang_up(self):
        self.sq_bell.close()
        self.cq_bell.close()

    def close(self):
        self.hang_up()
        self.client_sq_bell.close()
        self.client_cq_bell.close()
        self.words.release()
        self.words64.release()
        self.map.close()
        os.close(self.fd)


class FakeRecorder:
    """A flight recorder in a memfd of its own."""

    def __init__(self, entries=4, stride=72, seals=SHRINK_AND_GROW, **header):
        self.entries, self.stride = entries, stride
        size_bytes = abi.RECORDER_HEADER_BYTES + entries * stride
        self.fd, self.map = memory("fake-recorder", size_bytes, seals)
        fields = dict(magic=abi.RECORDER_MAGIC, abi_version=abi.ABI_VERSION, header_bytes=4096,
                      entry_stride=stride, entries=entries, boot_id=BOOT_ID, session=1)
        packed = abi.RECORDER_HEADER.pack(**{**fields, **header})
        self.map[:len(packed)] = packed

    def write(self, place, **fields):
        at = abi.RECORDER_HEADER_BYTES + place * self.stride
        self.map[at:at + abi.RECORD.size] = abi.RECORD.pack(**fields)

    def close(self):
        self.map.close()
        os.close(self.fd)


class FakeTelemetry:
    """A telemetry page of two rails and three sessions, in a memfd of its own."""

    def __init__(self, stride=4160, seals=SHRINK_AND_GROW, **header):
        self.stride, self.first = stride, 4096
        self.size_bytes = 4096 + (6 + 2 + 1 + 3) * stride
        self.fd, self.map = memory("fake-telemetry", self.size_bytes, seals)
        fields = dict(magic=abi.TELEMETRY_MAGIC, abi_version=abi.ABI_VERSION, header_bytes=4096,
                      block_stride=stride, counters=abi.BLOCK_COUNTERS,
                      buckets=abi.HISTOGRAM_BUCKETS, unit_ns=abi.HISTOGRAM_UNIT_NS,
                      steps=abi.HISTOGRAM_STEPS, lanes=6, rails=2, sessions=3, boot_id=BOOT_ID)
        packed = abi.TELEMETRY_HEADER.pack(**{**fields, **header})
        self.map[:len(packed)] = packed

    def write(self, block, word, value):
        at = self.first + block * self.stride + 8 * word
        self.map[at:at + 8] = value.to_bytes(8, "little")

    def close(self):
        self.map.close()
        os.close(self.fd)


class FakeRegion:
    def __init__(self, mapping, size_bytes):
        self.memory, self.size_bytes = mapping, size_bytes
        self.armed, self.merged, self.immediate = [], 0, 0


class FakeEngine:
    """Serves any number of sessions on one thread.

    `answer(kind, reply, descriptors)` may replace a reply before it is sent; `ring_options` go to
    every FakeRing; with `by_hand` no ring is run. A `recorder` is everybody's flight recorder, and
    `telemetry` the telemetry page.
    """

    def __init__(self, path, pid=None, by_hand=False, answer=None, lie=None, recorder=None,
                 telemetry=None, **ring_options):
        assert lie is None or lie in LIES
        self.pid, self.by_hand, self.answer, self.lie = pid or os.getpid(), by_hand, answer, lie
        self.ring_options, self.kept, self.page = ring_options, recorder, telemetry
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.stop_told, self.stop_heard = socket.socketpair()
        self.sessions, self.rings, self.regions, self.exports = {}, {}, {}, {}
        # Peers that were connected, and what PEERS tells: fields of its replies.
        self.connected, self.told = 0, None
        # What CARDS tells likewise.
        self.held = None
        self.requests, self.records = [], 1 << 32
        self.poller = select.poll()
        for end in (self.listener, self.stop_heard):
            self.poller.register(end, select.POLLIN)

    def serve(self):
        """Runs until `stop`."""
        while True:
            idle = self.by_hand or all([ring.fall_asleep() for ring in self.rings.values()])
            events = self.poller.poll(None if idle else 0)
            for fd, event in events:
                if fd == self.stop_heard.fileno():
                    return
                if event & select.POLLHUP and fd not in self.sessions:
                    # The bell of a client that is gone.
                    self.poller.unregister(fd)
                elif fd == self.listener.fileno():
                    session = self.listener.accept()[0]
                    self.sessions[session.fileno()] = session
                    self.poller.register(session, select.POLLIN)
                elif fd in self.sessions:
                    self.hear(self.sessions[fd])
            for ring in self.rings.values():
                if not self.by_hand:
                    ring.rung()
                    ring.wake()
                    self.turn(ring)

    def stop(self):
        self.stop_told.send(b"\1")

    def hang_up(self):
        """Ends every session; only after `serve` has ended."""
        for ring in self.rings.values():
            ring.hang_up()
        for session in self.sessions.values():
            session.close()

    def close(self):
        """Lets go of everything; only after `serve` has ended."""
        self.hang_up()
        for ring in self.rings.values():
            ring.close()
        for end in (self.listener, self.stop_told, self.stop_heard):
            end.close()

    # Control.

    def hear(self, session):
        request, ancillary, _, _ = session.recvmsg(1024, socket.CMSG_SPACE(16),
                                                   socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        if not request:
            self.poller.unregister(session)
            del self.sessions[session.fileno()]
            session.close()
            return
        self.requests.append(request)
        head = abi.HEAD.unpack(request)
        kind = abi.Kind(head.kind)
        layout, fields, sends = getattr(self, kind.name.lower())(request, descriptors)
        reply = self.reply(head, layout, **fields)
        if self.answer:
            reply, sends = self.answer(kind, reply, list(sends))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sends))] if sends else []
        session.sendmsg([reply], rights)
        # Ours is the map: a region's memfd is closed, whoever made it.
        for fd in descriptors:
            os.close(fd)

    @staticmethod
    def reply(head, layout, status=0, detail=0, text="", **fields):
        size_bytes = layout.size if not status else abi.REPLY_HEAD.size + len(text)
        start = abi.REPLY_HEAD.pack(kind=head.kind | abi.REPLY, bytes=size_bytes, tag=head.tag,
                                    status=status, detail=detail)
        if status or layout is abi.REPLY_HEAD:
            return start + text.encode()
        return layout.pack(reply=start, **fields)

    def refused(self, number, detail, text=""):
        return abi.REPLY_HEAD, dict(status=-number, detail=detail, text=text), ()

    def hello(self, request, _):
        pidfd = os.pidfd_open(self.pid)
        return abi.HELLO_REPLY, dict(version=1, session=1, boot_id=BOOT_ID, pid=self.pid), [pidfd]

    def ring(self, request, _):
        ask = abi.RING_REQUEST.unpack(request)
        number = len(self.rings)
        entries = dict(sq_entries=ask.sq_entries, cq_entries=ask.cq_entries)
        ring = FakeRing(number, **{**entries, **self.ring_options})
        self.rings[number] = ring
        self.poller.register(ring.sq_bell, select.POLLIN)
        return (abi.RING_REPLY, dict(ring=number, segment_bytes=ring.segment_bytes),
                [ring.fd, ring.client_sq_bell.fileno(), ring.client_cq_bell.fileno()])

    def mapped(self, request, _):
        ask = abi.MAPPED.unpack(request)
        if ask.object == abi.OBJECT_RING:
            # The client's end of the bell is the client's alone from here on.
            self.rings[ask.id].client_sq_bell.close()
            self.rings[ask.id].client_cq_bell.close()
        return abi.REPLY_HEAD, {}, ()

    def region(self, request, descriptors):
        ask = abi.REGION_REQUEST.unpack(request)
        if ask.source == abi.REGION_MEMFD:
            fd, mapping = descriptors[0], mmap.mmap(descriptors[0], ask.bytes)
            # FUTURE_WRITE and SEAL: from here on nobody can map it for writing anew.
            fcntl.fcntl(fd, F_ADD_SEALS, 0x10 | 1)
        else:
            fd, mapping = memory("fake-region", ask.bytes)
            descriptors.append(fd)
        number = 1 << 20 | len(self.regions) + 1
        self.regions[number] = FakeRegion(mapping, ask.bytes)
        return (abi.REGION_REPLY, dict(region=number, bytes=ask.bytes),
                [fd] if ask.source == abi.REGION_ALLOCATED else ())

    def export(self, request, _):
        ask = abi.EXPORT.unpack(request)
        secret = os.urandom(abi.SECRET_BYTES)
        self.exports[ask.name] = secret, self.regions[ask.region], ask.rights
        return abi.EXPORT_REPLY, dict(secret=secret), ()

    def connect(self, request, _):
        ask = abi.CONNECT.unpack(request)
        if ask.require not in (0, abi.FABRIC_VERBS):
            return self.refused(abi.Errno.EOPNOTSUPP, abi.Detail.REQUIRE, "verbs or nothing")
        self.connected += 1
        return (abi.CONNECT_REPLY,
                dict(peer=self.connected, fabric=abi.FABRIC_VERBS, rail=7), ())

    # `import` is a word of Python's, so this method cannot be written as the others are.
    def take_up(self, request, _):
        ask = abi.IMPORT.unpack(request)
        if ask.name not in self.exports:
            return self.refused(abi.Errno.ENOENT, abi.Detail.NAME, "no such export")
        if ask.peer > self.connected:
            return self.refused(abi.Errno.EINVAL, abi.Detail.PEER)
        secret, region, rights = self.exports[ask.name]
        if secret != ask.secret:
            return self.refused(abi.Errno.EACCES, abi.Detail.SECRET)
        number = 1 << 20 | len(self.regions) + 1
        self.regions[number] = region
        return (abi.IMPORT_REPLY,
                dict(region=number, rights=ask.rights or rights, bytes=region.size_bytes), ())

    locals()["import"] = take_up

    def release(self, request, _):
        ask = abi.RELEASE.unpack(request)
        if ask.object == abi.OBJECT_RING:
            ring = self.rings.pop(ask.id)
            self.poller.unregister(ring.sq_bell)
            ring.close()
        return abi.REPLY_HEAD, {}, ()

    def probe(self, _, __):
        features = abi.FEATURE_RECORDER if self.kept else 0
        features |= abi.FEATURE_TELEMETRY if self.page else 0
        features |= abi.FEATURE_PEERS if self.told is not None else 0
        features |= abi.FEATURE_CARDS if self.held is not None else 0
        return (abi.PROBE_REPLY,
                dict(opcodes=0x77F, features=features, op_bytes_max=abi.OP_BYTES_MAX), ())

    def recorder(self, request, _):
        assert abi.RECORDER_REQUEST.unpack(request).session == abi.SESSION_OWN
        size_bytes = abi.RECORDER_HEADER_BYTES + self.kept.entries * self.kept.stride
        return (abi.RECORDER_REPLY,
                dict(session=1, entries=self.kept.entries, bytes=size_bytes), [self.kept.fd])

    def telemetry(self, request, _):
        assert len(request) == abi.TELEMETRY_REQUEST.size
        return abi.TELEMETRY_REPLY, dict(bytes=self.page.size_bytes), [self.page.fd]

    def peers(self, request, _):
        at = abi.PEERS_REQUEST.unpack(request).at
        for peer in self.told:
            if peer["at"] >= at:
                return abi.PEERS_REPLY, peer, ()
        return self.refused(abi.Errno.ENOENT, abi.Detail.PEER)

    def cards(self, request, _):
        card = abi.CARDS_REQUEST.unpack(request).card
        if card < len(self.held):
            return abi.CARDS_REPLY, self.held[card], ()
        return self.refused(abi.Errno.ENOENT, abi.Detail.MESSAGE)

    def stats(self, request, _):
        scope = abi.STATS.unpack(request).scope
        counters = tuple(range(100 * scope, 100 * scope + abi.COUNTERS))
        return abi.STATS_REPLY, dict(counters=counters), ()

    def cancel(self, request, _):
        ask = abi.OP_QUERY.unpack(request)
        for entry in self.rings[ask.ring].queue:
            if entry[0] == ask.target:
                return abi.CANCEL_REPLY, dict(record=entry[2]), ()
        return self.refused(abi.Errno.ENOENT, abi.Detail.NONE)

    def why(self, request, _):
        ask = abi.OP_QUERY.unpack(request)
        return (abi.WHY_REPLY, dict(number=ask.target, class_=3, state=abi.STATE_QUEUED,
                                    wait=abi.WAIT_LANE), ())

    # The turn.

    def turn(self, ring):
        while ring.waiting():
            sqe = abi.SQE.unpack(ring.slot())
            slots = sqe.bytes if sqe.opcode == abi.Op.ARM else 1
            if ring.room() < slots:
                break
            self.intake(ring, *ring.take(slots))
        for number, sqe, record in sorted(ring.queue, key=lambda entry: entry[1].class_ or 2):
            self.end(ring, sqe, record, **self.run(sqe))
        ring.queue.clear()
        if ring.cq_tail != ring.cq_published:
            ring.publish()

    def intake(self, ring, number, sqe):
        self.records += 1
        record = self.records
        if sqe.opcode == abi.Op.ARM:
            region = self.regions[sqe.local_region]
            region.armed.append([ring, sqe, record, sqe.bytes])
            self.deliver(region)
        elif sqe.opcode == abi.Op.CANCEL:
            found = [entry for entry in ring.queue if entry[0] == sqe.arg[0]]
            for entry in found:
                ring.queue.remove(entry)
                self.end(ring, *entry[1:], res=-abi.Errno.ECANCELED, detail=abi.Detail.CANCELLED,
                         flags=abi.CQE_RETRYABLE)
            self.end(ring, sqe, record, res=0 if found else -abi.Errno.ENOENT)
        else:
            ring.queue.append((number, sqe, record))

    def end(self, ring, sqe, record, *, res, detail=0, flags=0, queued=1):
        refused = res == -abi.Errno.EINVAL
        lie = self.lie if sqe.opcode == abi.Op.WRITE else None
        ring.push(user_data=sqe.user_data,
                  record=0 if refused or lie == "record" else record,
                  res=res - 1 if lie == "res" else res,
                  detail=detail ^ 2 if lie == "detail" else detail,
                  flags=flags | abi.CQE_FLUSHED if lie == "flags" else flags,
                  queued=queued, service=2)

    def run(self, sqe):
        """Does what an SQE asks for; returns its CQE's fields."""
        if sqe.opcode in (abi.Op.NOP, abi.Op.FLUSH):
            return dict(res=0)
        near, far = self.regions[sqe.local_region], self.regions[sqe.remote_region]
        moves = [(sqe.local_offset, sqe.remote_offset)]
        if sqe.opcode in (abi.Op.WRITEV, abi.Op.READV):
            at = sqe.local_offset
            pages = near.memory[at:at + (sqe.arg[0] >> 32) * abi.PAGE.size]
            moves = [(local, sqe.remote_offset + remote)
                     for local, remote in abi.PAGE.struct.iter_unpack(pages)]
        length = 8 if sqe.opcode in (abi.Op.FETCH_ADD, abi.Op.CMP_SWAP) else sqe.bytes
        if any(remote + length > far.size_bytes for _, remote in moves):
            return dict(res=-abi.Errno.EINVAL, detail=abi.Detail.REMOTE_OFFSET)
        for local, remote in moves:
            self.move(sqe, near.memory, local, far.memory, remote, length)
        if sqe.flags & abi.SQE_NOTIFY:
            far.merged += 1
            far.immediate = sqe.immediate ^ (self.lie == "immediate")
            self.deliver(far)
        return dict(res=length * len(moves), detail=abi.FABRIC_LOCAL << 8)

    def move(self, sqe, near, local, far, remote, length):
        here, there = slice(local, local + length), slice(remote, remote + length)
        if sqe.opcode in (abi.Op.WRITE, abi.Op.WRITEV):
            far[there] = near[here]
        elif sqe.opcode in (abi.Op.READ, abi.Op.READV):
            near[here] = far[there]
        else:
            old = int.from_bytes(far[there], "little")
            add = sqe.opcode == abi.Op.FETCH_ADD
            new = old + sqe.arg[0] if add else sqe.arg[1] if old == sqe.arg[0] else old
            far[there] = (new & (1 << 64) - 1).to_bytes(8, "little")
            near[here] = (old + (self.lie == "old")).to_bytes(8, "little")
        if self.lie == "data" and length > 100:
            near[local + 100] ^= 1

    def deliver(self, region):
        """Hands merged notifications to the oldest ARM, if there are both."""
        while region.armed and region.merged:
            arm = region.armed[0]
            ring, sqe, record, left = arm
            arm[3] = left - 1
            self.end(ring, sqe, record, res=region.merged, queued=region.immediate,
                     flags=abi.CQE_NOTIFY | (abi.CQE_MORE if left > 1 else 0))
            region.merged = 0
            ring.publish()
            if left == 1:
                region.armed.pop(0)


if __name__ == "__main__":
    engine = FakeEngine(*sys.argv[1:2], lie=sys.argv[2] if len(sys.argv) > 2 else None)
    print("listening", flush=True)
    engine.serve()
