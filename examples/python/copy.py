"""Copies a file into another process's memory and back, through the ring.

    copy.py SOCKET hold NAME BYTES OUT              holds memory, prints `ready SECRET`
    copy.py SOCKET send NAME SECRET FILE BACK       fills it with a file, and fetches that back

With `--peer URL` the memory is that of another engine's session, and with `--fabric N` every op
must have gone by that fabric. Whatever was sent is in OUT and BACK afterwards. The same program
exists in Rust and C, and each of them can hold what another one sends.
"""

import argparse
import pathlib
import sys

from verbring import Session, VerbringError

CHUNK = 1 << 20
PATIENCE_S = 120


def hold(session, name, size_bytes, out):
    """Offers memory, and keeps what is there once it is told that it is whole."""
    region = session.region(size_bytes)
    ring = session.ring()
    ring.arm(region, 1)
    ring.submit()
    print("ready", region.export(name).hex(), flush=True)
    (told,) = ring.wait(timeout_s=PATIENCE_S)
    told.check()
    pathlib.Path(out).write_bytes(region.memory[:size_bytes])


def move(ring, op, region, remote, size_bytes, fabric):
    """Moves all bytes in chunks, and waits until they are moved."""
    for at in range(0, size_bytes, CHUNK):
        count = min(CHUNK, size_bytes - at)
        op(region, remote, count, local_offset=at, remote_offset=at)
    ring.submit()
    moved = 0
    while moved < size_bytes:
        for completion in ring.wait(timeout_s=PATIENCE_S):
            completion.check()
            moved += completion.res
            if fabric is not None and completion.fabric != fabric:
                raise SystemExit(f"an op went by fabric {completion.fabric}")


def send(session, remote, path, back, fabric):
    """Writes a file there, reads it back, and tells the holder."""
    data = pathlib.Path(path).read_bytes()
    region = session.region(len(data))
    ring = session.ring()
    region.memory[:len(data)] = data
    move(ring, ring.write, region, remote, len(data), fabric)
    region.memory[:len(data)] = bytes(len(data))
    move(ring, ring.read, region, remote, len(data), fabric)
    pathlib.Path(back).write_bytes(region.memory[:len(data)])
    ring.write(region, remote, 0, notify=1)
    (told,) = ring.wait(timeout_s=PATIENCE_S)
    told.check()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parts = parser.add_subparsers(dest="part", required=True)
    holder = parts.add_parser("hold")
    holder.add_argument("name")
    holder.add_argument("bytes", type=int)
    holder.add_argument("out")
    sender = parts.add_parser("send")
    for word in ("name", "secret", "file", "back"):
        sender.add_argument(word)
    sender.add_argument("--peer", metavar="URL")
    sender.add_argument("--fabric", type=int, metavar="N")
    asked = parser.parse_args()
    with Session(asked.socket, name="copy.py") as session:
        if asked.part == "hold":
            hold(session, asked.name, asked.bytes, asked.out)
        else:
            whose = session.connect_peer(asked.peer) if asked.peer else session
            remote = whose.import_region(asked.name, bytes.fromhex(asked.secret))
            send(session, remote, asked.file, asked.back, asked.fabric)
    print("ok")


if __name__ == "__main__":
    try:
        main()
    except (OSError, VerbringError) as error:
        sys.exit(f"copy.py: {error}")
