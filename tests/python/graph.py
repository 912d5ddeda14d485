"""Graphs of the Python client through a real engine, whose socket is the argument.

A chain by numbers and one by links, a diamond, failures that travel and those that do not, DRAIN, a
join of many, ops that are folded and one that is replaced. What comes first is of the lowest class
and what comes after it of the highest, so that an edge that is not heeded shows in the bytes.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))

import verbring as vr  # noqa: E402

PLACE = 32768
DEP_FAILED = vr.CQE_DEP_FAILED | vr.CQE_RETRYABLE


class Graphs:
    def __init__(self, session):
        self.session = session
        self.region = session.region(65536)
        name = f"graph.py-{os.getpid()}"
        self.remote = session.import_region(name, self.region.export(name))
        self.ring = session.ring(512, 512)
        self.words = self.region.memory.cast("Q")

    def write(self, at, place, value, **how):
        self.words[at] = value
        return self.ring.write(self.region, self.remote, 8, local_offset=at * 8,
                               remote_offset=PLACE + place * 8, class_=vr.Class.LOW, **how)

    def read(self, at, place, **how):
        how = dict(class_=vr.Class.HIGH) | how
        return self.ring.read(self.region, self.remote, 8, local_offset=at * 8,
                              remote_offset=PLACE + place * 8, **how)

    def add(self, at, place, addend, **how):
        return self.ring.fetch_add(self.region, self.remote, addend, local_offset=at * 8,
                                   remote_offset=PLACE + place * 8, **how)

    def bad(self, at, **how):
        """Refused: its remote offset is no multiple of 8."""
        return self.ring.fetch_add(self.region, self.remote, 1, local_offset=at * 8,
                                   remote_offset=PLACE + 3, **how)

    def finish(self, count):
        """Returns so many completions by their numbers."""
        ends = {}
        while len(ends) < count:
            more = self.ring.wait(timeout_s=60)
            assert more, "in time"
            ends.update((completion.user_data, completion) for completion in more)
        assert len(ends) == count and not self.ring.reap()
        return ends

    def chains(self):
        for value in range(50):
            a = self.write(0, 0, value)
            b = self.read(1, 0, after=a)
            self.write(2, 0, 1000 + value, after=[b], link=True)
            self.read(3, 0)
            self.finish(4)
            assert (self.words[1], self.words[3]) == (value, 1000 + value)

    def diamonds(self):
        for value in range(50):
            top = self.write(0, 0, value)
            left = self.add(1, 0, 1 << 20, after=top)
            right = self.add(2, 0, 1 << 40, after=top, class_=vr.Class.LOW)
            self.read(3, 0, after=[left, right])
            self.finish(4)
            assert self.words[3] == value + (1 << 20) + (1 << 40)

    def failures(self):
        bad = self.bad(0)
        child = self.write(1, 0, 1, after=bad)
        grandchild = self.write(2, 0, 2, after=child)
        ordered = self.write(3, 0, 3, after_end=bad)
        self.read(4, 0, after=ordered, after_end=child)
        ends = self.finish(5)
        assert (ends[bad].res, ends[bad].dep_failed) == (-vr.Errno.EINVAL, False)
        for number in (child, grandchild):
            self.failed_behind(ends[number])
        assert ends[ordered].ok and self.words[4] == 3
        self.bad(0, link=True)
        child = self.write(1, 0, 1, hard_link=True)
        self.read(4, 0)
        self.failed_behind(self.finish(3)[child])
        assert self.words[4] == 3

    def failed_behind(self, end):
        told = end.res, end.detail, end.flags
        assert told == (-vr.Errno.ECANCELED, vr.Detail.REMOTE_OFFSET, DEP_FAILED), end
        record = self.session.find_record(end.record)
        assert record.cause == vr.Errno.EINVAL, record

    def drains(self):
        for place in range(50):
            self.write(place, place, 7000 + place)
        self.ring.nop(drain=True)
        for place in range(50):
            self.read(100 + place, place)
        self.finish(101)
        assert list(self.words[100:150]) == list(range(7000, 7050))

    def joins(self):
        writes = [self.write(place, place, 9000 + place) for place in range(150)]
        join = self.ring.join(writes)
        assert join - writes[-1] == 17
        self.read(200, 149, after=join)
        ends = self.finish(152)
        assert ends[join].res == 0 and self.words[200] == 9149
        # Should one fail, each join on the way to the last fails as well, and says so.
        ops = [self.bad(0) if place == 5 else self.write(place, place, 0) for place in range(20)]
        join = self.ring.join(ops)
        ends = self.finish(22)
        for number in (join, ops[-1] + 1):
            self.failed_behind(ends[number])

    def limits(self):
        ops = [self.ring.nop() for _ in range(3)]
        for refused, text in (
                (lambda: self.ring.nop(after=ops), "3 edges, and an op has 2 at most"),
                (lambda: self.ring.nop(after=ops[2] + 1), "never pushed"),
                (lambda: self.ring.nop(after=ops[2] - 32767), "32768 before"),
                (lambda: self.ring.join(ops * 3000), "the SQ has 512 entries")):
            try:
                refused()
            except ValueError as error:
                assert text in str(error), error
            else:
                raise AssertionError(text)
        self.finish(3)

    def folds(self):
        hits = self.session.stats()[vr.Counter.FOLD_HIT]
        reads = [self.read(0, 0, class_=vr.Class.MEDIUM, coalesce=True) for _ in range(6)]
        ends = self.finish(6)
        assert [ends[number].coalesced for number in reads] == [False] + [True] * 5, ends
        assert len({end.record for end in ends.values()}) == 1, ends
        assert all(end.res == 8 for end in ends.values()), ends
        assert self.session.stats()[vr.Counter.FOLD_HIT] - hits == 5
        # Of values for one place the last one is carried.
        writes = [self.write(at, 0, 40 + at, supersede=5) for at in range(3)]
        ends = self.finish(3)
        assert [ends[number].coalesced for number in writes] == [True, True, False], ends
        assert ends[writes[0]].record == ends[writes[2]].record
        self.read(9, 0)
        self.finish(1)
        assert self.words[9] == 42


def main():
    with vr.Session(sys.argv[1], name="graph.py") as session:
        graphs = Graphs(session)
        # Far enough from the ring's first op to be too far from it.
        for _ in range(33000 // 500):
            for _ in range(500):
                graphs.ring.nop(flags=vr.SQE_SKIP_SUCCESS)
            graphs.ring.nop()
            graphs.finish(1)
        for part in (graphs.chains, graphs.diamonds, graphs.failures, graphs.drains, graphs.joins,
                     graphs.limits, graphs.folds):
            part()
        graphs.words.release()
    print("graphs held")


if __name__ == "__main__":
    main()
