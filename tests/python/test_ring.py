"""The Python client against a small engine in Python: cursors, bells, verdicts, control messages.

What is claimed: every entry is where the ABI says, whatever the strides and however the cursors
wrap; no word of the engine's is believed that cannot be; nobody sleeps on work; whatever becomes of
the engine, calls end, completions that are there come first, and the verdict follows the fate
table. Cursors start three short of 2^32 throughout.

    python3 tests/python/test_ring.py
"""

import contextlib
import errno
import gc
import ipaddress
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "examples" / "python")]

import abi as abi_list  # noqa: E402
import fake  # noqa: E402
import verbring as vr  # noqa: E402

NEVER_S = 60


def open_descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class WithEngine(unittest.TestCase):
    """Runs a FakeEngine on a thread, whose pidfd is that of a process we can kill."""

    def start(self, **options):
        options.setdefault("by_hand", True)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "socket")
        # It ends with its input, so it never outlives this process.
        self.body = body = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.addCleanup(body.wait)
        self.addCleanup(body.stdin.close)
        self.engine = engine = fake.FakeEngine(path, pid=body.pid, **options)
        self.addCleanup(engine.close)
        self.thread = thread = threading.Thread(target=engine.serve)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(engine.stop)
        self.path = path
        self.session = vr.Session(path, recorder="recorder" in options)
        self.addCleanup(self.session.close)
        return self.session

    def ring(self, sq_entries=4, cq_entries=8, spin_us=50, fenceless=False, **options):
        """Starts an engine and makes a ring; returns both ends."""
        ring = self.start(**options).ring(sq_entries, cq_entries, spin_us=spin_us,
                                          fenceless=fenceless)
        return ring, self.engine.rings[0]

    def stop_serving(self):
        self.engine.stop()
        self.thread.join()

    def kill(self):
        """The engine dies: its sockets close, its pidfd tells."""
        self.stop_serving()
        self.engine.hang_up()
        self.body.kill()
        self.body.wait()


class Table(unittest.TestCase):
    def test_the_client_knows_the_frozen_abi(self):
        frozen = (ROOT / "tests" / "abi.table").read_text().split("\n")
        ours = [f"{name} {value}" for name, value in abi_list.table()]
        self.assertEqual(ours, [line for line in frozen if line])


