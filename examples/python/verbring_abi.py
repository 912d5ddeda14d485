"""ABI 1 as Python sees it: numbers and layouts, and nothing that does anything.

The prose is `docs/abi.md`; `tests/python/abi.py` holds this file to `tests/abi.table`. All integers
are little-endian. `class` being a word of Python's, that field is called `class_`.
"""

import collections
import enum
import struct

MAGIC = int.from_bytes(b"VERBRING", "little")
ABI_VERSION = 1
OP_BYTES_MAX = (1 << 31) - 4096
PAGES_MAX = 1024
ENTRIES_MIN, ENTRIES_MAX = 2, 32768
CQE_TIME_UNIT_NS = 16

# Byte offsets of the words in the segment's header page that change.
AT_SQ_TAIL, AT_CQ_HEAD, AT_BELL_AT = 256, 384, 512
AT_SQ_HEAD, AT_CQ_TAIL, AT_ENGINE_FLAGS, AT_COUNTERS = 640, 768, 896, 1024
ENGINE_NEED_WAKEUP, ENGINE_CLOSING, ENGINE_FAULTED = 1, 2, 4
FAULT_SQ_TAIL_BEYOND, FAULT_SQ_TAIL_BACK, FAULT_CQ_HEAD = 1, 2, 3
FATE_FREE, FATE_ACCEPTED, FATE_POSTED, FATE_SHIFT = 0, 1, 2, 2

SQE_LINK, SQE_HARDLINK, SQE_DRAIN, SQE_COALESCE, SQE_SUPERSEDE = 1, 2, 4, 8, 16
SQE_NO_MERGE, SQE_NOTIFY, SQE_SKIP_SUCCESS, SQE_REVOKE = 32, 64, 128, 256
EDGE_ORDER_ONLY = 1 << 15
CANCEL_BY_USER_DATA, CANCEL_BY_NUMBER, CANCEL_BY_RECORD = 0, 1, 2

CQE_RETRYABLE, CQE_MAYBE_DONE, CQE_COALESCED, CQE_DEP_FAILED = 1, 2, 4, 8
CQE_FLUSHED, CQE_NOTIFY, CQE_MORE = 16, 32, 64
FABRIC_NONE, FABRIC_LOCAL, FABRIC_VERBS = 0, 1, 2

