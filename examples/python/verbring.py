"""A client for verbring engines: maps a ring and talks to it, on the standard library alone.

    with Session("/run/verbring.sock") as session:
        region = session.region(1 << 20)
        remote = session.import_region("inbox", secret)
        ring = session.ring(sq_entries=64)
        ring.write(region, remote, 4096)
        for completion in ring.wait():
            completion.check()

An op is pushed into the ring, published by `submit` or `wait`, and answered by exactly one
`Completion` (unless SQE_SKIP_SUCCESS was asked for). A ring belongs to one thread at a time;
a session may be shared. Nothing is copied behind the caller's back: `Region.memory` is the memory
the engine reads and writes, and it must be left alone from push to completion.

Shared words are loaded and stored as items of a memoryview cast to 32 or 64 bits, each of which is
one load or store of the machine. `struct.pack_into` would zero the target first, and the engine
would see a cursor that jumps; it is never used on shared memory. Python has no memory fence: taking
and releasing a lock serves as one on x86-64. Elsewhere the ring is requested fenceless, and the
engine looks at it only when its bell is rung.

Deliberately absent: peers on other hosts, and files, which ABI 1 does not serve yet.

Needs Linux, Python 3.9, and the file `verbring_abi.py` (the numbers and layouts) beside this one.
"""

import array
import collections
import enum
import errno
import fcntl
import ipaddress
import mmap
import os
import platform
import select
import socket
import struct
import sys
import threading
import time

from verbring_abi import *  # noqa: F403 (the numbers are part of this module's surface)

if sys.byteorder != "little":
    raise ImportError("verbring's ABI is defined for little-endian hosts")


class VerbringError(OSError):
    """A call or an op failed. `errno` says how, `detail` which field or rule it is about."""

    def __init__(self, number, detail, text):
        super().__init__(number, text)
        self.detail = detail
        self.detail_name = Detail(detail).name if detail in set(Detail) else str(detail)

    def __str__(self):
        # Linux has one number for two names, of which Python knows the other first.
        names = {errno.EOPNOTSUPP: "EOPNOTSUPP"}
        name = names.get(self.errno, errno.errorcode.get(self.errno, self.errno))
        return f"{name} ({self.detail_name}): {self.strerror}"


class EngineGone(VerbringError):
    """The engine's process is dead. `Ring.verdict` is final once all completions are reaped."""


class SessionEnded(VerbringError):
    """The engine lives but has ended this session: queued ops end, `Ring.verdict` is a snapshot."""


class RingFaulted(VerbringError):
    """The ring broke a rule and gets no more completions.

    `reason` is a FAULT_* number, or 0 if it is the engine's cursor that cannot be.
    """

    REASONS = {
        FAULT_SQ_TAIL_BEYOND: "sq_tail is more than sq_entries ahead of sq_head",
        FAULT_SQ_TAIL_BACK: "sq_tail ran back",
        FAULT_CQ_HEAD: "cq_head ran back or passed cq_tail",
    }

    def __init__(self, reason, text=None):
        text = text or self.REASONS.get(reason, f"fault {reason}")
        super().__init__(Errno.EPROTO, Detail.FAULTED, text)
        self.reason = reason


class RingFull(VerbringError):
    """No SQ slot is free: reap completions, then push again."""

    def __init__(self):
        super().__init__(errno.EAGAIN, Detail.NONE, "every SQ slot is in use")


def _protocol(detail, text):
    return VerbringError(Errno.EPROTO, detail, text)


_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_F_SEAL_SHRINK, _F_SEAL_GROW = 2, 4
_DESCRIPTORS_MAX = 4


def _map(fd, size_bytes, protection=mmap.PROT_READ | mmap.PROT_WRITE):
    """Maps a memfd that cannot shrink: an access beyond its end would kill this process."""
    seals = fcntl.fcntl(fd, _F_GET_SEALS)
    if not seals & _F_SEAL_SHRINK:
        raise _protocol(Detail.SEALS, f"the engine's memfd can shrink (seals {seals:#x})")
    if not 0 < size_bytes <= os.fstat(fd).st_size:
        raise _protocol(Detail.BYTES, f"the engine's memfd has not the {size_bytes} bytes it says")
    return mmap.mmap(fd, size_bytes, prot=protection)


def _close(descriptors):
    for fd in descriptors:
        os.close(fd)


def _padded(text, size_bytes):
    data = text.encode()
    if not 0 < len(data) <= size_bytes:
        raise ValueError(f"{text!r} is not of 1 to {size_bytes} bytes of UTF-8")
    return data


class _Segment:
    """A mapped ring segment: its header, copied once and checked, and its words."""

    def __init__(self, fd, size_bytes):
        if size_bytes < HEADER_BYTES:
            raise _protocol(Detail.BYTES, f"a segment of {size_bytes} bytes has no header page")
        self._map = _map(fd, size_bytes)
        self.header = SEGMENT.unpack(self._map[:SEGMENT.size])
        self._check(size_bytes)
        view = memoryview(self._map)[:size_bytes & ~7]
        self.words32, self.words64 = view.cast("I"), view.cast("Q")

    def _check(self, size_bytes):
        header = self.header

        def require(good, field):
            if not good:
                value = getattr(header, field)
                raise _protocol(Detail.NONE, f"segment header field {field} cannot be {value}")

        require(header.magic == MAGIC, "magic")
        require(header.abi_version == ABI_VERSION, "abi_version")
        require(header.features == 0, "features")
        for field in ("sq_entries", "cq_entries"):
            entries = getattr(header, field)
            good = ENTRIES_MIN <= entries <= ENTRIES_MAX and entries & (entries - 1) == 0
            require(good, field)
        for part, entry, entries, known_bytes in (
                ("sq", "sqe", header.sq_entries, SQE.size),
                ("cq", "cqe", header.cq_entries, CQE.size),
                ("fate", "fate", header.cq_entries, FATE_BYTES)):
            stride = getattr(header, entry + "_stride")
            require(known_bytes <= stride <= 4096 and stride % 8 == 0, entry + "_stride")
            offset = getattr(header, part + "_offset")
            inside = HEADER_BYTES <= offset and offset + entries * stride <= size_bytes
            require(inside and offset % 8 == 0, part + "_offset")

    def close(self):
        self.words32.release()
        self.words64.release()
        self._map.close()


class Verdict(enum.Enum):
    """What became of an op whose engine died without sending its CQE."""

    NOT_STARTED = "it had no effect, and never will"
    INDETERMINATE = "it may or may not have taken effect, in whole or in part"
    DONE = "it was done (a success whose CQE was skipped)"


