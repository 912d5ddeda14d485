"""One side of the cross-language test: exports a region, or uses one that somebody else exports.

    peer.py SOCKET export NAME                      prints `ready SECRETHEX`, then `ok`
    peer.py SOCKET use NAME SECRETHEX [OPTIONS]     prints `ok`
        --peer URL              imports from the engine there, not from its own
        --require local|verbs   what must have carried every success; else what the engine names as
                                the way to the peer

Any two languages must fit together, so both sides follow one script: every offset, operand and
immediate below is part of it. Each completion is compared whole: res, detail and flags. A mismatch
is told on stderr, with exit status 1.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))

import verbring as vr  # noqa: E402

REGION_BYTES = 1 << 20
BLOCK = 65536
PAGE = 4096
SUM_AT, SWAP_AT = 524288, 524296
PAGES_AT = (532480, 540672)
FABRICS = {"local": vr.FABRIC_LOCAL, "verbs": vr.FABRIC_VERBS}
# Nothing here takes long; a peer that hangs should fail the test, not stop it.
PATIENCE_S = 60

PATTERN = bytes((i * 7 + 3) & 0xFF for i in range(BLOCK))
WRITTEN = bytes((j * 13 + 5) & 0xFF for j in range(BLOCK))


class Mismatch(Exception):
    """What came is not what the script says."""


def same(what, have, want):
    if have != want:
        raise Mismatch(f"{what}: {have!r} instead of {want!r}")


def same_bytes(what, have, want):
    have = bytes(have)
    if have != want:
        at = next((i for i, pair in enumerate(zip(have, want)) if pair[0] != pair[1]), len(have))
        raise Mismatch(f"{what}: {len(have)} bytes, the first wrong one at {at}")


def expect(what, completion, *, user_data, res, detail=0, flags=0, refused=False):
    """Compares a completion with the script."""
    same(f"{what}: user_data", completion.user_data, user_data)
    same(f"{what}: res, detail, flags",
         (completion.res, completion.detail, completion.flags), (res, detail, flags))
    same(f"{what}: has a record", completion.record != 0, not refused)


def reap(what, ring, count=1):
    completions = ring.wait(count, timeout_s=PATIENCE_S)
    same(f"{what}: completions", len(completions), count)
    return completions


def done(what, ring, number, res, fabric=vr.FABRIC_NONE):
    """Waits for the only op in flight and compares it with the script."""
    (completion,) = reap(what, ring)
    carried(what, completion, fabric)
    expect(what, completion, user_data=number, res=res, detail=completion.detail)


def carried(what, completion, fabric):
    """Rail 0 is within the engine; the others are queue pairs."""
    same(f"{what}: fabric", completion.fabric, fabric)
    same(f"{what}: by a queue pair", completion.rail != 0, fabric == vr.FABRIC_VERBS)


def export(session, name):
    region = session.region(REGION_BYTES)
    same("the region's size", region.size_bytes, REGION_BYTES)
    region.memory[:BLOCK] = PATTERN
    region.words[SUM_AT // 8] = 1000
    secret = region.export(name)

    ring = session.ring(sq_entries=8, cq_entries=16)
    armed = ring.arm(region, 2)
    # SQEs are taken in order: once the NOP is done, the ARM is in force.
    done("NOP behind ARM", ring, ring.nop(), 0)
    print("ready", secret.hex(), flush=True)

    last = vr.CQE_NOTIFY
    # A slow exporter may find both at once.
    completions = []
    while len(completions) < 2:
        found = ring.wait(1, timeout_s=PATIENCE_S)
        same("notifications: any in time", bool(found), True)
        completions += found
    same("notifications", len(completions), 2)
    awaited = ((0xC0FFEE, last | vr.CQE_MORE), (0xBEEF, last))
    for completion, (immediate, flags) in zip(completions, awaited):
        what = f"notification {immediate:#x}"
        same(f"{what}: immediate", completion.immediate, immediate)
        expect(what, completion, user_data=armed, res=1, flags=flags)

    same_bytes("the block the user wrote", region.memory[BLOCK:2 * BLOCK], WRITTEN)
    same("the sum", region.words[SUM_AT // 8], 1042)
    same("the swapped word", region.words[SWAP_AT // 8], 77)


class Far:
    """The far side of all ops, and what must carry them there."""

    def __init__(self, session, name, secret, url, require):
        peer = None if url is None else session.connect_peer(url, require)
        self.remote = session.import_region(name, secret, peer=peer)
        self.fabric = require or (peer.fabric if peer else vr.FABRIC_LOCAL)
        # Where there is a card, it does the atomics of all, so that they do not mix.
        by_card = session.probe().fabrics >> vr.FABRIC_VERBS & 1
        self.atomics = vr.FABRIC_VERBS if by_card else self.fabric


def use(session, name, secret, url=None, require=0):
    far = Far(session, name, secret, url, require)
    same("the import's size and rights", (far.remote.size_bytes, far.remote.rights),
         (REGION_BYTES, vr.RIGHTS_ALL))
    region = session.region(REGION_BYTES)
    ring = session.ring(sq_entries=64, cq_entries=128)
    read(ring, region, far)
    write_and_notify(ring, region, far)
    atomics(ring, region, far)
    pages(ring, region, far)
    cancel(ring, region, far)
    bad_offset(ring, region, far)
    what = "WRITE of no bytes"
    done(what, ring, ring.write(region, far.remote, 0, notify=0xBEEF), 0, far.fabric)


def read(ring, region, far):
    done("READ", ring, ring.read(region, far.remote, BLOCK), BLOCK, far.fabric)
    same_bytes("READ", region.memory[:BLOCK], PATTERN)


def write_and_notify(ring, region, far):
    region.memory[2 * BLOCK:3 * BLOCK] = WRITTEN
    number = ring.write(region, far.remote, BLOCK, local_offset=2 * BLOCK, remote_offset=BLOCK,
                        notify=0xC0FFEE)
    done("WRITE with NOTIFY", ring, number, BLOCK, far.fabric)


def atomics(ring, region, far):
    old_at = 3 * BLOCK
    for what, old, push in (
            ("FETCH_ADD", 1000, lambda **at: ring.fetch_add(
                region, far.remote, 42, remote_offset=SUM_AT, **at)),
            ("CMP_SWAP that swaps", 0, lambda **at: ring.cmp_swap(
                region, far.remote, 0, 77, remote_offset=SWAP_AT, **at)),
            ("CMP_SWAP that does not", 77, lambda **at: ring.cmp_swap(
                region, far.remote, 0, 99, remote_offset=SWAP_AT, **at))):
        # A value that no old one has shows that something was stored.
        region.words[old_at // 8] = 0xDEAD
        done(what, ring, push(local_offset=old_at), 8, far.atomics)
        same(f"{what}: the old value", region.words[old_at // 8], old)


def pages(ring, region, far):
    list_at = REGION_BYTES - PAGE
    from_to = [(4 * BLOCK + at, PAGE + 3 * at) for at in (0, PAGE, 2 * PAGE)]
    number = ring.readv(region, far.remote, PAGE, from_to, list_offset=list_at)
    done("READV", ring, number, 3 * PAGE, far.fabric)
    for local, place in from_to:
        same_bytes(f"READV page at {place}", region.memory[local:local + PAGE],
                   PATTERN[place:place + PAGE])

    # The SQE's remote_offset is added to each page's.
    number = ring.writev(
        region, far.remote, PAGE, [(2 * BLOCK, 0), (2 * BLOCK + PAGE, PAGES_AT[1] - PAGES_AT[0])],
        list_offset=list_at, remote_offset=PAGES_AT[0])
    done("WRITEV", ring, number, 2 * PAGE, far.fabric)
    back_at = 5 * BLOCK
    for at, place in enumerate(PAGES_AT):
        number = ring.read(region, far.remote, PAGE, local_offset=back_at, remote_offset=place)
        done("READ of a page that WRITEV wrote", ring, number, PAGE, far.fabric)
        same_bytes(f"WRITEV page at {place}", region.memory[back_at:back_at + PAGE],
                   WRITTEN[at * PAGE:(at + 1) * PAGE])


def cancel(ring, region, far):
    length = 262144
    writes = [ring.write(region, far.remote, length, local_offset=262144, remote_offset=589824,
                         class_=vr.Class.LOW) for _ in range(8)]
    wish = ring.cancel(writes[-1], vr.CANCEL_BY_NUMBER)
    by_user_data = {c.user_data: c for c in reap("CANCEL", ring, 9)}
    same("the ops that completed", sorted(by_user_data), writes + [wish])
    expect("CANCEL", by_user_data[wish], user_data=wish, res=0)
    expect("the cancelled WRITE", by_user_data[writes[-1]], user_data=writes[-1],
           res=-vr.Errno.ECANCELED, detail=vr.Detail.CANCELLED, flags=vr.CQE_RETRYABLE)
    for number in writes[:-1]:
        what, completion = "a WRITE beside the cancelled one", by_user_data[number]
        carried(what, completion, far.fabric)
        expect(what, completion, user_data=number, res=length, detail=completion.detail)


def bad_offset(ring, region, far):
    number = ring.write(region, far.remote, PAGE, remote_offset=1 << 40)
    (completion,) = reap("WRITE far outside", ring)
    expect("WRITE far outside", completion, user_data=number, res=-vr.Errno.EINVAL,
           detail=vr.Detail.REMOTE_OFFSET, refused=True)


def options(words):
    """Returns what the options say, or None if they cannot be."""
    pairs = dict(zip(words[::2], words[1::2]))
    require = pairs.pop("--require", None)
    found = {"url": pairs.pop("--peer", None), "require": FABRICS.get(require, 0)}
    good = not pairs and len(words) % 2 == 0 and require in (None, *FABRICS)
    return found if good else None


def main(arguments):
    if len(arguments) == 3 and arguments[1] == "export":
        def role(session):
            export(session, arguments[2])
    elif len(arguments) >= 4 and arguments[1] == "use" and options(arguments[4:]) is not None:
        def role(session):
            use(session, arguments[2], bytes.fromhex(arguments[3]), **options(arguments[4:]))
    else:
        sys.exit("usage: peer.py SOCKET export NAME | "
                 "peer.py SOCKET use NAME SECRETHEX [--peer URL] [--require local|verbs]")
    try:
        with vr.Session(arguments[0], name=f"peer.py {arguments[1]}") as session:
            role(session)
    except (Mismatch, OSError) as error:
        sys.exit(f"peer.py {arguments[1]}: {type(error).__name__}: {error}")
    print("ok", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
