"""Publishes a page in three parts, as a graph.

The number that says "complete" goes out once all parts are there; a part that fails keeps it from
going.

    python3 examples/python/graph.py /run/verbring.sock
"""

import os
import struct
import sys

from verbring import RIGHT_WRITE, Session, VerbringError

PART = 1024
COMPLETE = 3 * PART  # where the number lies, behind the parts


def publish(session):
    name = f"graph.py-{os.getpid()}"
    target, source = session.region(COMPLETE + 8), session.region(COMPLETE + 8)
    page = session.import_region(name, target.export(name, RIGHT_WRITE))
    ring = session.ring()
    for version in (1, 2, 3):
        source.memory[COMPLETE:COMPLETE + 8] = struct.pack("<Q", version)
        # Of the last version, the third part would end beyond the region: the engine refuses it.
        places = [0, PART, 2 * PART if version < 3 else COMPLETE]
        parts = [ring.write(source, page, PART, local_offset=part * PART, remote_offset=place)
                 for part, place in enumerate(places)]
        whole = ring.join(parts)
        number = ring.write(source, page, 8, local_offset=COMPLETE, remote_offset=COMPLETE,
                            after=whole)
        ends = {}
        while len(ends) < 5:
            ends.update((end.user_data, end) for end in ring.wait(timeout_s=10))
        if ends[number].dep_failed:
            print(f"version {version} is not, since an op before it failed: "
                  f"detail {ends[number].detail}")
        else:
            ends[number].check()
            print(f"version {version} is complete")
        (complete,) = struct.unpack("<Q", target.memory[COMPLETE:COMPLETE + 8])
        if complete != min(version, 2):
            sys.exit("the number does not tell what is complete")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: graph.py SOCKET")
    try:
        with Session(sys.argv[1], name="graph.py") as own:
            publish(own)
    except (OSError, VerbringError) as error:
        sys.exit(f"graph.py: {error}")