class Completion(collections.namedtuple("Completion", CQE.record._fields)):
    """One CQE, as it came.

    `res` is bytes moved or a negative errno; in a notification, how many it stands for. `record` is
    the op's ledger id, 0 if the SQE was refused. `queued` and `service` are in units of 16 ns.
    """

    __slots__ = ()

    @property
    def ok(self):
        """True if the op succeeded."""
        return self.res >= 0

    @property
    def notify(self):
        """True for a notification: somebody's op with NOTIFY reached the armed region."""
        return self.flags & CQE_NOTIFY != 0

    @property
    def more(self):
        """True if this is not the last completion of its SQE."""
        return self.flags & CQE_MORE != 0

    @property
    def coalesced(self):
        """True if the op ended with another one, folded or replaced; `record` is that one's."""
        return self.flags & CQE_COALESCED != 0

    @property
    def dep_failed(self):
        """True if the op did not run, since one that it waited for failed: `detail` is that's."""
        return self.flags & CQE_DEP_FAILED != 0

    @property
    def immediate(self):
        """The sender's immediate, in a notification."""
        return self.queued

    @property
    def fabric(self):
        """The FABRIC_* that carried a success."""
        return self.detail >> 8

    @property
    def rail(self):
        """The rail that carried a success: 0 within the engine, others to its peers."""
        return self.detail & 0xFF

    @property
    def queued_ns(self):
        """Nanoseconds from intake to first post; not for notifications."""
        return self.queued * CQE_TIME_UNIT_NS

    @property
    def service_ns(self):
        """Nanoseconds from first post to completion."""
        return self.service * CQE_TIME_UNIT_NS

    def check(self):
        """Returns itself; raises VerbringError if the op failed."""
        if self.res < 0:
            hints = ((CQE_DEP_FAILED, "an op before it failed"), (CQE_RETRYABLE, "retryable"),
                     (CQE_MAYBE_DONE, "maybe done"))
            what = ", ".join(text for bit, text in hints if self.flags & bit) or "failed"
            raise VerbringError(-self.res, self.detail, f"op {self.user_data} {what}")
        return self