REPLY = 0x8000
UID_OWN = 0xFFFF_FFFF
RING_FENCELESS = 1
OBJECT_RING, OBJECT_REGION = 1, 2
REGION_ALLOCATED, REGION_MEMFD, REGION_HUGE = 1, 2, 1
RIGHT_READ, RIGHT_WRITE, RIGHT_ATOMIC, RIGHT_NOTIFY = 1, 2, 4, 8
RIGHTS_ALL = RIGHT_READ | RIGHT_WRITE | RIGHT_ATOMIC | RIGHT_NOTIFY
CONTRACT_ALL, CONTRACT_UID = 0, 1
STATS_SESSION, STATS_ENGINE = 0, 1
STATE_QUEUED, STATE_POSTED, STATE_ARMED, STATE_FLUSHING, STATE_UNTAKEN = 1, 2, 3, 4, 5
STATE_WAITING, STATE_FOLDED = 6, 7
MODE_WEIGHTED, MODE_STRICT, MODE_FIFO, MODE_TENT, MODE_DIRECT = 1, 2, 3, 4, 5
RAIL_OPEN, RAIL_FULL, RAIL_MEMORY, RAIL_CONNECTING, RAIL_DEGRADED = 0, 1, 2, 3, 4
RAIL_REBUILDING, RAIL_PAUSED, RAIL_DEAD = 5, 6, 7
WAIT_NONE, WAIT_LANE, WAIT_CLASS, WAIT_WINDOW_OPS, WAIT_WINDOW_BYTES = 0, 1, 2, 3, 4
WAIT_FABRIC, WAIT_EARLIER, WAIT_NOTIFY, WAIT_RAIL, WAIT_CREDIT = 5, 6, 7, 8, 9
WAIT_WINDOW_WRS, WAIT_PEER, WAIT_TURN, WAIT_CAP = 10, 11, 12, 13
WAIT_BELL, WAIT_INTAKE, WAIT_CQ, WAIT_RECORDS, WAIT_QUOTA_OPS = 14, 15, 16, 17, 18
WAIT_QUOTA_BYTES, WAIT_PAGES, WAIT_SEARCH, WAIT_CLOSED, WAIT_REVOKED = 19, 20, 21, 22, 23
WAIT_PREDECESSOR, WAIT_SURVIVOR, WAIT_EDGES, WAIT_QUOTA_EDGES, WAIT_DISTANCE = 24, 25, 26, 27, 28
RECORDER_MAGIC = int.from_bytes(b"VRECORDS", "little")
RECORDER_HEADER_BYTES, RECORDER_ENTRIES_MAX, RECORD_TIME_SHIFT = 4096, 65536, 16
FEATURE_RECORDER, SESSION_OWN, RING_ANY = 1, 0xFFFF_FFFF, 0xFFFF_FFFF
TELEMETRY_MAGIC = int.from_bytes(b"VRMETERS", "little")
TELEMETRY_HEADER_BYTES, BLOCK_STRIDE, BLOCK_COUNTERS = 4096, 4096, 32
HISTOGRAM_BUCKETS, HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS = 240, 16, 8
TELEMETRY_LANES, WAIT_REASONS, FEATURE_TELEMETRY = 6, 16, 2
FEATURE_CARDS, CARD_ADDRESSES_MAX, CARD_NAME_BYTES = 8, 4, 80
FEATURE_PEERS, UNHEARD, PEER_OURS, PEER_THEIRS, PEER_RAIL_APART = 4, 0xFFFF_FFFF, 1, 2, 4
PHASE_REACHING, PHASE_GREETING, PHASE_JOINING, PHASE_UP, PHASE_LOST, PHASE_GONE = 1, 2, 3, 4, 5, 6
JOINT_CONNECTING, JOINT_UP, JOINT_QUIESCING, JOINT_REBUILDING = 1, 2, 3, 4
JOINT_PUT_OFF, JOINT_LOST = 5, 6
PEER_RAILS_MAX, PEER_ERROR_BYTES = 12, 152
SECRET_BYTES, NAME_BYTES, URL_BYTES = 32, 64, 128
ERROR_TEXT_MAX, MESSAGE_BYTES_MAX, COUNTERS = 240, 512, 40


class Errno(enum.IntEnum):
    """errno values of the ABI; Linux's, whatever this host's headers say."""

    ENOENT, EIO, E2BIG, ENOMEM, EACCES, EEXIST, EINVAL = 2, 5, 7, 12, 13, 17, 22
    ETIME, EPROTO, EOPNOTSUPP, ENETUNREACH = 62, 71, 95, 101
    ESHUTDOWN, ETIMEDOUT, EHOSTDOWN = 108, 110, 112
    EALREADY, ESTALE, EDQUOT, ECANCELED = 114, 116, 122, 125


Op = enum.IntEnum(
    "Op", "NOP WRITE READ WRITEV READV FETCH_ADD CMP_SWAP JOIN CANCEL FLUSH ARM RUN", start=0)
Class = enum.IntEnum("Class", "HIGH MEDIUM LOW")
Detail = enum.IntEnum(
    "Detail",
    "NONE OPCODE CLASS FLAGS EDGES LOCAL_REGION REMOTE_REGION LOCAL_OFFSET REMOTE_OFFSET BYTES "
    "IMMEDIATE ARG RIGHTS PAGE OVERLAP DEADLINE CANCELLED CLOSING REVOKED MESSAGE VERSION ENTRIES "
    "DESCRIPTORS SEALS NAME SECRET QUOTA RING RELEASED FAULTED PEER "
    "URL REQUIRE WIRE", start=0)
Kind = enum.IntEnum(
    "Kind", "HELLO RING MAPPED REGION EXPORT IMPORT CONNECT RELEASE PREPARE PROBE STATS CANCEL WHY "
    "RECORDER TELEMETRY PEERS CARDS")