class Entries(WithEngine):
    # Written out once more, so that the client's own format cannot vouch for itself.
    SQE = struct.Struct("<BBHHHQIIQQIIQQ")

    def test_every_op_is_laid_out_as_the_abi_says(self):
        ring, engine_end = self.ring()
        region, remote = self.session.region(8192), vr.Import(self.session, 77, 15, 8192)
        both = dict(local_offset=64, remote_offset=128)
        rich = dict(flags=vr.SQE_NO_MERGE, class_=vr.Class.HIGH, user_data=9, deadline_us=11)
        pages = [(1, 2), (3, 4)]
        flags = vr.SQE_NO_MERGE | vr.SQE_NOTIFY
        here = region.id
        cases = (
            (lambda: ring.nop(), (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
            (lambda: ring.write(region, remote, 5, notify=7, tag=13, **both, **rich),
             (1, 1, flags, 0, 0, 9, here, 77, 64, 128, 5, 7, 11, 13)),
            (lambda: ring.read(region, remote, 5, **both),
             (2, 0, 0, 0, 0, 2, here, 77, 64, 128, 5, 0, 0, 0)),
            (lambda: ring.writev(region, remote, 5, pages, list_offset=64, deadline_us=11),
             (3, 0, 0, 0, 0, 3, here, 77, 64, 0, 5, 0, 2 << 32 | 11, 0)),
            (lambda: ring.readv(region, remote, 5, pages, list_offset=64, remote_offset=128),
             (4, 0, 0, 0, 0, 4, here, 77, 64, 128, 5, 0, 2 << 32, 0)),
            (lambda: ring.fetch_add(region, remote, 1 << 63, notify=7, **both, **rich),
             (5, 1, flags, 0, 0, 9, here, 77, 64, 128, 11, 7, 1 << 63, 0)),
            (lambda: ring.cmp_swap(region, remote, 21, 22, **both),
             (6, 0, 0, 0, 0, 6, here, 77, 64, 128, 0, 0, 21, 22)),
            (lambda: ring.cancel(3), (8, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 3, 1)),
            (lambda: ring.flush(region, revoke=True),
             (9, 0, vr.SQE_REVOKE, 0, 0, 8, here, 0, 0, 0, 0, 0, 0, 0)),
            (lambda: ring.arm(region, 6), (10, 0, 0, 0, 0, 9, here, 0, 0, 0, 6, 0, 0, 0)),
            (lambda: ring.read(region, remote, 5, after=9, after_end=[0], coalesce=True),
             (2, 0, vr.SQE_COALESCE, 1, 0x800A, 10, here, 77, 0, 0, 5, 0, 0, 0)),
            (lambda: ring.write(region, remote, 5, supersede=1 << 63, link=True, notify=4),
             (1, 0, vr.SQE_SUPERSEDE | vr.SQE_LINK | vr.SQE_NOTIFY, 0, 0, 11, here, 77, 0, 0, 5, 4,
              0, 1 << 63)),
            (lambda: ring.cancel(3, after=[11, 11], hard_link=True),
             (8, 0, vr.SQE_HARDLINK, 1, 1, 12, 0, 0, 0, 0, 0, 0, 3, 1)),
            (lambda: ring.nop(drain=True, flags=vr.SQE_SKIP_SUCCESS, edges=(0, 2), after=0),
             (0, 0, vr.SQE_DRAIN | vr.SQE_SKIP_SUCCESS, 2, 13, 13, 0, 0, 0, 0, 0, 0, 0, 0)),
            (lambda: ring.join([13, 12, 11, 10, 9, 8], after_end=[7, 6, 5, 0], link=True),
             (7, 0, vr.SQE_LINK, 1, 2, 14, 0, 0, 0, 0, 0, 0, 0x0006_0005_0004_0003,
              0x800E_8009_8008_8007)),
            (lambda: ring.join([]), (7, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0)),
            (lambda: ring.push(255, edges=(1, 2), user_data=1 << 64 - 1),
             (255, 0, 0, 1, 2, 1 << 64 - 1, 0, 0, 0, 0, 0, 0, 0, 0)),
        )
        for number, (push, words) in enumerate(cases):
            with self.subTest(number=number):
                self.assertEqual(push(), number)
                self.assertEqual(ring.submit(), 1)
                self.assertEqual(engine_end.slot(), self.SQE.pack(*words))
                engine_end.take()
                engine_end.push()
                engine_end.publish()
                ring.reap()
        self.assertEqual(bytes(region.memory[64:96]), struct.pack("<4Q", 1, 2, 3, 4))

    def test_a_completion_says_how_it_ended_with_others(self):
        ring, engine_end = self.ring()
        ring.nop()
        ring.nop()
        ring.submit()
        both = vr.CQE_DEP_FAILED | vr.CQE_RETRYABLE
        for fields in (dict(res=5, flags=vr.CQE_COALESCED),
                       dict(res=-errno.ECANCELED, flags=both, detail=vr.Detail.DEADLINE)):
            engine_end.take()
            engine_end.push(**fields)
        engine_end.publish()
        folded, failed = ring.reap()
        self.assertEqual((folded.coalesced, folded.dep_failed), (True, False))
        self.assertEqual((failed.coalesced, failed.dep_failed), (False, True))
        with self.assertRaises(vr.VerbringError) as caught:
            failed.check()
        self.assertIn("an op before it failed, retryable", str(caught.exception))

    def test_a_completion_is_read_as_it_was_written(self):
        ring, engine_end = self.ring()
        ring.nop(user_data=5)
        ring.submit()
        engine_end.take()
        fields = dict(user_data=1 << 63, record=2 << 60, res=-(1 << 31), flags=0xFFFF,
                      detail=0x0102, queued=(1 << 32) - 1, service=3)
        engine_end.push(**fields)
        engine_end.publish()
        (completion,) = ring.wait()
        self.assertEqual(completion._asdict(), fields)
        self.assertEqual((completion.fabric, completion.service_ns), (1, 48))
        self.assertTrue(completion.notify and completion.more and not completion.ok)

    def test_check_names_errno_and_field(self):
        done = vr.Completion(1, 2, 4096, 0, 256, 0, 0)
        self.assertIs(done.check(), done)
        bad = vr.Completion(1, 0, -vr.Errno.EINVAL, 0, vr.Detail.REMOTE_OFFSET, 0, 0)
        with self.assertRaises(vr.VerbringError) as caught:
            bad.check()
        self.assertEqual((caught.exception.errno, caught.exception.detail_name),
                         (errno.EINVAL, "REMOTE_OFFSET"))
        self.assertIn("EINVAL (REMOTE_OFFSET)", str(caught.exception))

    def test_a_value_that_does_not_fit_pushes_nothing(self):
        ring, engine_end = self.ring()
        region = self.session.region(4096)
        for push in (lambda: ring.nop(user_data=1 << 64), lambda: ring.nop(class_=256),
                     lambda: ring.arm(region, -1)):
            self.assertRaises(struct.error, push)
        self.assertRaises(ValueError, ring.write, region, region, 1, deadline_us=1 << 32)
        self.assertEqual((ring.room(), ring.submit(), engine_end.waiting()), (4, 0, 0))


class Cursors(WithEngine):
    def exercise(self, ring, engine_end, rounds):
        """Keeps the ring between empty and full, across the wrap, and compares every entry."""
        pushed = popped = 0
        for turn in range(rounds):
            for _ in range(turn % (ring.room() + 1)):
                self.assertEqual(ring.nop(user_data=pushed * 3), pushed)
                pushed += 1
            ring.submit()
            for _ in range(min(engine_end.waiting(), engine_end.room())):
                number, sqe = engine_end.take()
                self.assertEqual(sqe.user_data, number * 3)
                engine_end.push(user_data=sqe.user_data, record=number + 1, res=number)
            engine_end.publish()
            if turn % 3:
                for completion in ring.reap(limit=turn % 5):
                    self.assertEqual(completion[:3], (popped * 3, popped + 1, popped))
                    popped += 1
                head = engine_end.load(vr.AT_CQ_HEAD)
                self.assertEqual(head, (0xFFFF_FFFD + popped) & 0xFFFF_FFFF)
        self.assertGreater(popped, 3 * ring.cq_entries)

    def test_entries_survive_the_wrap(self):
        self.exercise(*self.ring(), rounds=200)

    def test_strides_of_a_later_abi_are_used(self):
        self.exercise(*self.ring(strides=(128, 72, 40)), rounds=200)

    def test_smallest_ring(self):
        self.exercise(*self.ring(2, 2), rounds=200)

    def test_nothing_is_seen_before_it_is_published(self):
        ring, engine_end = self.ring()
        ring.nop()
        ring.nop()
        self.assertEqual(engine_end.waiting(), 0)
        self.assertEqual((ring.submit(), engine_end.waiting()), (2, 2))
        self.assertEqual((ring.submit(), engine_end.waiting()), (0, 2))

    def test_a_full_sq_says_so_until_the_engine_takes_one(self):
        ring, engine_end = self.ring()
        for _ in range(4):
            ring.nop()
        self.assertRaises(vr.RingFull, ring.nop)
        ring.submit()
        self.assertRaises(vr.RingFull, ring.nop)
        engine_end.take()
        self.assertEqual(ring.nop(), 4)
        self.assertRaises(vr.RingFull, ring.nop)

    def test_a_head_that_cannot_be_frees_no_slot(self):
        ring, engine_end = self.ring()
        for _ in range(4):
            ring.nop()
        ring.submit()
        for head in (0xFFFF_FFFC, 0xFFFF_FFFD + 5 & 0xFFFF_FFFF, 0x8000_0000):
            engine_end.store(vr.AT_SQ_HEAD, head)
            self.assertRaises(vr.RingFull, ring.nop)

    def test_a_tail_that_cannot_be_faults_the_ring(self):
        ring, engine_end = self.ring()
        ring.nop()
        ring.submit()
        engine_end.take()
        engine_end.push()
        engine_end.publish()
        ring.reap()
        ring.nop()
        for ahead in (9, 0x8000_0000, -1):
            engine_end.store(vr.AT_CQ_TAIL, 0xFFFF_FFFE + ahead)
            for call in (ring.reap, ring.wait, lambda: ring.verdict(0), ring.arm_bell):
                with self.assertRaises(vr.RingFaulted) as caught:
                    call()
                self.assertEqual(caught.exception.reason, 0)
        engine_end.store(vr.AT_CQ_TAIL, 0xFFFF_FFFE + 8)
        self.assertEqual(len(ring.reap()), 8, "a CQ that is full to the last slot is no fault")

    def test_a_tail_that_runs_back_faults_the_ring(self):
        ring, engine_end = self.ring()
        engine_end.store(vr.AT_CQ_TAIL, 0xFFFF_FFFD + 5)
        self.assertEqual(len(ring.reap(limit=2)), 2)
        engine_end.store(vr.AT_CQ_TAIL, 0xFFFF_FFFD + 4)
        self.assertRaises(vr.RingFaulted, ring.reap)

    def test_headers_that_cannot_be_are_refused(self):
        for field, value in (
                ("magic", vr.MAGIC ^ 1), ("abi_version", 2), ("features", 1), ("sq_entries", 3),
                ("cq_entries", 1), ("cq_entries", 65536), ("sq_entries", 0), ("sqe_stride", 56),
                ("sqe_stride", 68), ("cqe_stride", 24), ("fate_stride", 8), ("fate_stride", 8192),
                ("sq_offset", 4088), ("cq_offset", 4100), ("fate_offset", 1 << 63),
                ("fate_offset", 16384 - 8), ("ring", 1), ("boot_id", (0, 0))):
            with self.subTest(field=field, value=value):
                session = self.start(**{field: value})
                before = open_descriptors()
                with self.assertRaises(vr.VerbringError) as caught:
                    session.ring(4, 8)
                self.assertEqual(caught.exception.errno, errno.EPROTO)
                if field not in ("ring", "boot_id"):
                    self.assertIn(field, str(caught.exception))
                caught = None
                # The fake engine made a ring of its own: a memfd, its map, and four bells.
                self.assertEqual(open_descriptors() - before, 6)


class Bells(WithEngine):
    def test_only_a_sleeping_engine_is_rung(self):
        ring, engine_end = self.ring()
        ring.nop()
        ring.submit()
        self.assertEqual(engine_end.rung(), 0)
        engine_end.take()
        self.assertTrue(engine_end.fall_asleep())
        ring.nop()
        self.assertEqual(engine_end.rung(), 0, "not before publication")
        ring.submit()
        self.assertEqual(engine_end.rung(), 1)
        ring.submit()
        self.assertEqual(engine_end.rung(), 0, "nothing was published")

    def test_each_handshake_stores_fences_and_looks(self):
        """The order of steps, which no run on a strongly ordered machine can be sure to miss."""
        ring, _ = self.ring()
        steps = []

        class Words:
            def __setitem__(_, at, value, words=ring._words):
                steps.append(("store", at * 4))
                words[at] = value

            def __getitem__(_, at, words=ring._words):
                steps.append(("load", at * 4))
                return words[at]

        class Lock:
            def __enter__(_):
                steps.append("take")

            def __exit__(_, *error):
                steps.append("release")

        ring._words, ring._fence_lock = Words(), Lock()
        fence = ["take", "release"]
        ring.nop()
        ring.submit()
        self.assertEqual(
            steps, [("store", vr.AT_SQ_TAIL), *fence, ("load", vr.AT_ENGINE_FLAGS)])
        steps.clear()
        ring.arm_bell()
        self.assertEqual(steps, [("store", vr.AT_BELL_AT), *fence, ("load", vr.AT_CQ_TAIL)])

    def test_a_fenceless_ring_says_so_and_is_rung_every_time(self):
        ring, engine_end = self.ring(fenceless=True)
        ask = vr.RING_REQUEST.unpack(self.engine.requests[1])
        self.assertEqual(ask, (4, 8, vr.RING_FENCELESS))
        for _ in range(3):
            ring.nop()
            ring.submit()
            self.assertEqual(engine_end.rung(), 1)

    def test_a_full_bell_has_been_rung(self):
        ring, engine_end = self.ring(fenceless=True)
        bell = ring._sq_bell
        with contextlib.suppress(BlockingIOError):
            while True:
                bell.send(bytes(65536), socket.MSG_DONTWAIT)
        ring.nop()
        self.assertEqual((ring.submit(), engine_end.waiting()), (1, 1))

    def test_a_publication_broken_off_is_made_good(self):
        ring, engine_end = self.ring()
        engine_end.fall_asleep()
        ring.nop()
        bell, ring._sq_bell = ring._sq_bell, None
        self.assertRaises(AttributeError, ring.submit)
        ring._sq_bell = bell
        self.assertEqual((ring.submit(), engine_end.waiting(), engine_end.rung()), (1, 1, 1))

    def complete_when_asked(self, engine_end, steps):
        """On a thread: once the client asks for its bell, takes and completes ops step by step.

        Returns the list of whether each step rang.
        """
        mute, due = engine_end.load(vr.AT_BELL_AT), []

        def run():
            while engine_end.load(vr.AT_BELL_AT) == mute:
                os.sched_yield()
            for count in steps:
                for _ in range(count):
                    engine_end.push(user_data=engine_end.take()[0])
                due.append(engine_end.publish())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, due

    def test_wait_sleeps_until_enough_are_there(self):
        for fenceless in (False, True):
            with self.subTest(fenceless=fenceless):
                ring, engine_end = self.ring(spin_us=0, fenceless=fenceless)
                for _ in range(4):
                    ring.nop()
                ring.submit()
                thread, due = self.complete_when_asked(engine_end, [1, 1, 2])
                self.assertEqual([c.user_data for c in ring.wait(3, NEVER_S)], [0, 1, 2, 3])
                thread.join()
                self.assertEqual(due, [False, False, True])

    def test_a_stale_bell_does_not_end_a_wait(self):
        ring, engine_end = self.ring(spin_us=0)
        ring.nop()
        engine_end.ring_client()
        engine_end.ring_client()
        self.assertEqual(ring.wait(timeout_s=0.05), [])
        self.assertEqual(engine_end.waiting(), 1, "wait publishes what was pushed")

    def test_a_wait_that_times_out_returns_what_is_there(self):
        ring, engine_end = self.ring()
        for _ in range(3):
            ring.nop()
        self.assertEqual(ring.wait(timeout_s=0), [])
        engine_end.push(user_data=engine_end.take()[0])
        engine_end.publish()
        self.assertEqual([c.user_data for c in ring.wait(3, timeout_s=0.01)], [0])
        self.assertRaises(ValueError, ring.wait, 0)
        self.assertRaises(ValueError, ring.wait, 9)

    def test_an_event_loop_can_poll_the_bell(self):
        ring, engine_end = self.ring()
        poller = select.poll()
        poller.register(ring, select.POLLIN)
        ring.nop()
        ring.submit()
        self.assertTrue(ring.arm_bell())
        self.assertEqual(poller.poll(0), [])
        engine_end.push(user_data=engine_end.take()[0])
        engine_end.publish()
        self.assertEqual(poller.poll(NEVER_S * 1000), [(ring.fileno(), select.POLLIN)])
        self.assertFalse(ring.arm_bell(), "it is there already")
        self.assertEqual(len(ring.reap()), 1)
        self.assertTrue(ring.arm_bell())
        self.assertEqual(poller.poll(0), [], "and the bell was drained")

    def test_no_wake_up_is_lost_between_processes(self):
        """Goes on until both sides were asleep often; ops come ever later after the last, so that
        some meet the engine just as it falls asleep. A wake-up that is lost ends the wait empty.
        """
        with serving() as path, vr.Session(path) as session:
            with session.ring(4, 8, spin_us=0) as ring:
                number = 0
                while min(ring._words64[fake.SLEEPS], ring._words64[fake.BELLS_RUNG]) < 2000:
                    late = time.perf_counter_ns() + number % 200 * 1000
                    while time.perf_counter_ns() < late:
                        pass
                    ring.nop()
                    completions = ring.wait(timeout_s=NEVER_S)
                    self.assertEqual([c.user_data for c in completions], [number])
                    number += 1


class Ends(WithEngine):
    def test_death_ends_a_wait_and_the_verdict_follows_the_fates(self):
        for strides in ((64, 32, 16), (64, 32, 40)):
            with self.subTest(strides=strides):
                self.die_and_judge(*self.ring(8, 8, spin_us=0, strides=strides))

    def die_and_judge(self, ring, engine_end):
        for _ in range(6):
            ring.nop()
        ring.submit()
        for _ in range(5):
            engine_end.take()
        engine_end.push(user_data=0)
        engine_end.publish()
        engine_end.fate(3, 1, vr.FATE_POSTED)
        engine_end.fate(7, 2, vr.FATE_ACCEPTED)
        # A freed entry keeps its number: it says nothing.
        engine_end.fate(5, 4, vr.FATE_FREE)
        # Number 3 was taken and has left no trace: a success that was to be skipped.
        self.assertRaises(ValueError, ring.verdict, 1)
        ring.nop()
        self.kill()
        self.assertEqual([c.user_data for c in ring.wait(2)], [0], "what is there comes first")
        for call in (ring.reap, ring.wait, lambda: ring.wait(timeout_s=0)):
            self.assertRaises(vr.EngineGone, call)
        self.assertEqual(
            [ring.verdict(number) for number in range(1, 7)],
            [vr.Verdict.INDETERMINATE, vr.Verdict.NOT_STARTED, vr.Verdict.DONE, vr.Verdict.DONE,
             vr.Verdict.NOT_STARTED, vr.Verdict.NOT_STARTED])
        for never in (-1, 7):
            self.assertRaises(ValueError, ring.verdict, never)

    def test_death_is_told_to_whoever_finds_the_ring_full(self):
        ring, _ = self.ring()
        for _ in range(4):
            ring.nop()
        self.kill()
        self.assertRaises(vr.EngineGone, ring.nop)
        self.assertEqual(ring.submit(), 4)

    def test_a_sleeper_is_woken_by_death(self):
        with serving() as path, vr.Session(path) as session:
            ring, region = session.ring(4, 8, spin_us=0), session.region(4096)
            ring.arm(region, 1)
            self.assertEqual(ring.wait(timeout_s=0.01), [])
            killer = threading.Timer(0.1, os.kill, (session.hello.pid, 9))
            killer.start()
            self.assertRaises(vr.EngineGone, ring.wait)
            killer.join()
            self.assertEqual(select.select([session], [], [], 0)[0], [session])
            for call in (session.probe, lambda: session.region(4096), session.ring,
                         lambda: session.cancel(ring, 0), lambda: session.region(4096, memfd=True)):
                self.assertRaises(vr.EngineGone, call)
            ring.close()
            region.close()

    def test_a_session_that_is_ended_is_told_from_a_death(self):
        wait_ms, vr._DEATH_WAIT_MS = vr._DEATH_WAIT_MS, 20
        self.addCleanup(setattr, vr, "_DEATH_WAIT_MS", wait_ms)
        ring, engine_end = self.ring()
        ring.nop()
        ring.submit()
        engine_end.push(user_data=engine_end.take()[0])
        engine_end.publish()
        self.assertFalse(self.session.over())
        self.stop_serving()
        self.engine.hang_up()
        self.assertTrue(self.session.over())
        self.assertEqual(len(ring.wait(2)), 1)
        for call in (ring.wait, ring.reap, self.session.probe):
            self.assertRaises(vr.SessionEnded, call)

    def test_a_death_shows_on_the_socket_first(self):
        ring, _ = self.ring()
        self.stop_serving()
        self.engine.hang_up()
        killer = threading.Timer(0.05, self.body.kill)
        killer.start()
        self.assertRaises(vr.EngineGone, ring.wait)
        killer.join()

    def test_a_fault_is_raised_after_the_completions_before_it(self):
        ring, engine_end = self.ring()
        for _ in range(4):
            ring.nop()
        ring.submit()
        engine_end.push(user_data=engine_end.take()[0])
        engine_end.publish()
        ring.nop()
        flags = vr.ENGINE_FAULTED | vr.FAULT_SQ_TAIL_BACK << 16
        engine_end.store(vr.AT_ENGINE_FLAGS, flags)
        self.assertRaises(vr.RingFull, ring.nop)
        self.assertEqual([c.user_data for c in ring.wait(2)], [0])
        for call in (ring.wait, ring.reap, ring.nop):
            with self.assertRaises(vr.RingFaulted) as caught:
                call()
            self.assertEqual(caught.exception.reason, vr.FAULT_SQ_TAIL_BACK)
        self.assertIn("sq_tail ran back", str(caught.exception))


class Control(WithEngine):
    def answer_with(self, change):
        """Starts an engine; from the next request on, replies go through `change`."""
        self.start()
        self.engine.answer = change

    def test_a_peer_is_asked_for_by_url_and_fabric(self):
        session = self.start()
        secret = session.region(4096).export("theirs")
        first = session.connect_peer("unix:/one")
        self.assertEqual((first.number, first.fabric, first.rail), (1, vr.FABRIC_VERBS, 7))
        longest = "unix:/".ljust(vr.URL_BYTES, "x")
        second = session.connect_peer(longest, vr.FABRIC_VERBS)
        self.assertEqual(vr.CONNECT.unpack(self.engine.requests[-1]),
                         (vr.FABRIC_VERBS, longest.encode()))
        for remote, peer in ((second.import_region("theirs", secret, uid=9), 2),
                             (session.import_region("theirs", secret), 0)):
            self.assertEqual(remote.size_bytes, 4096)
            asked = vr.IMPORT.unpack([r for r in self.engine.requests
                                      if len(r) == vr.IMPORT.size][-2 if peer else -1])
            self.assertEqual(asked.peer, peer)
        with self.assertRaises(vr.VerbringError) as caught:
            session.connect_peer("unix:/one", vr.FABRIC_LOCAL)
        self.assertEqual((caught.exception.errno, caught.exception.detail),
                         (vr.Errno.EOPNOTSUPP, vr.Detail.REQUIRE))
        for url in ("", longest + "x"):
            with self.assertRaises(ValueError):
                session.connect_peer(url)
        other = vr.Session(self.path)
        with self.assertRaises(ValueError):
            other.import_region("theirs", secret, peer=first)
        other.close()

    def test_a_completion_tells_what_carried_it(self):
        fields = dict.fromkeys(vr.CQE.record._fields, 0)
        completion = vr.Completion(**{**fields, "detail": vr.FABRIC_VERBS << 8 | 63})
        self.assertEqual((completion.fabric, completion.rail), (vr.FABRIC_VERBS, 63))

    def test_a_peer_that_was_not_asked_for_is_not_believed(self):
        for change in (dict(peer=0), dict(fabric=vr.FABRIC_LOCAL), dict(fabric=256),
                       dict(rail=256)):
            def lie(kind, reply, sends, change=change):
                if kind != vr.Kind.CONNECT:
                    return reply, sends
                fields = {**vr.CONNECT_REPLY.unpack(reply)._asdict(), **change}
                return vr.CONNECT_REPLY.pack(reply=reply[:24], **fields), sends
            with self.subTest(**change):
                self.answer_with(lie)
                with self.assertRaises(vr.VerbringError):
                    self.session.connect_peer("unix:/one", vr.FABRIC_VERBS)

    def test_other_engines_are_told_of_one_by_one(self):
        session = self.start()
        with self.assertRaises(vr.VerbringError) as caught:
            session.peers()
        self.assertEqual(caught.exception.errno, vr.Errno.EOPNOTSUPP)
        rails = [vr.PEER_RAIL.pack(rail=6, state=vr.JOINT_UP),
                 vr.PEER_RAIL.pack(rail=7, card=1, class_=3, state=vr.JOINT_PUT_OFF, put_off_ms=9)]
        up = dict(at=3, phase=vr.PHASE_UP, direction=vr.PEER_OURS, boot_id=(1, 2), pid=5,
                  heard_ms=20, imports=1, loans=2, sessions=3, rails_count=2,
                  place=b"unix:/a", rails=b"".join(rails))
        gone = dict(at=0xFFFF_FFFF, phase=vr.PHASE_GONE, direction=vr.PEER_THEIRS,
                    heard_ms=vr.UNHEARD, error=b"it is gone\x1b[2J", error_ms=70)
        self.engine.told = [up, gone]
        first, last = session.peers()
        self.assertEqual((first.place, first.phase), ("unix:/a", vr.PHASE_UP))
        self.assertEqual((first.boot_id, first.pid), ((1, 2), 5))
        self.assertEqual((first.imports, first.loans, first.sessions), (1, 2, 3))
        self.assertEqual((first.heard_ms, first.error), (20, ""))
        self.assertEqual([rail.state for rail in first.rails], [vr.JOINT_UP, vr.JOINT_PUT_OFF])
        self.assertEqual((first.rails[1].class_, first.rails[1].put_off_ms), (3, 9))
        self.assertEqual((last.heard_ms, last.error), (None, "it is gone [2J"))
        self.assertEqual((last.rails, last.error_ms, last.place), ([], 70, ""))
        self.engine.told = []
        self.assertEqual(session.peers(), [])
        self.engine.told = [dict(up, rails_count=13)]
        self.assertRaises(vr.VerbringError, session.peers)

    def test_cards_are_told_of_one_by_one(self):
        session = self.start()
        with self.assertRaises(vr.VerbringError) as caught:
            session.cards()
        self.assertEqual(caught.exception.errno, vr.Errno.EOPNOTSUPP)
        addresses = [ipaddress.IPv6Address(at) for at in ("::ffff:10.0.0.7", "fd00::7")]
        first = dict(count=2, window_bytes=1 << 33, window_ops=64, window_wrs=256,
                     addresses=b"".join(at.packed for at in addresses), addresses_count=2,
                     name=b"mlx5_0 port 1")
        self.engine.held = [first, dict(first, card=1, addresses_count=0)]
        one, other = session.cards()
        self.assertEqual((one.card, one.name, one.addresses), (0, "mlx5_0 port 1", addresses))
        self.assertEqual((one.window_bytes, one.window_ops, one.window_wrs), (1 << 33, 64, 256))
        self.assertEqual((other.card, other.addresses), (1, []))
        self.engine.held = []
        self.assertEqual(session.cards(), [])
        for wrong in (dict(first, card=1), dict(first, addresses_count=5)):
            self.engine.held = [wrong]
            self.assertRaises(vr.VerbringError, session.cards)

    def test_calls_carry_what_they_say(self):
        session = self.start()
        region = session.region(10000)
        secret = region.export("b\N{LATIN SMALL LETTER U WITH DIAERESIS}chse", vr.RIGHT_READ)
        self.assertEqual(vr.EXPORT.unpack(self.engine.requests[-1]),
                         (region.id, vr.RIGHT_READ, b"b\xc3\xbcchse".ljust(64, b"\0")))
        remote = session.import_region("b\N{LATIN SMALL LETTER U WITH DIAERESIS}chse", secret)
        self.assertEqual((remote.rights, remote.size_bytes), (vr.RIGHT_READ, 10000))
        self.assertNotEqual(remote.id, region.id)
        self.assertEqual(session.probe().opcodes, 0x77F)
        self.assertEqual(session.stats()[vr.Counter.REGIONS], 12)
        self.assertEqual(session.stats(vr.STATS_ENGINE)[vr.Counter.EVICTED], 122)
        ring = session.ring(4, 8)
        why = session.why(ring, 5)
        self.assertEqual((why.number, why.class_, why.state, why.wait), (5, 3, 1, 1))
        self.engine.rings[0].queue.append((6, None, 99))
        self.assertEqual(session.cancel(ring, 6), 99)
        with self.assertRaises(vr.VerbringError) as caught:
            session.cancel(ring, 7)
        self.assertEqual(caught.exception.errno, errno.ENOENT)
        remote.close()
        heads = [vr.HEAD.unpack(request) for request in self.engine.requests]
        self.assertEqual([head.tag for head in heads], list(range(1, len(heads) + 1)))
        self.assertEqual([head.bytes for head in heads], [len(r) for r in self.engine.requests])
        self.assertEqual(
            " ".join(vr.Kind(head.kind).name for head in heads),
            "HELLO REGION MAPPED EXPORT IMPORT PROBE STATS STATS RING MAPPED WHY CANCEL CANCEL "
            "RELEASE")
        objects = [vr.MAPPED.unpack(r) for r in self.engine.requests if len(r) == vr.MAPPED.size]
        self.assertEqual(objects[0], (vr.OBJECT_REGION, region.id))
        self.assertEqual(objects[-2:], [(vr.OBJECT_RING, ring.number),
                                        (vr.OBJECT_REGION, remote.id)])
        self.assertFalse(os.get_inheritable(session.fileno()))

    def test_a_refusal_carries_errno_detail_and_text(self):
        session = self.start()
        secret = session.region(4096).export("box")
        with self.assertRaises(vr.VerbringError) as caught:
            session.import_region("fox", secret)
        error = caught.exception
        self.assertEqual((error.errno, error.detail, error.strerror),
                         (errno.ENOENT, vr.Detail.NAME, "no such export"))
        with self.assertRaises(vr.VerbringError) as caught:
            session.import_region("box", bytes(32))
        self.assertEqual((caught.exception.errno, caught.exception.detail_name),
                         (errno.EACCES, "SECRET"))
        self.assertRaises(ValueError, session.import_region, "box", b"short")
        for name in ("", "n" * 65):
            self.assertRaises(ValueError, session.import_region, name, secret)

    def test_a_detail_of_a_later_abi_is_kept(self):
        error = vr.VerbringError(errno.EINVAL, 999, "new")
        self.assertEqual((error.detail, error.detail_name), (999, "999"))

    def test_replies_that_cannot_be_are_refused_and_their_descriptors_closed(self):
        def cut(reply):
            return reply[:-1]

        def head(**fields):
            def change(reply):
                old = vr.REPLY_HEAD.unpack(reply)._asdict()
                return vr.REPLY_HEAD.pack(**{**old, **fields}) + reply[vr.REPLY_HEAD.size:]
            return change

        for name, change in (
                ("cut", cut), ("longer", lambda reply: reply + b"\0"), ("one byte", lambda _: b"x"),
                ("oversized", lambda reply: reply + bytes(1000)),
                ("kind", head(kind=vr.Kind.RING | vr.REPLY)),
                ("request", head(kind=vr.Kind.REGION)),
                ("bytes", head(bytes=1)), ("tag", head(tag=99)),
                ("short but whole", lambda reply: head(bytes=24)(reply)[:24])):
            with self.subTest(name):
                self.answer_with(lambda kind, reply, fds: (change(reply), fds))
                before = open_descriptors()
                with self.assertRaises(vr.VerbringError) as caught:
                    self.session.region(4096)
                self.assertEqual(caught.exception.errno, errno.EPROTO)
                caught = None
                # An answer to the next call shows that the engine's thread is done with this one.
                self.engine.answer = None
                self.session.probe()
                self.assertEqual(open_descriptors() - before, 1, "the fake engine keeps its map")

    def test_descriptors_that_lack_or_abound(self):
        self.answer_with(lambda kind, reply, fds: (reply, []))
        with self.assertRaises(vr.VerbringError) as caught:
            self.session.ring(4, 8)
        self.assertIn("0 descriptors", str(caught.exception))
        self.engine.answer = lambda kind, reply, fds: (reply, fds + [0, 0, 0, 0])
        before = open_descriptors()
        region = self.session.region(4096)
        self.assertEqual(open_descriptors() - before, 2, "a map on either side")
        self.session.probe()
        self.assertEqual(open_descriptors() - before, 2)
        region.memory[0] = 1

    def test_memory_that_could_vanish_is_refused(self):
        fd, mapping = fake.memory("loose", 8192, seals=0)
        self.addCleanup(os.close, fd)
        self.answer_with(lambda kind, reply, fds: (reply, [fd] if fds else []))
        with self.assertRaises(vr.VerbringError) as caught:
            self.session.region(8192)
        self.assertEqual(caught.exception.detail_name, "SEALS")
        fd2, mapping = fake.memory("small", 4096)
        self.addCleanup(os.close, fd2)
        self.engine.answer = lambda kind, reply, fds: (reply, [fd2] if fds else [])
        with self.assertRaises(vr.VerbringError) as caught:
            self.session.region(8192)
        self.assertIn("8192", str(caught.exception))

    def test_the_reply_of_a_call_broken_off_is_passed_over(self):
        session = self.start()
        head = vr.HEAD.pack(kind=vr.Kind.REGION, bytes=vr.REGION_REQUEST.size, tag=session._tag)
        before = open_descriptors()
        session._socket.send(vr.REGION_REQUEST.pack(head=head, source=1, bytes=4096))
        self.assertEqual(session.probe().opcodes, 0x77F)
        self.assertEqual(open_descriptors() - before, 1, "the memfd that came along is closed")

    def test_a_memfd_of_ours_is_sealed_and_shared(self):
        session = self.start()
        region = session.region(8192, memfd=True)
        region.memory[5] = 55
        region.words[1023] = 1 << 63
        theirs = self.engine.regions[region.id].memory
        self.assertEqual((theirs[5], theirs[8191]), (55, 128))
        self.assertRaises(TypeError, region.memory.__delitem__, 0)

    def test_closing_gives_everything_back(self):
        gc.collect()
        before = open_descriptors()
        with serving() as path:
            with vr.Session(path) as session:
                open_now = open_descriptors()
                with session.region(4096) as region, session.ring(4, 8) as ring:
                    secret = region.export("box")
                    with session.import_region("box", secret) as remote:
                        ring.write(region, remote, 8)
                        ring.wait()[0].check()
                    kept = region.memory[:8]
                self.assertEqual(bytes(kept), bytes(8), "a slice outlives its region")
                self.assertRaises(ValueError, ring.nop)
                region.close()
                kept.release()
                del kept
                self.assertEqual(open_descriptors(), open_now)
            session.close()
        self.assertEqual(open_descriptors(), before)

    def test_a_path_without_an_engine(self):
        before = open_descriptors()
        self.assertRaises(FileNotFoundError, vr.Session, "/nonexistent/verbring.sock")
        self.assertEqual(open_descriptors(), before)


@contextlib.contextmanager
def serving(*lie):
    """Runs the fake engine in a process of its own; gives its socket's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        engine = subprocess.Popen([sys.executable, HERE / "fake.py", path, *lie],
                                  stdout=subprocess.PIPE)
        try:
            assert engine.stdout.readline() == b"listening\n"
            yield path
        finally:
            engine.kill()
            engine.wait()
            engine.stdout.close()


class Recorders(WithEngine):
    def recorded(self, **options):
        recorder = fake.FakeRecorder(**options)
        self.addCleanup(recorder.close)
        return recorder

    def test_records_are_read_in_order_also_of_a_dead_engine(self):
        recorder = self.recorded()
        session = self.start(recorder=recorder)
        self.assertEqual(session.last_records(), [])
        for place, sequence in enumerate((1, 2, 0xFFFF_FFFF, 0)):
            recorder.write(place, sequence=sequence, record=sequence << 8, queued=7 << 16 | 2,
                           total=9 << 16 | 3, res=-5, cause=13)
        self.kill()
        # The one that is being written is not there; numbers wrap.
        found = session.last_records()
        self.assertEqual([entry.sequence for entry in found], [0xFFFF_FFFF, 1, 2])
        self.assertEqual(session.last_records(2), found[1:])
        self.assertEqual(session.last_records(0), [])
        entry = session.find_record(1 << 8)
        self.assertEqual((entry.queued_ns, entry.posts, entry.total_ns, entry.defers, entry.res,
                          entry.cause), (7, 2, 9, 3, -5, 13))
        self.assertIsNone(session.find_record(5))

    def test_who_does_not_want_a_recorder_does_not_ask(self):
        session = self.start()
        self.assertEqual(session.last_records(), [])
        kinds = {vr.HEAD.unpack(request).kind for request in self.engine.requests}
        self.assertEqual(kinds, {vr.Kind.HELLO})

    def test_a_recorder_that_is_refused_is_done_without(self):
        def refuse(kind, reply, sends):
            if kind != vr.Kind.RECORDER:
                return reply, sends
            head = vr.REPLY_HEAD.pack(kind=kind | vr.REPLY, bytes=24, status=-vr.Errno.EDQUOT,
                                      tag=vr.REPLY_HEAD.unpack(reply).tag)
            return head, []
        session = self.start(recorder=self.recorded(), answer=refuse)
        self.assertEqual(session.last_records(), [])
        self.assertEqual(vr.HEAD.unpack(self.engine.requests[-1]).kind, vr.Kind.RECORDER)

    def test_a_recorder_that_cannot_be_is_not_believed(self):
        for change in (dict(magic=1), dict(abi_version=2), dict(header_bytes=64),
                       dict(entry_stride=56), dict(entry_stride=73), dict(entries=0),
                       dict(entries=3), dict(entries=8), dict(seals=0)):
            with self.subTest(**change):
                entries = change.pop("entries", 4)
                recorder = self.recorded(**change)
                fields = vr.RECORDER_HEADER.unpack(recorder.map[:64])._replace(entries=entries)
                recorder.map[:64] = vr.RECORDER_HEADER.pack(**fields._asdict())
                with self.assertRaises(vr.VerbringError) as caught:
                    self.start(recorder=recorder)
                self.assertEqual(caught.exception.errno, errno.EPROTO)


class Telemetries(WithEngine):
    def paged(self, **options):
        page = fake.FakeTelemetry(**options)
        self.addCleanup(page.close)
        return page

    def test_blocks_are_read_where_the_header_says_also_of_a_dead_engine(self):
        page = self.paged()
        telemetry = self.start(telemetry=page).telemetry()
        self.addCleanup(telemetry.close)
        self.kill()
        low_own, rail, gone, session = 5, 7, 8, 9 + 2
        page.write(low_own, vr.Tally.WAITS + vr.WAIT_PEER, 4)
        page.write(rail, vr.Tally.BYTES, 1 << 40)
        page.write(gone, vr.Tally.PASSED, 3)
        page.write(session, vr.Tally.USES, 1)
        for bucket, count in ((0, 989), (17, 10), (239, 1)):
            page.write(session, vr.BLOCK_COUNTERS + bucket, count)
            page.write(session, vr.BLOCK_COUNTERS + vr.HISTOGRAM_BUCKETS + bucket, 1)
        self.assertEqual(telemetry.lane(vr.Class.LOW, 1).waits[vr.WAIT_PEER], 4)
        self.assertEqual(telemetry.lane(vr.Class.HIGH).counts, [0] * vr.BLOCK_COUNTERS)
        self.assertEqual(telemetry.rail(1).counts[vr.Tally.BYTES], 1 << 40)
        self.assertEqual(telemetry.gone().counts[vr.Tally.PASSED], 3)
        self.assertEqual(list(telemetry.sessions()), [2])
        tallies = telemetry.sessions()[2]
        self.assertEqual((tallies.wait.count(), tallies.service.count()), (1000, 3))
        told = [tallies.wait.percentile_ns(part) for part in (0, 500, 989, 990, 999, 1000)]
        self.assertEqual(told, [15, 15, 15, 319, 319, (1 << 36) - 1])
        self.assertIsNone(telemetry.gone().wait.percentile_ns(500))
        with self.assertRaises(ValueError):
            telemetry.rail(2)
        # Of a block that its engine left half written there is what there is.
        page.write(gone, vr.Tally.SEQUENCE, 5)
        self.assertEqual(telemetry.gone().counts[vr.Tally.PASSED], 3)

    def test_an_engine_without_a_page_is_not_asked_for_it(self):
        with self.assertRaises(vr.VerbringError) as caught:
            self.start().telemetry()
        self.assertEqual(caught.exception.errno, errno.EOPNOTSUPP)

    def test_a_page_that_cannot_be_is_not_believed(self):
        changes = (dict(magic=1), dict(abi_version=2), dict(header_bytes=64), dict(buckets=239),
                   dict(unit_ns=8), dict(steps=4), dict(counters=31), dict(block_stride=4088),
                   dict(block_stride=4100), dict(lanes=5), dict(sessions=4), dict(rails=1 << 31),
                   dict(seals=0), dict(boot_id=(1, 2)))
        for change in changes:
            with self.subTest(**change):
                session = self.start(telemetry=self.paged(**change))
                with self.assertRaises(vr.VerbringError) as caught:
                    session.telemetry()
                self.assertEqual(caught.exception.errno, errno.EPROTO)


class Peers(unittest.TestCase):
    """The cross-language script: both roles agree with an honest engine, and with no other."""

    def play(self, path, patience_s=NEVER_S):
        """Runs both roles; returns their exit statuses and what they said on stderr."""
        def role(*arguments):
            return subprocess.Popen(
                [sys.executable, HERE / "peer.py", path, *arguments], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        exporter = role("export", "box")
        ready = exporter.stdout.readline().split()
        self.assertEqual(ready[0], "ready")
        user = role("use", "box", ready[1])
        users_out, users_err = user.communicate()
        if user.returncode:
            exporter.kill()
        out, err = exporter.communicate()
        if user.returncode == 0 and exporter.returncode == 0:
            self.assertEqual((out, users_out), ("ok\n", "ok\n"))
        return user.returncode, exporter.returncode, users_err + err

    def test_an_honest_engine_satisfies_both(self):
        with serving() as path:
            self.assertEqual(self.play(path), (0, 0, ""))

    def test_every_lie_is_found(self):
        for lie in fake.LIES:
            with self.subTest(lie), serving(lie) as path:
                user, exporter, said = self.play(path)
                found_by = exporter if lie == "immediate" else user
                self.assertEqual(found_by, 1)
                self.assertIn("Mismatch", said)

    def test_the_example_runs(self):
        with serving() as path:
            example = ROOT / "examples" / "python" / "write.py"
            ran = subprocess.run([sys.executable, example, path], stdout=subprocess.PIPE, text=True)
            self.assertEqual(ran.returncode, 0)
            self.assertRegex(ran.stdout, r"^wrote 27 bytes, record 0x[0-9a-f]{16}\n$")


if __name__ == "__main__":
    unittest.main()
