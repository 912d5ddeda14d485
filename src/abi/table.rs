//! The ABI as a list of names and numbers, for the frozen table and for other languages' tests.

use core::mem::offset_of;

use super::*;

macro_rules! fields {
    ($out:ident, $label:literal, $ty:ident, $($field:ident)*) => {
        $out.push((concat!($label, ".size").to_string(), size_of::<$ty>() as u64));
        $({
            let name = concat!($label, ".", stringify!($field));
            $out.push((name.to_string(), offset_of!($ty, $field) as u64));
        })*
    };
}

macro_rules! constants {
    ($out:ident, $($name:ident)*) => {
        $($out.push((stringify!($name).to_string(), u64::from($name)));)*
    };
}

/// Lists every offset, size and constant of ABI 1, as `name value`, in a fixed order.
///
/// Names are `struct.field` for offsets, `struct.size` for sizes, and the constant's own name
/// otherwise. The C header and the Python client print the same list about themselves.
#[must_use]
pub fn table() -> Vec<(String, u64)> {
    let mut out = Vec::new();
    layouts(&mut out);
    numbers(&mut out);
    messages(&mut out);
    out
}

fn layouts(out: &mut Vec<(String, u64)>) {
    fields!(out, "sqe", Sqe, opcode class flags edges user_data local_region remote_region
        local_offset remote_offset bytes immediate arg);
    fields!(out, "page", Page, local_offset remote_offset);
    fields!(out, "cqe", Cqe, user_data record res flags detail queued service);
    fields!(out, "segment", SegmentHeader, magic abi_version header_bytes features sq_entries
        cq_entries sq_offset cq_offset fate_offset sqe_stride cqe_stride fate_stride first_index
        segment_bytes boot_id engine ring);
    fields!(out, "recorder_header", RecorderHeader, magic abi_version header_bytes entry_stride
        entries boot_id engine session engine_pid client_pid uid reserved);
    fields!(out, "record", RecordEntry, sequence ring class opcode record user_data taken_ns
        queued total res flags detail bytes rail wait cause retries);
    fields!(out, "telemetry_header", TelemetryHeader, magic abi_version header_bytes block_stride
        counters buckets unit_ns steps lanes rails sessions boot_id engine engine_pid);
}