Counter = enum.IntEnum(
    "Counter",
    "TAKEN COMPLETED REFUSED FAILED CANCELLED OPS_HIGH OPS_MEDIUM OPS_LOW BYTES NOTIFIED IN_FLIGHT "
    "RINGS REGIONS REGION_BYTES SESSIONS TURNS SLEEPS RECORDS DESCRIPTORS FAULTS DEFERS BELLS_RUNG "
    "EVICTED EDGES_OVER EDGES_LIVE DEP_FAILED FOLD_HIT FOLD_NONE FOLD_DISABLED FOLD_EDGES FOLD_KEY "
    "FOLD_STARTED SUPERSEDED MERGED", start=0)
# Words of a block of the telemetry page; WAITS is the first of WAIT_REASONS.
Tally = enum.IntEnum(
    "Tally",
    "SEQUENCE ENQUEUED DISPATCHED COMPLETED BYTES PASSED QUEUED IN_FLIGHT FAILED WITHDRAWN "
    "CANCELLED REQUEUED RETURNED DEFERS USES SPARE WAITS", start=0)


class Layout:
    """A packed little-endian layout, written as "name:format ..." with struct's letters."""

    def __init__(self, name, fields):
        self.parts, self.offsets, self.size = {}, {}, 0
        for field, code in (field.split(":") for field in fields.split()):
            part = struct.Struct("<" + code)
            self.parts[field], self.offsets[field] = part, self.size
            self.size += part.size
        self.struct = struct.Struct("<" + "".join(f.split(":")[1] for f in fields.split()))
        names = [n for n in self.parts if n not in ("head", "reply", "reserved")]
        self.record = collections.namedtuple(name, names)

    def pack(self, **values):
        """Returns the bytes; fields not given are zero, arrays are tuples."""
        out = []
        for name, part in self.parts.items():
            value = values.pop(name, None)
            if value is None:
                out.append(bytes(part.size))
            else:
                out.append(part.pack(*value if isinstance(value, tuple) else (value,)))
        if values:
            raise TypeError(f"no such field: {', '.join(values)}")
        return b"".join(out)

    def unpack(self, data):
        """Returns a named tuple of the fields that mean something."""
        out = []
        for name in self.record._fields:
            value = self.parts[name].unpack_from(data, self.offsets[name])
            out.append(value[0] if len(value) == 1 else value)
        return self.record(*out)


SQE = Layout("Sqe", "opcode:B class_:B flags:H edges:2H user_data:Q local_region:I remote_region:I "
             "local_offset:Q remote_offset:Q bytes:I immediate:I arg:2Q")
PAGE = Layout("Page", "local_offset:Q remote_offset:Q")
CQE = Layout("Cqe", "user_data:Q record:Q res:i flags:H detail:H queued:I service:I")
SEGMENT = Layout(
    "SegmentHeader",
    "magic:Q abi_version:I header_bytes:I features:Q sq_entries:I cq_entries:I sq_offset:Q "
    "cq_offset:Q fate_offset:Q sqe_stride:I cqe_stride:I fate_stride:I first_index:I "
    "segment_bytes:Q boot_id:2Q engine:I ring:I")
HEADER_BYTES, FATE_BYTES = 4096, 16
RECORDER_HEADER = Layout(
    "RecorderHeader",
    "magic:Q abi_version:I header_bytes:I entry_stride:I entries:I boot_id:2Q engine:I session:I "
    "engine_pid:I client_pid:I uid:I reserved:I")
RECORD = Layout(
    "Record",
    "sequence:I ring:H class_:B opcode:B record:Q user_data:Q taken_ns:Q queued:Q total:Q res:i "
    "flags:H detail:H bytes:I rail:B wait:B cause:B retries:B")
TELEMETRY_HEADER = Layout(
    "TelemetryHeader",
    "magic:Q abi_version:I header_bytes:I block_stride:I counters:I buckets:I unit_ns:I steps:I "
    "lanes:I rails:I sessions:I boot_id:2Q engine:I engine_pid:I")

HEAD = Layout("Head", "kind:H reserved:H bytes:I tag:Q")
REPLY_HEAD = Layout("ReplyHead", "kind:H reserved:H bytes:I tag:Q status:i detail:I")


def _request(name, fields):
    return Layout(name, f"head:{HEAD.size}s {fields}")


