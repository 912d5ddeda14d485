"""Writes a greeting through the ring: from a region into an export, which is the same region.

    python3 examples/python/write.py /run/verbring.sock
"""

import os
import sys

from verbring import Session

GREETING = b"one completion for every op"


def main(path):
    with Session(path, name="write.py") as session:
        region = session.region(1 << 16)
        name = f"write.py-{os.getpid()}"
        remote = session.import_region(name, region.export(name))
        ring = session.ring(sq_entries=8)

        region.memory[:len(GREETING)] = GREETING
        ring.write(region, remote, len(GREETING), remote_offset=4096)
        (completion,) = ring.wait(timeout_s=10)
        completion.check()

        assert region.memory[4096:4096 + len(GREETING)] == GREETING
        print(f"wrote {completion.res} bytes, record {completion.record:#018x}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: write.py SOCKET")
    main(sys.argv[1])
