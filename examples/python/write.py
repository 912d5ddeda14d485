"""Writes a greeting through the ring: from a region into an export, which is the same region.

    python3 examples/python/write.py /run/verbring.sock
    python3 examples/python/write.py /run/verbring.sock --peer unix:/run/other.sock --require verbs

With `--peer` the region is one of that engine's, and the greeting goes there by queue pairs;
`--require verbs` fails if anything else has carried it.
"""

import argparse
import os
import sys

from verbring import FABRIC_VERBS, Session, VerbringError

GREETING = b"one completion for every op"


def write(session, target, peer, require):
    name = f"write.py-{os.getpid()}"
    remote = session.import_region(name, target.export(name), peer=peer)
    region = session.region(1 << 16)
    ring = session.ring(sq_entries=8)

    region.memory[:len(GREETING)] = GREETING
    ring.write(region, remote, len(GREETING), remote_offset=4096)
    (completion,) = ring.wait(timeout_s=10)
    completion.check()
    if require and completion.fabric != require:
        sys.exit(f"fabric {completion.fabric} has carried it")

    assert target.memory[4096:4096 + len(GREETING)] == GREETING
    print(f"wrote {completion.res} bytes, record {completion.record:#018x}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("socket", help="of the engine")
    parser.add_argument("--peer", metavar="URL", help="unix: and the socket of another engine")
    parser.add_argument("--require", choices=["verbs"], help="what must carry the bytes")
    options = parser.parse_args()
    require = FABRIC_VERBS if options.require else 0
    with Session(options.socket, name="write.py") as session:
        if options.peer:
            with Session(options.peer.removeprefix("unix:"), name="write.py") as other:
                peer = session.connect_peer(options.peer, require)
                write(session, other.region(1 << 16), peer, require)
        else:
            write(session, session.region(1 << 16), None, require)


if __name__ == "__main__":
    try:
        main()
    except (OSError, VerbringError) as error:
        sys.exit(f"write.py: {error}")