def _reply(name, fields):
    return Layout(name, f"reply:{REPLY_HEAD.size}s {fields}")


HELLO = _request("Hello", "version_min:H version_max:H reserved:I features:Q name:32s")
HELLO_REPLY = _reply("HelloReply", "version:I session:I features:Q boot_id:2Q engine:I pid:I")
RING_REQUEST = _request("RingRequest", "sq_entries:I cq_entries:I flags:I reserved:I")
RING_REPLY = _reply("RingReply", "ring:I reserved:I segment_bytes:Q")
MAPPED = _request("Mapped", "object:I id:I")
REGION_REQUEST = _request("RegionRequest", "source:I flags:I bytes:Q")
REGION_REPLY = _reply("RegionReply", "region:I flags:I bytes:Q")
EXPORT = _request("Export", f"region:I rights:I name:{NAME_BYTES}s")
EXPORT_REPLY = _reply("ExportReply", f"secret:{SECRET_BYTES}s")
IMPORT = _request(
    "Import",
    f"rights:I uid:I name:{NAME_BYTES}s secret:{SECRET_BYTES}s peer:I reserved:I")
IMPORT_REPLY = _reply("ImportReply", "region:I rights:I bytes:Q")
CONNECT = _request("Connect", f"require:I reserved:I url:{URL_BYTES}s")
CONNECT_REPLY = _reply("ConnectReply", "peer:I fabric:I rail:I reserved:I")
RELEASE = _request("Release", "object:I id:I")
PROBE = _request("Probe", "")
PROBE_REPLY = _reply(
    "ProbeReply", "opcodes:Q sqe_flags:Q features:Q fabrics:Q op_bytes_max:I pages_max:I "
    "entries_max:I rings_max:I regions_max:I class_ceiling:I region_bytes_max:Q window_ops:I "
    "slice_bytes:I window_bytes:Q uid:I contract:I sessions_max:I ops_max:I weight:I "
    "control_per_s:I ops_bytes_max:Q high_bytes_max:Q")
STATS = _request("Stats", "scope:I reserved:I")
STATS_REPLY = _reply("StatsReply", f"counters:{COUNTERS}Q")
OP_QUERY = _request("OpQuery", "ring:I by:I target:Q")
CANCEL_REPLY = _reply("CancelReply", "record:Q")
WHY_REPLY = _reply(
    "WhyReply", "record:Q number:Q user_data:Q age_ns:Q queued_ns:Q bytes:Q bytes_done:Q ahead:I "
    "defers:I opcode:H class_:H state:H wait:H reserved:Q taken_ns:Q used:Q limit:Q wants:Q "
    "rails:Q rail_states:Q ring:I session:I flows:I posts:I in_fabric:I rail:H origin:B mode:B")
RECORDER_REQUEST = _request("RecorderRequest", "session:I reserved:I")
RECORDER_REPLY = _reply("RecorderReply", "session:I entries:I bytes:Q")
TELEMETRY_REQUEST = _request("TelemetryRequest", "")
TELEMETRY_REPLY = _reply("TelemetryReply", "bytes:Q")
PEERS_REQUEST = _request("PeersRequest", "at:I reserved:I")
PEER_RAIL = Layout(
    "PeerRail", "queue_pair:I rail:B card:B class_:B state:B rebuilt:H put_off_ms:H")
PEERS_REPLY = _reply(
    "PeersReply", "at:I count:I phase_ms:Q boot_id:2Q pid:I heard_ms:I imports:I loans:I "
    "sessions:I error_ms:I phase:B direction:B rails_count:B reserved:5s "
    f"place:{URL_BYTES}s rails:{PEER_RAIL.size * PEER_RAILS_MAX}s error:{PEER_ERROR_BYTES}s")
CARDS_REQUEST = _request("CardsRequest", "card:I reserved:I")
CARDS_REPLY = _reply(
    "CardsReply", "card:I count:I window_bytes:Q window_ops:I window_wrs:I "
    f"addresses:{16 * CARD_ADDRESSES_MAX}s addresses_count:B reserved:7s name:{CARD_NAME_BYTES}s")