class _Owned:
    """What a session owns until it is closed: a ring, a region, or an import."""

    def __init__(self, session, kind, number):
        self._session, self._kind, self._number = session, kind, number

    def close(self):
        """Gives it back; returns when nothing of the engine touches its memory any more."""
        self._session._give_back(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _unmap(self):
        pass


_LOW32 = 0xFFFF_FFFF
# Edges of any SQE, of a JOIN, and how far back one reaches.
_EDGES, _JOIN_EDGES, _EDGE_BACK_MAX = 2, 10, 32767
_TSO = platform.machine() in ("x86_64", "AMD64")
_CQE_WORDS = struct.Struct("<4Q")
_SQE_WORDS = struct.Struct("<8Q")
_SQ_TAIL, _CQ_HEAD, _BELL_AT = AT_SQ_TAIL // 4, AT_CQ_HEAD // 4, AT_BELL_AT // 4
_SQ_HEAD, _CQ_TAIL, _ENGINE_FLAGS = AT_SQ_HEAD // 4, AT_CQ_TAIL // 4, AT_ENGINE_FLAGS // 4


class Ring(_Owned):
    """One SQ and one CQ, for one thread at a time; made by `Session.ring`.

    Ops return their SQE number in this ring (0 for the first), which is also their `user_data`
    unless another is given. All of them take these keywords as well: `user_data`, `class_` (a
    Class; medium is the default), `flags` (SQE_* bits). Those that move data also take `notify` (a
    32-bit immediate for the remote region's owner), `deadline_us` (given up with ETIME if still
    queued after so many microseconds; 0 is never), and, except for atomics, `tag` (for logs).
    They raise RingFull, and struct.error for a value that does not fit its field; in both cases
    nothing was pushed.

    What an op waits for is said by these, for all of them: `after`, a number or several, of earlier
    ops of this ring: it waits until they are over, and fails (ECANCELED, `dep_failed`) if one of
    them did; `after_end`, likewise, but however they end; `link` and `hard_link`: the next op that
    is pushed waits for this one as by `after`, or `after_end`; `drain`: it waits until all earlier
    ops of the ring are over, and all later ones wait for it. An op has two edges at most; `join`
    makes one op of many. `write` and `read` also take `coalesce` (may share queued work of the very
    same effect), `write` also `supersede`, a tag: it may replace a queued one for the same place
    with the same tag.

        a = ring.write(region, remote, 4096)
        b = ring.read(region, remote, 64, local_offset=8192, after=a)
        c = ring.nop(after=[a], after_end=[b])
        ring.join([a, b, c])
    """

    def __init__(self, session, number, segment, sq_bell, cq_bell, fenceless, spin_us):
        super().__init__(session, OBJECT_RING, number)
        self.number = number
        self.fenceless = fenceless
        self.spin_us = spin_us
        self.sq_entries = segment.header.sq_entries
        self.cq_entries = segment.header.cq_entries
        self._segment = segment
        self._words, self._words64 = segment.words32, segment.words64
        self._first = segment.header.first_index
        # SQE numbers, which do not wrap.
        self._pushed = self._published = self._taken = 0
        # CQ cursors, which do.
        self._popped = self._cq_tail = self._first
        self._fence_lock = threading.Lock()
        self._sq_bell, self._cq_bell = sq_bell, cq_bell
        self._poller = select.poll()
        self._poller.register(cq_bell, select.POLLIN)
        session._watch(self._poller)

    # Ops.

    def nop(self, **how):
        """Pushes an op that does nothing; res is 0."""
        return self.push(Op.NOP, **how)

    def write(self, region, remote, length_bytes, *, local_offset=0, remote_offset=0, **how):
        """Pushes a copy from a region of ours into an import; res is the bytes moved."""
        offsets = local_offset, remote_offset
        return self._move(Op.WRITE, region, remote, offsets, length_bytes, **how)

    def read(self, region, remote, length_bytes, *, local_offset=0, remote_offset=0, **how):
        """Pushes a copy from an import into a region of ours; res is the bytes moved."""
        offsets = local_offset, remote_offset
        return self._move(Op.READ, region, remote, offsets, length_bytes, **how)

    def writev(self, region, remote, page_bytes, pages, *, list_offset, remote_offset=0, **how):
        """Pushes a copy of scattered pages; res is the bytes moved in all.

        `pages` are pairs (local offset, remote offset), 1 to 1024 of them; `remote_offset` is added
        to each remote one. Their list, 16 bytes a page, is laid down in the region at `list_offset`
        and must stay there until the completion.
        """
        offsets = list_offset, remote_offset
        count = self._lay_pages(region, list_offset, pages)
        return self._move(Op.WRITEV, region, remote, offsets, page_bytes, count, **how)

    def readv(self, region, remote, page_bytes, pages, *, list_offset, remote_offset=0, **how):
        """Like `writev`, from the import into the region."""
        offsets = list_offset, remote_offset
        count = self._lay_pages(region, list_offset, pages)
        return self._move(Op.READV, region, remote, offsets, page_bytes, count, **how)

    def fetch_add(self, region, remote, addend, *, local_offset=0, remote_offset=0,
                  deadline_us=0, **how):
        """Pushes an addition to a remote u64; its old value lands at `local_offset`; res is 8.

        Both offsets are multiples of 8.
        """
        offsets = local_offset, remote_offset
        return self._far(Op.FETCH_ADD, region, remote, offsets, deadline_us, (addend, 0), **how)

    def cmp_swap(self, region, remote, expected, new, *, local_offset=0, remote_offset=0,
                 deadline_us=0, **how):
        """Pushes a replacement of a remote u64 if it is as expected; otherwise as `fetch_add`."""
        offsets = local_offset, remote_offset
        return self._far(Op.CMP_SWAP, region, remote, offsets, deadline_us, (expected, new), **how)

    def join(self, numbers, *, after_end=(), class_=0, **how):
        """Pushes an op that does nothing once all of these are over; res is 0.

        It fails if one of `numbers` did; for `after_end` it only waits. Of more than ten, JOINs of
        JOINs make it, which complete only if they fail. All are pushed, or none: ValueError says
        that the SQ is too small for all of them.
        """
        open_ = collections.deque((number, 0) for number in numbers)
        open_.extend((number, EDGE_ORDER_ONLY) for number in after_end)
        joins = 1 + max(0, -(-(len(open_) - _JOIN_EDGES) // (_JOIN_EDGES - 1)))
        for number, _ in open_:
            self._edge(number, self._pushed + joins - 1)
        if joins > self.sq_entries:
            raise ValueError(f"{len(open_)} ops take {joins} JOINs, and the SQ has "
                             f"{self.sq_entries} entries: join some of them first")
        if self.room() < joins:
            self._observe_taken()
        if self.room() < joins:
            self._raise_if_over()
            raise RingFull()
        while len(open_) > _JOIN_EDGES:
            # No more than is needed, so that the last JOIN is full.
            some = min(len(open_) - _JOIN_EDGES + 1, _JOIN_EDGES)
            taken = [open_.popleft() for _ in range(some)]
            number = self._join(taken, class_=class_, flags=SQE_SKIP_SUCCESS)
            open_.append((number, 0))
        return self._join(open_, class_=class_, **how)

    def cancel(self, target, by=CANCEL_BY_NUMBER, **how):
        """Pushes the wish to take back an op that is still queued.

        res is 0 if it was taken back (its own completion then says ECANCELED), -ENOENT if there is
        no such op, -EALREADY if it was posted.
        """
        return self.push(Op.CANCEL, arg=(target, by), **how)

    def flush(self, target, *, revoke=False, flags=0, **how):
        """Pushes a FLUSH of a region or import: it completes when earlier ops on it are over.

        With `revoke`, a region's exports end first: importers then get ESTALE.
        """
        flags |= SQE_REVOKE if revoke else 0
        return self.push(Op.FLUSH, local_region=target.id, flags=flags, **how)

    def arm(self, region, count, **how):
        """Pushes the wish for `count` notifications of a region, each a completion of its own."""
        return self.push(Op.ARM, local_region=region.id, bytes_=count, **how)

    def push(self, opcode, *, user_data=None, class_=0, flags=0, local_region=0, remote_region=0,
             local_offset=0, remote_offset=0, bytes_=0, immediate=0, arg=(0, 0), edges=(0, 0),
             after=(), after_end=(), link=False, hard_link=False, drain=False):
        """Pushes any SQE, field by field; returns its number. Every op above ends here.

        Raises RingFull; EngineGone, SessionEnded or RingFaulted if no slot can become free;
        ValueError for an op that cannot be waited for, or for more edges than there is room for.
        """
        number = self._pushed
        if after != () or after_end != ():
            edges = self._edges(after, after_end, edges)
        flags |= (link and SQE_LINK) | (hard_link and SQE_HARDLINK) | (drain and SQE_DRAIN)
        if self.room() == 0:
            self._raise_if_over()
            raise RingFull()
        entry = SQE.struct.pack(
            opcode, class_, flags, *edges, number if user_data is None else user_data,
            local_region, remote_region, local_offset, remote_offset, bytes_, immediate, *arg)
        header = self._segment.header
        slot = self._index(number) & (self.sq_entries - 1)
        at = (header.sq_offset + slot * header.sqe_stride) // 8
        for word in _SQE_WORDS.unpack(entry):
            self._words64[at] = word
            at += 1
        self._pushed = number + 1
        return number

    def room(self):
        """Returns how many SQEs can be pushed now."""
        if self._pushed - self._taken == self.sq_entries:
            self._observe_taken()
        return self.sq_entries - (self._pushed - self._taken)

    def submit(self):
        """Publishes what was pushed, and wakes the engine if it sleeps; returns how many SQEs.

        Whether there still is an engine is for `push`, `reap` and `wait` to find out.
        """
        count = self._pushed - self._published
        if count:
            self._order()
            self._words[_SQ_TAIL] = self._index(self._pushed)
            # The engine sets NEED_WAKEUP, fences, and looks at sq_tail; we store sq_tail, fence,
            # and look at NEED_WAKEUP. One of the two sees the other, and nobody sleeps on work.
            self._fence()
            if self.fenceless or self._words[_ENGINE_FLAGS] & ENGINE_NEED_WAKEUP:
                self._ring_bell()
            # Last, so that a call broken off by a signal handler's exception is made good by the
            # next one.
            self._published = self._pushed
        return count

    # Completions.

    def reap(self, limit=None):
        """Returns the completions that are there, at most `limit`, without waiting.

        Raises EngineGone, SessionEnded or RingFaulted if there are none and will be none.
        """
        if self._observe_tail() == 0:
            self._raise_if_over()
        return self._pop(limit)

    def wait(self, count=1, timeout_s=None):
        """Publishes, waits for `count` completions, and returns all that are there by then.

        Returns fewer, perhaps none, only if `timeout_s` seconds pass, or if no more can come but
        some were left; with none left it raises EngineGone, SessionEnded or RingFaulted.
        `count` is 1 to cq_entries.
        """
        if not 1 <= count <= self.cq_entries:
            raise ValueError(f"cannot wait for {count} completions with {self.cq_entries} CQ slots")
        self.submit()
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        spin_s = self.spin_us / 1e6
        spin_until = now + (spin_s if timeout_s is None else min(spin_s, timeout_s))
        while self._observe_tail() < count and time.monotonic() < spin_until:
            pass
        # Without a fence the engine may miss our bell_at for as long as it sits in the store
        # buffer: the first sleep is short, and the look after it is sure to be late enough.
        nap_ms = 1 if self.fenceless else None
        while self._observe_tail() < count and self._sleep(count, deadline, nap_ms):
            nap_ms = None
        return self._pop(None)

    def fileno(self):
        """Returns the CQ bell's descriptor, to be polled for reading by an event loop.

        It becomes readable only after `arm_bell` has returned True. At end of file, or if
        `Session.fileno` becomes readable, call `reap`: it raises what happened.
        """
        return self._cq_bell.fileno()

    def arm_bell(self, count=1):
        """Asks for the bell once `count` completions are ready; False if they are there already.

        On hosts other than x86-64, call it once more after a millisecond.
        """
        self._drain_bell()
        return self._arm_bell(count)

    def verdict(self, number):
        """Returns the Verdict on an SQE that has no completion.

        Final once EngineGone was raised; before, a snapshot. Raises ValueError for an SQE never
        pushed, or while completions wait to be reaped (its own may be there).
        """
        if not 0 <= number < self._pushed:
            raise ValueError(f"SQE {number} was never pushed")
        if self._observe_tail():
            raise ValueError("completions are ready: reap them first")
        # sq_head before the entries: the engine writes the entry first.
        self._observe_taken()
        self._order()
        header = self._segment.header
        for place in range(self.cq_entries):
            word = self._words64[(header.fate_offset + place * header.fate_stride) // 8 + 1]
            stage = word & ((1 << FATE_SHIFT) - 1)
            if word >> FATE_SHIFT == number and stage == FATE_ACCEPTED:
                return Verdict.NOT_STARTED
            if word >> FATE_SHIFT == number and stage == FATE_POSTED:
                return Verdict.INDETERMINATE
        return Verdict.DONE if number < self._taken else Verdict.NOT_STARTED

    # Helpers.

    def _edge(self, earlier, number):
        """Returns how far back from an SQE of ours an earlier one is."""
        if not 0 <= earlier < self._pushed:
            raise ValueError(f"SQE {earlier} was never pushed: nothing can wait for it")
        if number - earlier > _EDGE_BACK_MAX:
            raise ValueError(f"SQE {earlier} is {number - earlier} before SQE {number}, and an "
                             f"edge reaches back {_EDGE_BACK_MAX} at most")
        return number - earlier

    def _edges(self, after, after_end, edges):
        words = [word for word in edges if word]
        for numbers, kind in ((after, 0), (after_end, EDGE_ORDER_ONLY)):
            numbers = (numbers,) if isinstance(numbers, int) else numbers
            words += [self._edge(earlier, self._pushed) | kind for earlier in numbers]
        if len(words) > _EDGES:
            raise ValueError(f"{len(words)} edges, and an op has {_EDGES} at most: join them")
        return (words + [0, 0])[:_EDGES]

    def _join(self, edges, **how):
        words = [self._edge(number, self._pushed) | kind for number, kind in edges]
        words += [0] * (_JOIN_EDGES - len(words))
        arg = struct.unpack("<2Q", struct.pack("<8H", *words[_EDGES:]))
        return self.push(Op.JOIN, edges=words[:_EDGES], arg=arg, **how)

    def _move(self, opcode, region, remote, offsets, bytes_, pages=0, *, deadline_us=0, tag=0,
              coalesce=False, supersede=None, flags=0, **how):
        if not 0 <= deadline_us <= _LOW32:
            raise ValueError(f"deadline_us {deadline_us} does not fit 32 bits")
        if supersede is not None:
            flags, tag = flags | SQE_SUPERSEDE, supersede
        how["flags"] = flags | (coalesce and SQE_COALESCE)
        return self._far(opcode, region, remote, offsets, bytes_, (pages << 32 | deadline_us, tag),
                         **how)

    def _far(self, opcode, region, remote, offsets, bytes_, arg, *, notify=None, flags=0, **how):
        flags |= 0 if notify is None else SQE_NOTIFY
        return self.push(
            opcode, flags=flags, local_region=region.id, remote_region=remote.id,
            local_offset=offsets[0], remote_offset=offsets[1], bytes_=bytes_,
            immediate=notify or 0, arg=arg, **how)

    def _lay_pages(self, region, list_offset, pages):
        data = b"".join(PAGE.struct.pack(*page) for page in pages)
        region.memory[list_offset:list_offset + len(data)] = data
        return len(data) // PAGE.size

    def _index(self, number):
        return (self._first + number) & _LOW32

    def _fence(self):
        # Two rounds: where taking is an acquire and releasing a release, the first release and the
        # second acquire stay in order, and everything else with them. On x86-64 one would do.
        for _ in range(1 if _TSO else 2):
            with self._fence_lock:
                pass

    def _order(self):
        """Keeps a cursor and the slots it speaks for in order, where the machine does not."""
        if not _TSO:
            self._fence()

    def _observe_taken(self):
        advance = (self._words[_SQ_HEAD] - self._index(self._taken)) & _LOW32
        # A head that cannot be is not believed: the ring then looks full.
        if advance <= self._pushed - self._taken:
            self._taken += advance

    def _observe_tail(self):
        tail = self._words[_CQ_TAIL]
        ready = (tail - self._popped) & _LOW32
        if ready > self.cq_entries or ready < (self._cq_tail - self._popped) & _LOW32:
            raise RingFaulted(0, f"the engine's cq_tail cannot be {tail} after {self._popped}")
        self._cq_tail = tail
        return ready

    def _pop(self, limit):
        count = self._observe_tail()
        if limit is not None:
            count = max(0, min(count, limit))
        self._order()
        header = self._segment.header
        out = []
        for index in range(self._popped, self._popped + count):
            at = (header.cq_offset + (index & (self.cq_entries - 1)) * header.cqe_stride) // 8
            words = (self._words64[at], self._words64[at + 1], self._words64[at + 2],
                     self._words64[at + 3])
            out.append(Completion._make(CQE.struct.unpack(_CQE_WORDS.pack(*words))))
        if count:
            self._order()
            self._popped = (self._popped + count) & _LOW32
            self._words[_CQ_HEAD] = self._popped
        return out

    def _arm_bell(self, count):
        # The bell is due when cq_tail moves beyond bell_at.
        self._words[_BELL_AT] = (self._popped + count - 1) & _LOW32
        # The mirror of submit: bell_at, fence, cq_tail here; cq_tail, fence, bell_at there.
        self._fence()
        return self._observe_tail() < count

    def _drain_bell(self):
        try:
            while self._cq_bell.recv(64, socket.MSG_DONTWAIT):
                pass
            return False
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    def _sleep(self, count, deadline, nap_ms):
        """Sleeps until the bell; False if `wait` has to make do with what is there."""
        # Drained first: a byte that comes after the wish is armed must wake us.
        alive = self._drain_bell()
        if not self._arm_bell(count):
            return True
        if self._words[_ENGINE_FLAGS] & ENGINE_FAULTED:
            alive = False
        left_ms = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1e3)
        naps = nap_ms is not None and (left_ms is None or nap_ms < left_ms)
        events = self._poller.poll(nap_ms if naps else left_ms) if alive else ()
        if not alive or any(fd != self._cq_bell.fileno() for fd, _ in events):
            # Nothing more will come; what came before is handed over first.
            if self._observe_tail() == 0:
                self._raise_over()
            return False
        return bool(events) or naps or deadline is None

    def _raise_if_over(self):
        # The flags before the tail: a fault's flag is set after the last CQE it lets through.
        flags = self._words[_ENGINE_FLAGS]
        over = flags & ENGINE_FAULTED or self._session.over()
        if over and self._observe_tail() == 0:
            self._raise_over()

    def _raise_over(self):
        flags = self._words[_ENGINE_FLAGS]
        raise RingFaulted(flags >> 16) if flags & ENGINE_FAULTED else self._session._ended()

    def _ring_bell(self):
        try:
            self._sq_bell.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, ConnectionError):
            # A full bell was rung and is not yet heard. One without an engine is left to `wait`,
            # which hands over the completions that are still there before it raises.
            pass

    def _unmap(self):
        self._sq_bell.close()
        self._cq_bell.close()
        self._segment.close()


class Region(_Owned):
    """Memory that ops may use as their near side; made by `Session.region`.

    `memory` is a memoryview of its bytes, `words` of its 64-bit words (each load and store is one).
    """

    def __init__(self, session, number, mapping, size_bytes, huge):
        super().__init__(session, OBJECT_REGION, number)
        self.id = number
        self.size_bytes = size_bytes
        self.huge = huge
        self.memory = memoryview(mapping)
        self.words = self.memory[:size_bytes & ~7].cast("Q")
        self._map = mapping

    def export(self, name, rights=RIGHTS_ALL):
        """Offers the region under a name, unique for this uid; returns the secret, 32 bytes.

        `rights` are RIGHT_* bits. Raises VerbringError, such as EEXIST for a name in use.
        """
        name = _padded(name, NAME_BYTES)
        reply, _ = self._session._call(
            Kind.EXPORT, EXPORT, EXPORT_REPLY, region=self.id, rights=rights, name=name)
        return reply.secret

    def _unmap(self):
        self.words.release()
        self.memory.release()
        try:
            self._map.close()
        except BufferError:
            # The caller still holds a slice: the last of them takes the mapping along.
            self._map = None


class Import(_Owned):
    """Somebody's export as we may use it: the far side of ops; made by `Session.import_region`."""

    def __init__(self, session, number, rights, size_bytes):
        super().__init__(session, OBJECT_REGION, number)
        self.id = number
        self.rights = rights
        self.size_bytes = size_bytes


class Peer:
    """Another engine, as a session reaches it through its own; made by `Session.connect_peer`.

    `fabric` (FABRIC_*) and `rail` are what carries medium ops to it. It ends with the session.
    """

    def __init__(self, session, number, fabric, rail):
        self._session = session
        self.number = number
        self.fabric = fabric
        self.rail = rail

    def import_region(self, name, secret, rights=0, uid=UID_OWN):
        """Takes up an export at that engine: see `Session.import_region`."""
        return self._session.import_region(name, secret, rights, uid, self)


class PeerReport:
    """What our engine knows of a connection to another one, or of one that failed.

    `phase` is a PHASE_* and `direction` PEER_OURS or PEER_THEIRS; `place` is the URL, or the
    address that the other engine came from (empty: this host). `heard_ms` is None if nothing was
    heard of it. `rails` are named tuples, each `state` a JOINT_*; rates are in the telemetry page,
    under a rail's number. `error` tells why the last connection to or from there was lost,
    `error_ms` ago; it may hold another engine's words.
    """

    def __init__(self, reply):
        self.at, self.phase, self.direction = reply.at, reply.phase, reply.direction
        self.phase_ms, self.boot_id, self.pid = reply.phase_ms, reply.boot_id, reply.pid
        self.heard_ms = None if reply.heard_ms == UNHEARD else reply.heard_ms
        self.imports, self.loans, self.sessions = reply.imports, reply.loans, reply.sessions
        self.place, self.error = _unpadded(reply.place), _unpadded(reply.error)
        self.error_ms = reply.error_ms
        size = PEER_RAIL.size
        self.rails = [PEER_RAIL.unpack(reply.rails[at * size:(at + 1) * size])
                      for at in range(reply.rails_count)]


class CardReport:
    """A card that our engine reaches others by: a port of an RDMA device.

    `card` is its number, as rails name it. `window_ops`, `window_wrs` and `window_bytes` may be in
    flight by it, over all its rails. `addresses`, IPv6Address, are those that rails may use, at
    most four, best first.
    """

    def __init__(self, reply):
        self.card, self.name = reply.card, _unpadded(reply.name)
        self.window_ops, self.window_wrs = reply.window_ops, reply.window_wrs
        self.window_bytes = reply.window_bytes
        self.addresses = [ipaddress.IPv6Address(reply.addresses[16 * at:16 * (at + 1)])
                          for at in range(reply.addresses_count)]


def _unpadded(field):
    """Returns a zero-padded field's text, with nothing that steers a terminal."""
    text = field.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


# A dying process closes its sockets a moment before its pidfd tells.
_DEATH_WAIT_MS = 1000


class Record(collections.namedtuple("Record", RECORD.record._fields)):
    """What became of an op that is over, as the session's flight recorder keeps it.

    `record`, `user_data`, `res`, `flags` and `detail` are as in its completion; `taken_ns` is of
    CLOCK_MONOTONIC. `cause` is the errno of the first failure that was its own, and not its queue
    pair's; 0 without one.
    """

    __slots__ = ()

    @property
    def queued_ns(self):
        """Nanoseconds from intake to first post; 0 if nothing was posted."""
        return self.queued >> RECORD_TIME_SHIFT

    @property
    def posts(self):
        """Requests given to the fabric; saturates at 65535."""
        return self.queued & 0xFFFF

    @property
    def total_ns(self):
        """Nanoseconds from intake to its end."""
        return self.total >> RECORD_TIME_SHIFT

    @property
    def defers(self):
        """Times it found no credit; saturates at 65535."""
        return self.total & 0xFFFF


class _Recorder:
    """A flight recorder, mapped for reading. Its descriptor is kept for others to find it by."""

    def __init__(self, fd, size_bytes):
        self._fd = fd
        self._map = _map(fd, size_bytes, mmap.PROT_READ)
        self.header = header = RECORDER_HEADER.unpack(self._map[:RECORDER_HEADER.size])
        stride, entries = header.entry_stride, header.entries
        good = (
            (header.magic, header.abi_version) == (RECORDER_MAGIC, ABI_VERSION)
            and header.header_bytes >= RECORDER_HEADER_BYTES and header.header_bytes % 8 == 0
            and RECORD.size <= stride <= 4096 and stride % 8 == 0
            and 0 < entries <= RECORDER_ENTRIES_MAX and entries & (entries - 1) == 0
            and header.header_bytes + entries * stride <= size_bytes)
        if not good:
            raise _protocol(Detail.NONE, f"a flight recorder's header cannot be {header}")
        self._words = memoryview(self._map)[:size_bytes & ~7].cast("Q")

    def _read(self, place):
        at = (self.header.header_bytes + place * self.header.entry_stride) // 8
        words = self._words[at:at + 8].tolist()
        # The first word goes to 0 before the others change, and is stored last.
        whole = words[0] & _LOW32 and self._words[at] == words[0]
        return Record(*RECORD.unpack(_SQE_WORDS.pack(*words))) if whole else None

    def records(self):
        found = [entry for entry in map(self._read, range(self.header.entries)) if entry]
        half = 1 << 31
        if found:
            first = found[0].sequence
            found.sort(key=lambda entry: (entry.sequence - first + half) & _LOW32)
        return found

    def close(self):
        if self._fd is not None:
            self._words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = None


class Tallies:
    """What one lane, rail or session has counted.

    `counts[Tally.X]` are of ops, at rails of requests; `waits[WAIT_X]` are the defers for the lack
    of that. `wait` and `service` are Histograms of queue wait and service, of ops that have ended.
    """

    def __init__(self, words, counters, buckets):
        self.counts = words[:counters]
        self.waits = words[Tally.WAITS:Tally.WAITS + WAIT_REASONS]
        self.wait = Histogram(words[counters:counters + buckets])
        self.service = Histogram(words[counters + buckets:counters + 2 * buckets])


class Histogram:
    """How many times fell into each bucket."""

    def __init__(self, buckets):
        self.buckets = buckets

    def count(self):
        return sum(self.buckets)

    def percentile_ns(self, thousandths):
        """The longest time of the bucket that so many thousandths of all times do not exceed.

        500 for p50, 999 for p99.9; None if it is empty.
        """
        rank = max(-(-self.count() * thousandths // 1000), 1)
        for bucket, count in enumerate(self.buckets, 1):
            rank -= count
            if rank <= 0:
                octave = max(bucket // HISTOGRAM_STEPS - 1, 0)
                units = bucket - octave * HISTOGRAM_STEPS
                return (units * HISTOGRAM_UNIT_NS << octave) - 1
        return None


class Telemetry:
    """An engine's telemetry page, mapped for reading: to look at it asks nothing of the engine."""

    def __init__(self, fd, size_bytes):
        self._map = _map(fd, size_bytes, mmap.PROT_READ)
        header = TELEMETRY_HEADER.unpack(self._map[:TELEMETRY_HEADER.size])
        self.header, stride = header, header.block_stride
        blocks = header.lanes + header.rails + 1 + header.sessions
        good = (
            (header.magic, header.abi_version) == (TELEMETRY_MAGIC, ABI_VERSION)
            and header.header_bytes >= TELEMETRY_HEADER_BYTES and header.header_bytes % 8 == 0
            and header.counters >= BLOCK_COUNTERS and header.lanes >= TELEMETRY_LANES
            # Histograms of other buckets would have to be read otherwise.
            and (header.buckets, header.unit_ns, header.steps)
            == (HISTOGRAM_BUCKETS, HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS)
            and stride >= 8 * (header.counters + 2 * header.buckets) and stride % 8 == 0
            and header.header_bytes + blocks * stride <= size_bytes)
        if not good:
            self._map.close()
            raise _protocol(Detail.NONE, f"a telemetry page's header cannot be {header}")
        self._words = memoryview(self._map)[:size_bytes & ~7].cast("Q")

    def lane(self, class_, origin=0):
        """Tallies of a class's ops: of users, or with `origin` 1 of the engine's own work."""
        return self._read((class_ - 1) * 2 + origin)

    def rail(self, number):
        """Tallies of a rail's requests; 0 is the engine's own host."""
        return self._read(self._place(number, self.header.rails, "rail") + self.header.lanes)

    def gone(self):
        """Tallies of all sessions that are gone."""
        return self._read(self.header.lanes + self.header.rails)

    def sessions(self):
        """Returns a dict of Tallies, by number, of the sessions that are there."""
        first = self.header.lanes + self.header.rails + 1
        found = {n: self._read(first + n) for n in range(self.header.sessions) if self._used(n)}
        return {n: tallies for n, tallies in found.items() if tallies.counts[Tally.USES] % 2}

    def close(self):
        if self._words is not None:
            self._words.release()
            self._map.close()
            self._words = None

    # Helpers.

    def _place(self, number, count, what):
        if not 0 <= number < count:
            raise ValueError(f"{what} is {number}, but must be 0 to {count - 1}")
        return number

    def _at(self, block):
        return (self.header.header_bytes + block * self.header.block_stride) // 8

    def _used(self, session):
        first = self.header.lanes + self.header.rails + 1
        return self._words[self._at(first + session) + Tally.USES] % 2

    def _read(self, block):
        at, counters, buckets = self._at(block), self.header.counters, self.header.buckets
        for _ in range(1000):
            sequence = self._words[at]
            words = self._words[at:at + counters + 2 * buckets].tolist()
            # Odd while it is written, and another number afterwards.
            if sequence % 2 == 0 and self._words[at] == sequence:
                break
        # What is being written each time is taken as it is: its engine was killed meanwhile.
        return Tallies(words, counters, buckets)


class Session:
    """A connection to an engine; it owns rings, regions and imports, which end with it.

    May be shared by threads. Every call raises VerbringError if the engine refuses it, and
    EngineGone or SessionEnded if there is nobody to answer.
    """

    def __init__(self, path, name="python", *, recorder=True):
        """Connects to the engine's socket; `name` (at most 32 bytes) is what its logs say.

        With `recorder`, and if the engine keeps flight recorders, `last_records` tells what became
        of ops; without, nothing is kept of them, and that costs nothing.
        """
        self._tag = 0
        self._recorder = None
        self._lock = threading.Lock()
        self._owned = []
        self._pidfd = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(None)
            self._socket.connect(os.fspath(path))
            self.hello, (self._pidfd,) = self._call(
                Kind.HELLO, HELLO, HELLO_REPLY, brings=1, version_min=ABI_VERSION,
                version_max=ABI_VERSION, name=_padded(name, 32))
            if self.hello.version != ABI_VERSION or self.hello.features != 0:
                raise _protocol(Detail.VERSION, f"the engine answered HELLO with {self.hello}")
            if recorder and self.probe().features & FEATURE_RECORDER:
                self._recorder = self._own_recorder()
        except BaseException:
            self.close()
            raise

    def ring(self, sq_entries=64, cq_entries=None, *, fenceless=not _TSO, spin_us=50):
        """Makes a Ring; entry counts are powers of two from 2 to 32768.

        `cq_entries`, also the most ops in flight, is twice `sq_entries` unless given. `fenceless`
        rings the engine's bell at every publication. `wait` looks for `spin_us` microseconds
        before it sleeps.
        """
        cq_entries = min(2 * sq_entries, ENTRIES_MAX) if cq_entries is None else cq_entries
        reply, descriptors = self._call(
            Kind.RING, RING_REQUEST, RING_REPLY, brings=3, sq_entries=sq_entries,
            cq_entries=cq_entries, flags=RING_FENCELESS if fenceless else 0)
        try:
            segment = _Segment(descriptors[0], reply.segment_bytes)
            if (segment.header.ring, segment.header.boot_id) != (reply.ring, self.hello.boot_id):
                raise _protocol(Detail.RING, "the segment is not of the ring that was asked for")
            bells = [socket.socket(fileno=os.dup(fd)) for fd in descriptors[1:]]
        finally:
            _close(descriptors)
        return self._go_live(Ring(self, reply.ring, segment, *bells, fenceless, spin_us))

    def region(self, size_bytes, *, memfd=False, huge=False):
        """Makes a Region of `size_bytes`, zeroed.

        The engine makes the memory (on huge pages if `huge` and there are some: see
        `Region.huge`), or, with `memfd`, this process does; then the size is of whole pages.
        """
        if memfd:
            return self._offer(size_bytes)
        reply, descriptors = self._call(
            Kind.REGION, REGION_REQUEST, REGION_REPLY, brings=1, source=REGION_ALLOCATED,
            flags=REGION_HUGE if huge else 0, bytes=size_bytes)
        try:
            mapping = _map(descriptors[0], reply.bytes)
        finally:
            _close(descriptors)
        huge = reply.flags & REGION_HUGE != 0
        return self._go_live(Region(self, reply.region, mapping, reply.bytes, huge))

    def connect_peer(self, url, require=0):
        """Connects our engine to the one at `url`; returns a Peer, which imports from there.

        `url` is `unix:` and the absolute path of its socket on this host, or `verbring://HOST:PORT`
        on any, if both engines have the same key; `require` is the FABRIC_* that must carry ops to
        it (0: any). Raises VerbringError: EOPNOTSUPP/REQUIRE if no such fabric is in use
        between the two, ENETUNREACH, ETIMEDOUT or EHOSTDOWN if nobody answers there.
        """
        reply, _ = self._call(
            Kind.CONNECT, CONNECT, CONNECT_REPLY, require=require, url=_padded(url, URL_BYTES))
        bounded = 0 < reply.peer and reply.fabric < 256 and reply.rail < 256
        if not bounded or require not in (0, reply.fabric):
            raise _protocol(Detail.PEER, f"the engine answered CONNECT with {reply}")
        return Peer(self, reply.peer, reply.fabric, reply.rail)

    def import_region(self, name, secret, rights=0, uid=UID_OWN, peer=None):
        """Takes up an export; returns an Import. `rights` 0 takes all that are offered.

        With `peer`, from that engine; `uid` is the exporter's there. Raises VerbringError:
        ENOENT/NAME, EACCES/SECRET, EACCES/RIGHTS, EHOSTDOWN/PEER.
        """
        if peer is not None and peer._session is not self:
            raise ValueError("the peer is another session's")
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
        reply, _ = self._call(
            Kind.IMPORT, IMPORT, IMPORT_REPLY, rights=rights, uid=uid,
            name=_padded(name, NAME_BYTES), secret=bytes(secret),
            peer=0 if peer is None else peer.number)
        remote = Import(self, reply.region, reply.rights, reply.bytes)
        self._owned.append(remote)
        return remote

    def probe(self):
        """Returns what this engine serves: bits of opcodes, flags and fabrics, and limits."""
        return self._call(Kind.PROBE, PROBE, PROBE_REPLY)[0]

    def stats(self, scope=STATS_SESSION):
        """Returns a dict of Counter to number, for this session or (STATS_ENGINE) the engine."""
        reply, _ = self._call(Kind.STATS, STATS, STATS_REPLY, scope=scope)
        return dict(zip(Counter, reply.counters))

    def cancel(self, ring, target, by=CANCEL_BY_NUMBER):
        """Takes back a queued op, also while the ring is full; returns its record.

        Raises VerbringError: ENOENT if there is no such op, EALREADY if it was posted.
        """
        reply, _ = self._call(
            Kind.CANCEL, OP_QUERY, CANCEL_REPLY, ring=ring.number, by=by, target=target)
        return reply.record

    def why(self, ring, target, by=CANCEL_BY_NUMBER):
        """Returns where an op in flight is (STATE_*) and what it waits for (WAIT_*).

        By number also of an SQE that is not taken yet. Raises VerbringError ENOENT for what is
        over or was never pushed.
        """
        return self._call(
            Kind.WHY, OP_QUERY, WHY_REPLY, ring=ring.number, by=by, target=target)[0]

    def last_records(self, count=None):
        """Returns a Record each of the ops that ended last, at most `count`, oldest first.

        Also when the engine is dead; not after `close`. NOPs, and SQEs that were refused, leave
        none.
        """
        records = self._recorder.records() if self._recorder else []
        return records if count is None else records[max(len(records) - count, 0):]

    def find_record(self, record):
        """Returns what is known of the op with this record; None if not over, or overwritten."""
        found = (entry for entry in self.last_records() if entry.record == record)
        return next(found, None)

    def telemetry(self):
        """Maps the engine's telemetry page, a Telemetry: for root and the engine's own uid."""
        if not self.probe().features & FEATURE_TELEMETRY:
            raise VerbringError(
                Errno.EOPNOTSUPP, Detail.MESSAGE, "this engine has no telemetry page")
        reply, (fd,) = self._call(Kind.TELEMETRY, TELEMETRY_REQUEST, TELEMETRY_REPLY, brings=1)
        try:
            telemetry = Telemetry(fd, reply.bytes)
        finally:
            os.close(fd)
        if telemetry.header.boot_id != self.hello.boot_id:
            telemetry.close()
            raise _protocol(Detail.NONE, "another engine's telemetry page")
        return telemetry

    def peers(self):
        """Returns a PeerReport each of our engine's connections, and of the last that failed.

        For root and the engine's own uid.
        """
        if not self.probe().features & FEATURE_PEERS:
            raise VerbringError(
                Errno.EOPNOTSUPP, Detail.MESSAGE, "this engine does not tell of other engines")
        found, at = [], 0
        while at <= 0xFFFF_FFFF:
            try:
                reply, _ = self._call(Kind.PEERS, PEERS_REQUEST, PEERS_REPLY, at=at)
            except (EngineGone, SessionEnded):
                raise
            except VerbringError as error:
                if error.errno == Errno.ENOENT:
                    break
                raise
            if reply.at < at or reply.rails_count > PEER_RAILS_MAX:
                raise _protocol(Detail.PEER, "a peer that cannot be")
            found.append(PeerReport(reply))
            at = reply.at + 1
        return found

    def cards(self):
        """Returns a CardReport each of the cards that our engine reaches others by, in order.

        For root and the engine's own uid.
        """
        if not self.probe().features & FEATURE_CARDS:
            raise VerbringError(
                Errno.EOPNOTSUPP, Detail.MESSAGE, "this engine does not tell of its cards")
        found = []
        for card in range(256):
            try:
                reply, _ = self._call(Kind.CARDS, CARDS_REQUEST, CARDS_REPLY, card=card)
            except (EngineGone, SessionEnded):
                raise
            except VerbringError as error:
                if error.errno == Errno.ENOENT:
                    break
                raise
            if reply.card != card or reply.addresses_count > CARD_ADDRESSES_MAX:
                raise _protocol(Detail.MESSAGE, "a card that cannot be")
            found.append(CardReport(reply))
        return found

    def fileno(self):
        """Returns the engine's pidfd: readable once the engine is dead."""
        return self._pidfd

    def over(self):
        """True if the engine is dead or has ended this session; never waits."""
        poller = select.poll()
        self._watch(poller)
        return bool(poller.poll(0))

    def close(self):
        """Ends the session with all it owns: rings and `Region.memory` cannot be used any more."""
        self._socket.close()
        for thing in self._owned:
            thing._unmap()
        self._owned.clear()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Helpers.

    def _own_recorder(self):
        """Asks for this session's flight recorder; None if the engine refuses."""
        try:
            reply, (fd,) = self._call(
                Kind.RECORDER, RECORDER_REQUEST, RECORDER_REPLY, brings=1, session=SESSION_OWN)
        except (EngineGone, SessionEnded):
            raise
        except VerbringError as error:
            # What ends the session is not the engine's no.
            if error.errno == Errno.EPROTO:
                raise
            return None
        try:
            return _Recorder(fd, reply.bytes)
        except BaseException:
            os.close(fd)
            raise

    def _offer(self, size_bytes):
        fd = os.memfd_create("verbring-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
            # Mapped before it is sent: the engine seals it against any further writable map.
            mapping = _map(fd, size_bytes)
            try:
                reply, _ = self._call(
                    Kind.REGION, REGION_REQUEST, REGION_REPLY, sends=[fd], source=REGION_MEMFD,
                    bytes=size_bytes)
            except BaseException:
                mapping.close()
                raise
        finally:
            os.close(fd)
        region = Region(self, reply.region, mapping, size_bytes, False)
        self._owned.append(region)
        return region

    def _go_live(self, thing):
        self._owned.append(thing)
        try:
            self._call(Kind.MAPPED, MAPPED, REPLY_HEAD, object=thing._kind, id=thing._number)
        except BaseException:
            self._owned.remove(thing)
            thing._unmap()
            raise
        return thing

    def _give_back(self, thing):
        if thing not in self._owned:
            return
        self._owned.remove(thing)
        try:
            self._call(Kind.RELEASE, RELEASE, REPLY_HEAD, object=thing._kind, id=thing._number)
        except (EngineGone, SessionEnded):
            # Then it is given back already.
            pass
        finally:
            thing._unmap()

    def _watch(self, poller):
        """Makes `poller` report the session's end; replies to another thread do not count."""
        if self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
        poller.register(self._socket, select.POLLRDHUP)

    def _ended(self):
        """Returns the error for a session with nobody at its other end."""
        poller = select.poll()
        if self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
            if poller.poll(_DEATH_WAIT_MS):
                return EngineGone(Errno.ESHUTDOWN, Detail.CLOSING, "the engine is dead")
        return SessionEnded(Errno.ESHUTDOWN, Detail.CLOSING, "the engine has ended this session")

    def _call(self, kind, layout, reply_layout, *, brings=0, sends=(), **fields):
        """Sends a request; returns its reply and the `brings` descriptors that came along."""
        with self._lock:
            self._tag += 1
            head = HEAD.pack(kind=kind, bytes=layout.size, tag=self._tag)
            attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sends))]
            try:
                self._socket.sendmsg([layout.pack(head=head, **fields)], attached if sends else (),
                                     socket.MSG_NOSIGNAL)
                data, descriptors = self._receive(kind)
            except ConnectionError as error:
                raise self._ended() from error
        _close(descriptors[brings:])
        descriptors = descriptors[:brings]
        reply = REPLY_HEAD.unpack(data)
        try:
            if reply.status < 0:
                text = data[REPLY_HEAD.size:].decode(errors="replace")
                raise VerbringError(-reply.status, reply.detail, text)
            if len(data) != reply_layout.size or len(descriptors) < brings:
                raise _protocol(Detail.MESSAGE, f"a reply to {kind.name} of {len(data)} bytes and "
                                f"{len(descriptors)} descriptors")
            return reply_layout.unpack(data), descriptors
        except BaseException:
            _close(descriptors)
            raise

    def _receive(self, kind):
        """Receives the reply to the newest request, with all its descriptors."""
        while True:
            data, ancillary, flags, _ = self._socket.recvmsg(
                MESSAGE_BYTES_MAX + 1, socket.CMSG_SPACE(4 * _DESCRIPTORS_MAX),
                socket.MSG_CMSG_CLOEXEC)
            descriptors = array.array("i")
            for level, what, rights in ancillary:
                if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(rights[:len(rights) // 4 * 4])
            if not data:
                _close(descriptors)
                raise self._ended()
            if len(data) >= REPLY_HEAD.size:
                head = REPLY_HEAD.unpack(data)
                # The length in the head is the last word on the message being whole.
                if (head.kind, head.bytes, head.tag) == (kind | REPLY, len(data), self._tag):
                    return data, list(descriptors)
            _close(descriptors)
            # A call broken off by a signal handler's exception leaves its reply behind.
            if len(data) < REPLY_HEAD.size or not head.tag < self._tag:
                raise _protocol(Detail.MESSAGE, f"not a reply to {kind.name}: {data[:32].hex()}")
