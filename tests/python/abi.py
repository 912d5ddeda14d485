"""Prints the ABI as the Python client knows it, in the form and order of `tests/abi.table`.

Every line comes from the constants, enumerations and struct formats that the client itself packs
and unpacks with; only the choice and order of names is written down here.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))

import verbring_abi as abi  # noqa: E402

CONSTANTS = """
MAGIC ABI_VERSION OP_BYTES_MAX PAGES_MAX ENTRIES_MIN ENTRIES_MAX CQE_TIME_UNIT_NS
AT_SQ_TAIL AT_CQ_HEAD AT_BELL_AT AT_SQ_HEAD AT_CQ_TAIL AT_ENGINE_FLAGS AT_COUNTERS
ENGINE_NEED_WAKEUP ENGINE_CLOSING ENGINE_FAULTED
FAULT_SQ_TAIL_BEYOND FAULT_SQ_TAIL_BACK FAULT_CQ_HEAD
FATE_FREE FATE_ACCEPTED FATE_POSTED FATE_SHIFT
SQE_LINK SQE_HARDLINK SQE_DRAIN SQE_COALESCE SQE_SUPERSEDE SQE_NO_MERGE SQE_NOTIFY
SQE_SKIP_SUCCESS SQE_REVOKE EDGE_ORDER_ONLY
CANCEL_BY_USER_DATA CANCEL_BY_NUMBER CANCEL_BY_RECORD
CQE_RETRYABLE CQE_MAYBE_DONE CQE_COALESCED CQE_DEP_FAILED CQE_FLUSHED CQE_NOTIFY CQE_MORE
FABRIC_NONE FABRIC_LOCAL FABRIC_VERBS
REPLY UID_OWN RING_FENCELESS OBJECT_RING OBJECT_REGION REGION_ALLOCATED REGION_MEMFD
REGION_HUGE RIGHT_READ RIGHT_WRITE RIGHT_ATOMIC RIGHT_NOTIFY CONTRACT_ALL CONTRACT_UID
STATS_SESSION STATS_ENGINE
STATE_QUEUED STATE_POSTED STATE_ARMED STATE_FLUSHING STATE_UNTAKEN STATE_WAITING STATE_FOLDED
MODE_WEIGHTED MODE_STRICT MODE_FIFO MODE_TENT MODE_DIRECT
RAIL_OPEN RAIL_FULL RAIL_MEMORY RAIL_CONNECTING RAIL_DEGRADED RAIL_REBUILDING RAIL_PAUSED
RAIL_DEAD
WAIT_NONE WAIT_LANE WAIT_CLASS WAIT_WINDOW_OPS WAIT_WINDOW_BYTES WAIT_FABRIC WAIT_EARLIER
WAIT_NOTIFY WAIT_RAIL WAIT_CREDIT WAIT_WINDOW_WRS WAIT_PEER WAIT_TURN WAIT_CAP
WAIT_BELL WAIT_INTAKE WAIT_CQ WAIT_RECORDS WAIT_QUOTA_OPS WAIT_QUOTA_BYTES WAIT_PAGES
WAIT_SEARCH WAIT_CLOSED WAIT_REVOKED
WAIT_PREDECESSOR WAIT_SURVIVOR WAIT_EDGES WAIT_QUOTA_EDGES WAIT_DISTANCE
RECORDER_MAGIC RECORDER_HEADER_BYTES RECORDER_ENTRIES_MAX RECORD_TIME_SHIFT FEATURE_RECORDER
SESSION_OWN RING_ANY
TELEMETRY_MAGIC TELEMETRY_HEADER_BYTES BLOCK_STRIDE BLOCK_COUNTERS HISTOGRAM_BUCKETS
HISTOGRAM_UNIT_NS HISTOGRAM_STEPS TELEMETRY_LANES WAIT_REASONS FEATURE_TELEMETRY
FEATURE_PEERS UNHEARD PEER_OURS PEER_THEIRS PEER_RAIL_APART FEATURE_CARDS
PHASE_REACHING PHASE_GREETING PHASE_JOINING PHASE_UP PHASE_LOST PHASE_GONE
JOINT_CONNECTING JOINT_UP JOINT_QUIESCING JOINT_REBUILDING JOINT_PUT_OFF JOINT_LOST
SECRET_BYTES NAME_BYTES URL_BYTES PEER_RAILS_MAX PEER_ERROR_BYTES
CARD_ADDRESSES_MAX CARD_NAME_BYTES
ERROR_TEXT_MAX MESSAGE_BYTES_MAX COUNTERS
"""

ENUMERATIONS = (
    ("", abi.Errno), ("OP_", abi.Op), ("CLASS_", abi.Class), ("DETAIL_", abi.Detail),
    ("KIND_", abi.Kind), ("COUNTER_", abi.Counter),
    ("TALLY_", abi.Tally),
)

RING = (("sqe", abi.SQE), ("page", abi.PAGE), ("cqe", abi.CQE), ("segment", abi.SEGMENT),
        ("recorder_header", abi.RECORDER_HEADER), ("record", abi.RECORD),
        ("telemetry_header", abi.TELEMETRY_HEADER))

MESSAGES = (
    ("head", abi.HEAD), ("reply_head", abi.REPLY_HEAD), ("hello", abi.HELLO),
    ("hello_reply", abi.HELLO_REPLY), ("ring_request", abi.RING_REQUEST),
    ("ring_reply", abi.RING_REPLY), ("mapped", abi.MAPPED),
    ("region_request", abi.REGION_REQUEST), ("region_reply", abi.REGION_REPLY),
    ("export", abi.EXPORT), ("export_reply", abi.EXPORT_REPLY), ("import", abi.IMPORT),
    ("import_reply", abi.IMPORT_REPLY), ("connect", abi.CONNECT),
    ("connect_reply", abi.CONNECT_REPLY), ("release", abi.RELEASE), ("probe", abi.PROBE),
    ("probe_reply", abi.PROBE_REPLY), ("stats", abi.STATS), ("stats_reply", abi.STATS_REPLY),
    ("op_query", abi.OP_QUERY), ("cancel_reply", abi.CANCEL_REPLY), ("why_reply", abi.WHY_REPLY),
    ("recorder_request", abi.RECORDER_REQUEST), ("recorder_reply", abi.RECORDER_REPLY),
    ("telemetry_request", abi.TELEMETRY_REQUEST), ("telemetry_reply", abi.TELEMETRY_REPLY),
    ("peers_request", abi.PEERS_REQUEST), ("peer_rail", abi.PEER_RAIL),
    ("peers_reply", abi.PEERS_REPLY), ("cards_request", abi.CARDS_REQUEST),
    ("cards_reply", abi.CARDS_REPLY),
)


def layouts(named):
    for label, layout in named:
        yield f"{label}.size", layout.size
        for field, offset in layout.offsets.items():
            yield f"{label}.{field.rstrip('_')}", offset


def table():
    """Yields (name, value) in the table's order."""
    yield from layouts(RING)
    for name in CONSTANTS.split():
        yield name, getattr(abi, name)
    for prefix, numbers in ENUMERATIONS:
        for number in numbers:
            yield prefix + number.name, number.value
    yield from layouts(MESSAGES)


if __name__ == "__main__":
    for entry in table():
        print(*entry)