fn numbers(out: &mut Vec<(String, u64)>) {
    constants!(out, MAGIC ABI_VERSION OP_BYTES_MAX PAGES_MAX ENTRIES_MIN ENTRIES_MAX
        CQE_TIME_UNIT_NS
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
        STATE_QUEUED STATE_POSTED STATE_ARMED STATE_FLUSHING STATE_UNTAKEN
        STATE_WAITING STATE_FOLDED
        MODE_WEIGHTED MODE_STRICT MODE_FIFO MODE_TENT MODE_DIRECT
        RAIL_OPEN RAIL_FULL RAIL_MEMORY RAIL_CONNECTING RAIL_DEGRADED RAIL_REBUILDING RAIL_PAUSED
        RAIL_DEAD
        WAIT_NONE WAIT_LANE WAIT_CLASS WAIT_WINDOW_OPS WAIT_WINDOW_BYTES WAIT_FABRIC WAIT_EARLIER
        WAIT_NOTIFY WAIT_RAIL WAIT_CREDIT WAIT_WINDOW_WRS WAIT_PEER WAIT_TURN WAIT_CAP
        WAIT_BELL WAIT_INTAKE WAIT_CQ WAIT_RECORDS WAIT_QUOTA_OPS WAIT_QUOTA_BYTES WAIT_PAGES
        WAIT_SEARCH WAIT_CLOSED WAIT_REVOKED WAIT_PREDECESSOR WAIT_SURVIVOR WAIT_EDGES
        WAIT_QUOTA_EDGES WAIT_DISTANCE
        RECORDER_MAGIC RECORDER_HEADER_BYTES RECORDER_ENTRIES_MAX RECORD_TIME_SHIFT FEATURE_RECORDER
        SESSION_OWN RING_ANY
        TELEMETRY_MAGIC TELEMETRY_HEADER_BYTES BLOCK_STRIDE BLOCK_COUNTERS HISTOGRAM_BUCKETS
        HISTOGRAM_UNIT_NS HISTOGRAM_STEPS TELEMETRY_LANES WAIT_REASONS FEATURE_TELEMETRY
        FEATURE_PEERS UNHEARD PEER_OURS PEER_THEIRS PEER_RAIL_APART FEATURE_CARDS
        PHASE_REACHING PHASE_GREETING PHASE_JOINING PHASE_UP PHASE_LOST PHASE_GONE
        JOINT_CONNECTING JOINT_UP JOINT_QUIESCING JOINT_REBUILDING JOINT_PUT_OFF JOINT_LOST);
    out.push(("SECRET_BYTES".to_string(), SECRET_BYTES as u64));
    out.push(("NAME_BYTES".to_string(), NAME_BYTES as u64));
    out.push(("URL_BYTES".to_string(), URL_BYTES as u64));
    out.push(("PEER_RAILS_MAX".to_string(), PEER_RAILS_MAX as u64));
    out.push(("PEER_ERROR_BYTES".to_string(), PEER_ERROR_BYTES as u64));
    out.push(("CARD_ADDRESSES_MAX".to_string(), CARD_ADDRESSES_MAX as u64));
    out.push(("CARD_NAME_BYTES".to_string(), CARD_NAME_BYTES as u64));
    out.push(("ERROR_TEXT_MAX".to_string(), ERROR_TEXT_MAX as u64));
    out.push(("MESSAGE_BYTES_MAX".to_string(), MESSAGE_BYTES_MAX as u64));
    out.push(("COUNTERS".to_string(), Counter::COUNT as u64));
    macro_rules! errnos {
        ($($name:ident)*) => { [$((stringify!($name), errno::$name)),*] };
    }
    let errnos = errnos!(ENOENT EIO E2BIG ENOMEM EACCES EEXIST EINVAL ETIME EPROTO EOPNOTSUPP
        ENETUNREACH ESHUTDOWN ETIMEDOUT EHOSTDOWN EALREADY ESTALE EDQUOT ECANCELED);
    out.extend(
        errnos.iter().map(|(name, value)| (name.to_string(), u64::from(value.unsigned_abs()))),
    );
    let named = |prefix: &str, name: String| format!("{prefix}_{}", shout(&name));
    out.extend(Opcode::ALL.iter().map(|op| (named("OP", format!("{op:?}")), u64::from(*op as u8))));
    out.extend(Class::ALL.iter().map(|c| (named("CLASS", format!("{c:?}")), u64::from(*c as u8))));
    out.extend(
        Detail::ALL.iter().map(|d| (named("DETAIL", format!("{d:?}")), u64::from(*d as u16))),
    );
    out.extend(Kind::ALL.iter().map(|k| (named("KIND", format!("{k:?}")), u64::from(*k as u16))));
    out.extend(
        Counter::ALL.iter().map(|c| (named("COUNTER", format!("{c:?}")), u64::from(*c as u8))),
    );
    out.extend(Tally::ALL.iter().map(|t| (named("TALLY", format!("{t:?}")), u64::from(*t as u8))));
}

fn messages(out: &mut Vec<(String, u64)>) {
    macro_rules! message {
        ($($label:literal $ty:ident)*) => {
            $(
                out.push((concat!($label, ".size").to_string(), size_of::<$ty>() as u64));
                for (field, offset) in $ty::FIELDS {
                    out.push((format!("{}.{field}", $label), *offset as u64));
                }
            )*
        };
    }
    message!("head" Head "reply_head" ReplyHead "hello" Hello "hello_reply" HelloReply
        "ring_request" RingRequest "ring_reply" RingReply "mapped" Mapped
        "region_request" RegionRequest "region_reply" RegionReply "export" Export
        "export_reply" ExportReply "import" Import "import_reply" ImportReply "connect" Connect
        "connect_reply" ConnectReply "release" Release "probe" Probe "probe_reply" ProbeReply
        "stats" Stats "stats_reply" StatsReply "op_query" OpQuery "cancel_reply" CancelReply
        "why_reply" WhyReply "recorder_request" RecorderRequest "recorder_reply" RecorderReply
        "telemetry_request" TelemetryRequest "telemetry_reply" TelemetryReply
        "peers_request" PeersRequest "peer_rail" PeerRail "peers_reply" PeersReply
        "cards_request" CardsRequest "cards_reply" CardsReply);
}

/// `FetchAdd` to `FETCH_ADD`.
fn shout(camel: &str) -> String {
    let mut out = String::new();
    for (at, letter) in camel.chars().enumerate() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}
