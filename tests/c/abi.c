/* What this header says about the ABI, as `name value` lines in the order of tests/abi.table: the
 * two must be equal. Fields must also fill their struct without a gap, which a field of the wrong
 * width would leave. Compiled as C11 and as C++17. */
#include "verbring.h"

#include <inttypes.h>
#include <stdlib.h>

static size_t struct_bytes, filled_bytes;

static void show(const char *name, uint64_t value)
{
    printf("%s %" PRIu64 "\n", name, value);
}

static void expect_filled(const char *name, size_t bytes)
{
    if (filled_bytes != bytes) {
        fprintf(stderr, "at %s: fields fill %zu bytes of %zu\n", name, filled_bytes, bytes);
        exit(1);
    }
}

static void show_size(const char *name, size_t bytes)
{
    expect_filled(name, struct_bytes);
    struct_bytes = bytes;
    filled_bytes = 0;
    show(name, bytes);
}

static void show_field(const char *name, size_t offset, size_t bytes)
{
    expect_filled(name, offset);
    filled_bytes += bytes;
    show(name, offset);
}

/* The C names are the ABI's with a prefix; `class` alone differs, being a keyword in C++. */
#define SIZE(type) show_size(#type ".size", sizeof(struct vr_##type))
#define PLACE(type, name, field)                                      \
    show_field(#type "." name, offsetof(struct vr_##type, field),     \
               sizeof(((const struct vr_##type *)NULL)->field))
#define FIELD(type, field) PLACE(type, #field, field)
#define CLASS(type) PLACE(type, "class", class_)
#define NUMBER(name) show(#name, (uint64_t)VR_##name)

static void layouts(void)
{
    SIZE(sqe);
    FIELD(sqe, opcode);
    CLASS(sqe);
    FIELD(sqe, flags);
    FIELD(sqe, edges);
    FIELD(sqe, user_data);
    FIELD(sqe, local_region);
    FIELD(sqe, remote_region);
    FIELD(sqe, local_offset);
    FIELD(sqe, remote_offset);
    FIELD(sqe, bytes);
    FIELD(sqe, immediate);
    FIELD(sqe, arg);
    SIZE(page);
    FIELD(page, local_offset);
    FIELD(page, remote_offset);
    SIZE(cqe);
    FIELD(cqe, user_data);
    FIELD(cqe, record);
    FIELD(cqe, res);
    FIELD(cqe, flags);
    FIELD(cqe, detail);
    FIELD(cqe, queued);
    FIELD(cqe, service);
    SIZE(segment);
    FIELD(segment, magic);
    FIELD(segment, abi_version);
    FIELD(segment, header_bytes);
    FIELD(segment, features);
    FIELD(segment, sq_entries);
    FIELD(segment, cq_entries);
    FIELD(segment, sq_offset);
    FIELD(segment, cq_offset);
    FIELD(segment, fate_offset);
    FIELD(segment, sqe_stride);
    FIELD(segment, cqe_stride);
    FIELD(segment, fate_stride);
    FIELD(segment, first_index);
    FIELD(segment, segment_bytes);
    FIELD(segment, boot_id);
    FIELD(segment, engine);
    FIELD(segment, ring);
    SIZE(recorder_header);
    FIELD(recorder_header, magic);
    FIELD(recorder_header, abi_version);
    FIELD(recorder_header, header_bytes);
    FIELD(recorder_header, entry_stride);
    FIELD(recorder_header, entries);
    FIELD(recorder_header, boot_id);
    FIELD(recorder_header, engine);
    FIELD(recorder_header, session);
    FIELD(recorder_header, engine_pid);
    FIELD(recorder_header, client_pid);
    FIELD(recorder_header, uid);
    FIELD(recorder_header, reserved);
    SIZE(record);
    FIELD(record, sequence);
    FIELD(record, ring);
    CLASS(record);
    FIELD(record, opcode);
    FIELD(record, record);
    FIELD(record, user_data);
    FIELD(record, taken_ns);
    FIELD(record, queued);
    FIELD(record, total);
    FIELD(record, res);
    FIELD(record, flags);
    FIELD(record, detail);
    FIELD(record, bytes);
    FIELD(record, rail);
    FIELD(record, wait);
    FIELD(record, cause);
    FIELD(record, retries);
}

static void numbers(void)
{
    NUMBER(MAGIC);
    NUMBER(ABI_VERSION);
    NUMBER(OP_BYTES_MAX);
    NUMBER(PAGES_MAX);
    NUMBER(ENTRIES_MIN);
    NUMBER(ENTRIES_MAX);
    NUMBER(CQE_TIME_UNIT_NS);
    NUMBER(AT_SQ_TAIL);
    NUMBER(AT_CQ_HEAD);
    NUMBER(AT_BELL_AT);
    NUMBER(AT_SQ_HEAD);
    NUMBER(AT_CQ_TAIL);
    NUMBER(AT_ENGINE_FLAGS);
    NUMBER(AT_COUNTERS);
    NUMBER(ENGINE_NEED_WAKEUP);
    NUMBER(ENGINE_CLOSING);
    NUMBER(ENGINE_FAULTED);
    NUMBER(FAULT_SQ_TAIL_BEYOND);
    NUMBER(FAULT_SQ_TAIL_BACK);
    NUMBER(FAULT_CQ_HEAD);
    NUMBER(FATE_FREE);
    NUMBER(FATE_ACCEPTED);
    NUMBER(FATE_POSTED);
    NUMBER(FATE_SHIFT);
    NUMBER(SQE_LINK);
    NUMBER(SQE_HARDLINK);
    NUMBER(SQE_DRAIN);
    NUMBER(SQE_COALESCE);
    NUMBER(SQE_SUPERSEDE);
    NUMBER(SQE_NO_MERGE);
    NUMBER(SQE_NOTIFY);
    NUMBER(SQE_SKIP_SUCCESS);
    NUMBER(SQE_REVOKE);
    NUMBER(EDGE_ORDER_ONLY);
    NUMBER(CANCEL_BY_USER_DATA);
    NUMBER(CANCEL_BY_NUMBER);
    NUMBER(CANCEL_BY_RECORD);
    NUMBER(CQE_RETRYABLE);
    NUMBER(CQE_MAYBE_DONE);
    NUMBER(CQE_COALESCED);
    NUMBER(CQE_DEP_FAILED);
    NUMBER(CQE_FLUSHED);
    NUMBER(CQE_NOTIFY);
    NUMBER(CQE_MORE);
    NUMBER(FABRIC_NONE);
    NUMBER(FABRIC_LOCAL);
    NUMBER(FABRIC_VERBS);
    NUMBER(REPLY);
    NUMBER(UID_OWN);
    NUMBER(RING_FENCELESS);
    NUMBER(OBJECT_RING);
    NUMBER(OBJECT_REGION);
    NUMBER(REGION_ALLOCATED);
    NUMBER(REGION_MEMFD);
    NUMBER(REGION_HUGE);
    NUMBER(RIGHT_READ);
    NUMBER(RIGHT_WRITE);
    NUMBER(RIGHT_ATOMIC);
    NUMBER(RIGHT_NOTIFY);
    NUMBER(CONTRACT_ALL);
    NUMBER(CONTRACT_UID);
    NUMBER(STATS_SESSION);
    NUMBER(STATS_ENGINE);
    NUMBER(STATE_QUEUED);
    NUMBER(STATE_POSTED);
    NUMBER(STATE_ARMED);
    NUMBER(STATE_FLUSHING);
    NUMBER(WAIT_NONE);
    NUMBER(WAIT_LANE);
    NUMBER(WAIT_CLASS);
    NUMBER(WAIT_WINDOW_OPS);
    NUMBER(WAIT_WINDOW_BYTES);
    NUMBER(WAIT_FABRIC);
    NUMBER(WAIT_EARLIER);
    NUMBER(WAIT_NOTIFY);
    NUMBER(WAIT_RAIL);
    NUMBER(WAIT_CREDIT);
    NUMBER(WAIT_WINDOW_WRS);
    NUMBER(WAIT_PEER);
    NUMBER(WAIT_TURN);
    NUMBER(WAIT_CAP);
    NUMBER(RECORDER_MAGIC);
    NUMBER(RECORDER_HEADER_BYTES);
    NUMBER(RECORDER_ENTRIES_MAX);
    NUMBER(RECORD_TIME_SHIFT);
    NUMBER(FEATURE_RECORDER);
    NUMBER(SESSION_OWN);
    NUMBER(RING_ANY);
    NUMBER(SECRET_BYTES);
    NUMBER(NAME_BYTES);
    NUMBER(URL_BYTES);
    NUMBER(ERROR_TEXT_MAX);
    NUMBER(MESSAGE_BYTES_MAX);
    NUMBER(COUNTERS);
    NUMBER(ENOENT);
    NUMBER(EIO);
    NUMBER(E2BIG);
    NUMBER(ENOMEM);
    NUMBER(EACCES);
    NUMBER(EEXIST);
    NUMBER(EINVAL);
    NUMBER(ETIME);
    NUMBER(EPROTO);
    NUMBER(EOPNOTSUPP);
    NUMBER(ENETUNREACH);
    NUMBER(ESHUTDOWN);
    NUMBER(ETIMEDOUT);
    NUMBER(EHOSTDOWN);
    NUMBER(EALREADY);
    NUMBER(ESTALE);
    NUMBER(EDQUOT);
    NUMBER(ECANCELED);
    NUMBER(OP_NOP);
    NUMBER(OP_WRITE);
    NUMBER(OP_READ);
    NUMBER(OP_WRITEV);
    NUMBER(OP_READV);
    NUMBER(OP_FETCH_ADD);
    NUMBER(OP_CMP_SWAP);
    NUMBER(OP_JOIN);
    NUMBER(OP_CANCEL);
    NUMBER(OP_FLUSH);
    NUMBER(OP_ARM);
    NUMBER(OP_RUN);
    NUMBER(CLASS_HIGH);
    NUMBER(CLASS_MEDIUM);
    NUMBER(CLASS_LOW);
    NUMBER(DETAIL_NONE);
    NUMBER(DETAIL_OPCODE);
    NUMBER(DETAIL_CLASS);
    NUMBER(DETAIL_FLAGS);
    NUMBER(DETAIL_EDGES);
    NUMBER(DETAIL_LOCAL_REGION);
    NUMBER(DETAIL_REMOTE_REGION);
    NUMBER(DETAIL_LOCAL_OFFSET);
    NUMBER(DETAIL_REMOTE_OFFSET);
    NUMBER(DETAIL_BYTES);
    NUMBER(DETAIL_IMMEDIATE);
    NUMBER(DETAIL_ARG);
    NUMBER(DETAIL_RIGHTS);
    NUMBER(DETAIL_PAGE);
    NUMBER(DETAIL_OVERLAP);
    NUMBER(DETAIL_DEADLINE);
    NUMBER(DETAIL_CANCELLED);
    NUMBER(DETAIL_CLOSING);
    NUMBER(DETAIL_REVOKED);
    NUMBER(DETAIL_MESSAGE);
    NUMBER(DETAIL_VERSION);
    NUMBER(DETAIL_ENTRIES);
    NUMBER(DETAIL_DESCRIPTORS);
    NUMBER(DETAIL_SEALS);
    NUMBER(DETAIL_NAME);
    NUMBER(DETAIL_SECRET);
    NUMBER(DETAIL_QUOTA);
    NUMBER(DETAIL_RING);
    NUMBER(DETAIL_RELEASED);
    NUMBER(DETAIL_FAULTED);
    NUMBER(DETAIL_PEER);
    NUMBER(DETAIL_URL);
    NUMBER(DETAIL_REQUIRE);
    NUMBER(DETAIL_WIRE);
    NUMBER(KIND_HELLO);
    NUMBER(KIND_RING);
    NUMBER(KIND_MAPPED);
    NUMBER(KIND_REGION);
    NUMBER(KIND_EXPORT);
    NUMBER(KIND_IMPORT);
    NUMBER(KIND_CONNECT);
    NUMBER(KIND_RELEASE);
    NUMBER(KIND_PREPARE);
    NUMBER(KIND_PROBE);
    NUMBER(KIND_STATS);
    NUMBER(KIND_CANCEL);
    NUMBER(KIND_WHY);
    NUMBER(KIND_RECORDER);
    NUMBER(COUNTER_TAKEN);
    NUMBER(COUNTER_COMPLETED);
    NUMBER(COUNTER_REFUSED);
    NUMBER(COUNTER_FAILED);
    NUMBER(COUNTER_CANCELLED);
    NUMBER(COUNTER_OPS_HIGH);
    NUMBER(COUNTER_OPS_MEDIUM);
    NUMBER(COUNTER_OPS_LOW);
    NUMBER(COUNTER_BYTES);
    NUMBER(COUNTER_NOTIFIED);
    NUMBER(COUNTER_IN_FLIGHT);
    NUMBER(COUNTER_RINGS);
    NUMBER(COUNTER_REGIONS);
    NUMBER(COUNTER_REGION_BYTES);
    NUMBER(COUNTER_SESSIONS);
    NUMBER(COUNTER_TURNS);
    NUMBER(COUNTER_SLEEPS);
    NUMBER(COUNTER_RECORDS);
    NUMBER(COUNTER_DESCRIPTORS);
    NUMBER(COUNTER_FAULTS);
    NUMBER(COUNTER_DEFERS);
    NUMBER(COUNTER_BELLS_RUNG);
    NUMBER(COUNTER_EVICTED);
}

static void messages(void)
{
    SIZE(head);
    FIELD(head, kind);
    FIELD(head, reserved);
    FIELD(head, bytes);
    FIELD(head, tag);
    SIZE(reply_head);
    FIELD(reply_head, kind);
    FIELD(reply_head, reserved);
    FIELD(reply_head, bytes);
    FIELD(reply_head, tag);
    FIELD(reply_head, status);
    FIELD(reply_head, detail);
    SIZE(hello);
    FIELD(hello, head);
    FIELD(hello, version_min);
    FIELD(hello, version_max);
    FIELD(hello, reserved);
    FIELD(hello, features);
    FIELD(hello, name);
    SIZE(hello_reply);
    FIELD(hello_reply, reply);
    FIELD(hello_reply, version);
    FIELD(hello_reply, session);
    FIELD(hello_reply, features);
    FIELD(hello_reply, boot_id);
    FIELD(hello_reply, engine);
    FIELD(hello_reply, pid);
    SIZE(ring_request);
    FIELD(ring_request, head);
    FIELD(ring_request, sq_entries);
    FIELD(ring_request, cq_entries);
    FIELD(ring_request, flags);
    FIELD(ring_request, reserved);
    SIZE(ring_reply);
    FIELD(ring_reply, reply);
    FIELD(ring_reply, ring);
    FIELD(ring_reply, reserved);
    FIELD(ring_reply, segment_bytes);
    SIZE(mapped);
    FIELD(mapped, head);
    FIELD(mapped, object);
    FIELD(mapped, id);
    SIZE(region_request);
    FIELD(region_request, head);
    FIELD(region_request, source);
    FIELD(region_request, flags);
    FIELD(region_request, bytes);
    SIZE(region_reply);
    FIELD(region_reply, reply);
    FIELD(region_reply, region);
    FIELD(region_reply, flags);
    FIELD(region_reply, bytes);
    SIZE(export);
    FIELD(export, head);
    FIELD(export, region);
    FIELD(export, rights);
    FIELD(export, name);
    SIZE(export_reply);
    FIELD(export_reply, reply);
    FIELD(export_reply, secret);
    SIZE(import);
    FIELD(import, head);
    FIELD(import, rights);
    FIELD(import, uid);
    FIELD(import, name);
    FIELD(import, secret);
    FIELD(import, peer);
    FIELD(import, reserved);
    SIZE(import_reply);
    FIELD(import_reply, reply);
    FIELD(import_reply, region);
    FIELD(import_reply, rights);
    FIELD(import_reply, bytes);
    SIZE(connect);
    FIELD(connect, head);
    FIELD(connect, require);
    FIELD(connect, reserved);
    FIELD(connect, url);
    SIZE(connect_reply);
    FIELD(connect_reply, reply);
    FIELD(connect_reply, peer);
    FIELD(connect_reply, fabric);
    FIELD(connect_reply, rail);
    FIELD(connect_reply, reserved);
    SIZE(release);
    FIELD(release, head);
    FIELD(release, object);
    FIELD(release, id);
    SIZE(probe);
    FIELD(probe, head);
    SIZE(probe_reply);
    FIELD(probe_reply, reply);
    FIELD(probe_reply, opcodes);
    FIELD(probe_reply, sqe_flags);
    FIELD(probe_reply, features);
    FIELD(probe_reply, fabrics);
    FIELD(probe_reply, op_bytes_max);
    FIELD(probe_reply, pages_max);
    FIELD(probe_reply, entries_max);
    FIELD(probe_reply, rings_max);
    FIELD(probe_reply, regions_max);
    FIELD(probe_reply, class_ceiling);
    FIELD(probe_reply, region_bytes_max);
    FIELD(probe_reply, window_ops);
    FIELD(probe_reply, slice_bytes);
    FIELD(probe_reply, window_bytes);
    FIELD(probe_reply, uid);
    FIELD(probe_reply, contract);
    FIELD(probe_reply, sessions_max);
    FIELD(probe_reply, ops_max);
    FIELD(probe_reply, weight);
    FIELD(probe_reply, control_per_s);
    FIELD(probe_reply, ops_bytes_max);
    FIELD(probe_reply, high_bytes_max);
    SIZE(stats);
    FIELD(stats, head);
    FIELD(stats, scope);
    FIELD(stats, reserved);
    SIZE(stats_reply);
    FIELD(stats_reply, reply);
    FIELD(stats_reply, counters);
    SIZE(op_query);
    FIELD(op_query, head);
    FIELD(op_query, ring);
    FIELD(op_query, by);
    FIELD(op_query, target);
    SIZE(cancel_reply);
    FIELD(cancel_reply, reply);
    FIELD(cancel_reply, record);
    SIZE(why_reply);
    FIELD(why_reply, reply);
    FIELD(why_reply, record);
    FIELD(why_reply, number);
    FIELD(why_reply, user_data);
    FIELD(why_reply, age_ns);
    FIELD(why_reply, queued_ns);
    FIELD(why_reply, bytes);
    FIELD(why_reply, bytes_done);
    FIELD(why_reply, ahead);
    FIELD(why_reply, defers);
    FIELD(why_reply, opcode);
    CLASS(why_reply);
    FIELD(why_reply, state);
    FIELD(why_reply, wait);
    FIELD(why_reply, reserved);
    SIZE(recorder_request);
    FIELD(recorder_request, head);
    FIELD(recorder_request, session);
    FIELD(recorder_request, reserved);
    SIZE(recorder_reply);
    FIELD(recorder_reply, reply);
    FIELD(recorder_reply, session);
    FIELD(recorder_reply, entries);
    FIELD(recorder_reply, bytes);
}

int main(void)
{
    layouts();
    numbers();
    messages();
    expect_filled("the end", struct_bytes);
    return 0;
}
