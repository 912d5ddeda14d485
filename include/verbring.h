/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbring.h: the ABI and the complete C client. Header only, C11 and C++17, nothing to link.
 *
 *     struct vr_session session;  struct vr_ring ring;  struct vr_region region;
 *     struct vr_remote remote;    struct vr_sqe sqe;    struct vr_cqe cqe;
 *
 *     vr_connect("/run/verbring.sock", &session);
 *     vr_ring_create(&session, 64, 128, &ring);
 *     vr_region_alloc(&session, 1 << 20, 0, &region);       // our memory, region.data
 *     vr_import(&session, VR_UID_OWN, "name", secret, 0, &remote);
 *
 *     vr_prep_write(&sqe, &region, 0, &remote, 4096, bytes); // local 0 to remote 4096
 *     sqe.user_data = 7;
 *     vr_push(&ring, &sqe);                                  // into the SQ, not yet visible
 *     vr_submit(&ring);                                      // publish, wake the engine
 *     vr_wait(&ring, 1, -1);                                 // sleep until one CQE is there
 *     vr_reap(&ring, &cqe, 1);                               // cqe.res: bytes, or -errno
 *
 * For readers of liburing: there is no kernel behind this ring but an engine process, and no
 * enter system call. An SQE is copied in (vr_push), numbered from 0 per ring, and gone once the
 * engine has taken it; CQEs are copied out (vr_reap). Without edges nothing is ordered. The CQ
 * cannot overflow: the engine takes an SQE only when its CQE has a place.
 *
 * Errors. Functions return 0 or a count, or a negative errno. A failed control call leaves its
 * reason in session.error_text (for people) and session.error_detail (VR_DETAIL_*).
 *     -ESHUTDOWN  the engine process is dead: vr_verdict is final
 *     -EPIPE      the session is over, though the engine may live (see vr_engine_dead)
 *     -EPROTO     the engine sent or wrote what cannot be
 *     -EIO        this ring was faulted: vr_fault_reason says why
 * Nothing the engine writes is trusted further than it was compared with private cursors; a bad
 * value gives an error, never an access outside a mapping.
 *
 * Threads. No locks are taken. Control calls of a session: one thread at a time. A ring: one
 * thread at a time. Different rings, and a ring beside the session's control calls, are free.
 * The structs must not move while a ring or region points to its session.
 */
#ifndef VERBRING_H
#define VERBRING_H

/* Sockets, mmap and syscall() are hidden by -std=c11; this shows them if no system header came
 * before this one. */
#if !defined(_DEFAULT_SOURCE) && !defined(_GNU_SOURCE)
#define _DEFAULT_SOURCE 1
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#if !defined(__linux__)
#error "verbring.h needs Linux"
#elif __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || __SIZEOF_POINTER__ != 8
#error "verbring's ABI is defined for little-endian 64-bit hosts"
#elif defined(__GLIBC__) && !defined(__USE_MISC)
#error "include verbring.h before system headers, or compile with -D_DEFAULT_SOURCE"
#endif

/* As with stat(2), a call and the struct it sends may share a name; g++ -Wshadow objects. */
#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#endif

#ifdef __cplusplus
#define VR_ASSERT_(condition) static_assert(condition, #condition)
#else
#define VR_ASSERT_(condition) _Static_assert(condition, #condition)
#endif
#define VR_AT_(type, field, offset) VR_ASSERT_(offsetof(struct type, field) == (offset))
#define VR_SIZE_(type, bytes) VR_ASSERT_(sizeof(struct type) == (bytes))

/* ===== ABI 1: layouts and numbers. Nothing is ever renumbered; reserved fields are zero. ===== */

/* "VERBRING" as a little-endian integer: the first eight bytes of every ring segment. */
#define VR_MAGIC UINT64_C(0x474e495242524556)
#define VR_ABI_VERSION 1u
#define VR_OP_BYTES_MAX 0x7ffff000u /* most bytes of one op, so that res can carry the count */
#define VR_PAGES_MAX 1024u          /* most pages of one WRITEV or READV */
#define VR_ENTRIES_MIN 2u           /* SQ and CQ entries are powers of two from here ... */
#define VR_ENTRIES_MAX 32768u       /* ... to here */
#define VR_CQE_TIME_UNIT_NS 16u
#define VR_SECRET_BYTES 32u
#define VR_NAME_BYTES 64u
#define VR_URL_BYTES 128u
#define VR_ERROR_TEXT_MAX 240u
#define VR_MESSAGE_BYTES_MAX 512u

enum vr_op {
    VR_OP_NOP = 0,       /* completes with 0 */
    VR_OP_WRITE = 1,     /* local range to remote range */
    VR_OP_READ = 2,      /* remote range to local range */
    VR_OP_WRITEV = 3,    /* pages to pages, local to remote */
    VR_OP_READV = 4,     /* pages to pages, remote to local */
    VR_OP_FETCH_ADD = 5, /* adds to a remote u64, old value to the local offset */
    VR_OP_CMP_SWAP = 6,  /* replaces a remote u64 if as expected, old value to the local offset */
    VR_OP_JOIN = 7,      /* completes with 0 once all that it waits for is over */
    VR_OP_CANCEL = 8,    /* takes back an op that is still queued */
    VR_OP_FLUSH = 9,     /* completes when nothing touches a region for earlier ops */
    VR_OP_ARM = 10,      /* reserves CQ slots for notifications of a region */
    VR_OP_RUN = 11       /* reserved */
};

/* sqe.class_: 0 is the default, which is medium. */
#define VR_CLASS_HIGH 1u
#define VR_CLASS_MEDIUM 2u
#define VR_CLASS_LOW 3u

/* sqe.flags */
#define VR_SQE_LINK (1u << 0)         /* the next SQE waits for this one, and fails with it */
#define VR_SQE_HARDLINK (1u << 1)     /* the next SQE waits for this one, however it ends */
#define VR_SQE_DRAIN (1u << 2)        /* waits for all before it, and all behind it for this */
#define VR_SQE_COALESCE (1u << 3)     /* may share queued work of the very same effect */
#define VR_SQE_SUPERSEDE (1u << 4)    /* may replace queued work for the same place and tag */
#define VR_SQE_NO_MERGE (1u << 5)     /* never shares a work request with a neighbour */
#define VR_SQE_NOTIFY (1u << 6)       /* tell the remote side, with immediate, after all bytes */
#define VR_SQE_SKIP_SUCCESS (1u << 7) /* no CQE on success */
#define VR_SQE_REVOKE (1u << 8)       /* FLUSH: end the region's exports first */

/* sqe.edges: bits 0-14 how many SQEs back, and: */
#define VR_EDGE_ORDER_ONLY (1u << 15)

/* CANCEL and WHY: what the target is. By user_data, the oldest op with it is meant. */
#define VR_CANCEL_BY_USER_DATA 0u
#define VR_CANCEL_BY_NUMBER 1u
#define VR_CANCEL_BY_RECORD 2u

struct vr_sqe {
    uint8_t opcode; /* enum vr_op */
    uint8_t class_; /* VR_CLASS_*, 0 default; "class" in the ABI, a keyword in C++ */
    uint16_t flags; /* VR_SQE_* */
    uint16_t edges[2];
    uint64_t user_data;     /* comes back in the CQE */
    uint32_t local_region;  /* a region of this session */
    uint32_t remote_region; /* an import of this session */
    uint64_t local_offset;  /* bytes; WRITEV, READV: where the page list lies */
    uint64_t remote_offset; /* bytes; WRITEV, READV: added to each page's remote_offset */
    uint32_t bytes;         /* WRITEV, READV: of each page; atomics: deadline_us; ARM: a count */
    uint32_t immediate;     /* carried by NOTIFY */
    uint64_t arg[2];        /* by opcode: see vr_prep_*, vr_set_deadline, vr_set_tag */
};
VR_SIZE_(vr_sqe, 64);
VR_AT_(vr_sqe, class_, 1);
VR_AT_(vr_sqe, flags, 2);
VR_AT_(vr_sqe, edges, 4);
VR_AT_(vr_sqe, user_data, 8);
VR_AT_(vr_sqe, local_region, 16);
VR_AT_(vr_sqe, remote_region, 20);
VR_AT_(vr_sqe, local_offset, 24);
VR_AT_(vr_sqe, remote_offset, 32);
VR_AT_(vr_sqe, bytes, 40);
VR_AT_(vr_sqe, immediate, 44);
VR_AT_(vr_sqe, arg, 48);

/* An entry of a page list, which lies in the local region; the engine copies it once. */
struct vr_page {
    uint64_t local_offset;
    uint64_t remote_offset;
};
VR_SIZE_(vr_page, 16);
VR_AT_(vr_page, remote_offset, 8);

/* cqe.flags */
#define VR_CQE_RETRYABLE (1u << 0)  /* certainly no effect, or harmless to repeat */
#define VR_CQE_MAYBE_DONE (1u << 1) /* whether it took effect is not known */
#define VR_CQE_COALESCED (1u << 2)  /* ended with the op whose record this is */
#define VR_CQE_DEP_FAILED (1u << 3) /* did not run: an op that it waited for failed */
#define VR_CQE_FLUSHED (1u << 4)
#define VR_CQE_NOTIFY (1u << 5) /* a notification: queued is the immediate, res the count */
#define VR_CQE_MORE (1u << 6)   /* not the last CQE of its SQE */

/* A success's detail >> 8. */
#define VR_FABRIC_NONE 0u  /* the engine itself */
#define VR_FABRIC_LOCAL 1u /* the same-host copy fabric */
#define VR_FABRIC_VERBS 2u /* queue pairs; the rail is from 1 */

struct vr_cqe {
    uint64_t user_data;
    uint64_t record; /* ledger record id; 0 if the SQE was refused */
    int32_t res;     /* bytes moved, or -VR_E*; NOTIFY: how many notifications it stands for */
    uint16_t flags;  /* VR_CQE_* */
    uint16_t detail; /* failure: VR_DETAIL_*; success: fabric << 8 | rail */
    uint32_t queued; /* intake to first post, 16 ns units; NOTIFY: the immediate */
    uint32_t service; /* first post to completion, 16 ns units */
};
VR_SIZE_(vr_cqe, 32);
VR_AT_(vr_cqe, record, 8);
VR_AT_(vr_cqe, res, 16);
VR_AT_(vr_cqe, flags, 20);
VR_AT_(vr_cqe, detail, 22);
VR_AT_(vr_cqe, queued, 24);
VR_AT_(vr_cqe, service, 28);

/* errno values of the ABI: Linux's, as fixed numbers. */
#define VR_ENOENT 2
#define VR_EIO 5
#define VR_E2BIG 7
#define VR_ENOMEM 12
#define VR_EACCES 13
#define VR_EEXIST 17
#define VR_EINVAL 22
#define VR_ETIME 62
#define VR_EPROTO 71
#define VR_EOPNOTSUPP 95
#define VR_ENETUNREACH 101
#define VR_ESHUTDOWN 108
#define VR_ETIMEDOUT 110
#define VR_EHOSTDOWN 112
#define VR_EALREADY 114
#define VR_ESTALE 116
#define VR_EDQUOT 122
#define VR_ECANCELED 125

/* What a failure is about: a field of the SQE or the message, or the rule applied. */
enum vr_detail {
    VR_DETAIL_NONE = 0,
    VR_DETAIL_OPCODE = 1,
    VR_DETAIL_CLASS = 2,
    VR_DETAIL_FLAGS = 3,
    VR_DETAIL_EDGES = 4,
    VR_DETAIL_LOCAL_REGION = 5,
    VR_DETAIL_REMOTE_REGION = 6,
    VR_DETAIL_LOCAL_OFFSET = 7,
    VR_DETAIL_REMOTE_OFFSET = 8,
    VR_DETAIL_BYTES = 9,
    VR_DETAIL_IMMEDIATE = 10,
    VR_DETAIL_ARG = 11,
    VR_DETAIL_RIGHTS = 12,
    VR_DETAIL_PAGE = 13,
    VR_DETAIL_OVERLAP = 14,
    VR_DETAIL_DEADLINE = 15,
    VR_DETAIL_CANCELLED = 16,
    VR_DETAIL_CLOSING = 17,
    VR_DETAIL_REVOKED = 18,
    VR_DETAIL_MESSAGE = 19,
    VR_DETAIL_VERSION = 20,
    VR_DETAIL_ENTRIES = 21,
    VR_DETAIL_DESCRIPTORS = 22,
    VR_DETAIL_SEALS = 23,
    VR_DETAIL_NAME = 24,
    VR_DETAIL_SECRET = 25,
    VR_DETAIL_QUOTA = 26,
    VR_DETAIL_RING = 27,
    VR_DETAIL_RELEASED = 28,
    VR_DETAIL_FAULTED = 29,
    VR_DETAIL_PEER = 30,
    VR_DETAIL_URL = 31,
    VR_DETAIL_REQUIRE = 32,
    VR_DETAIL_WIRE = 33
};

/* The ring segment's header, written once before the client sees it. */
struct vr_segment {
    uint64_t magic;
    uint32_t abi_version;
    uint32_t header_bytes;
    uint64_t features;
    uint32_t sq_entries;
    uint32_t cq_entries; /* also the number of fate entries */
    uint64_t sq_offset;
    uint64_t cq_offset;
    uint64_t fate_offset;
    uint32_t sqe_stride; /* from one slot to the next: entries may grow */
    uint32_t cqe_stride;
    uint32_t fate_stride;
    uint32_t first_index; /* first value of all cursors */
    uint64_t segment_bytes;
    uint64_t boot_id[2];
    uint32_t engine;
    uint32_t ring;
};
VR_SIZE_(vr_segment, 104);
VR_AT_(vr_segment, sq_entries, 24);
VR_AT_(vr_segment, sq_offset, 32);
VR_AT_(vr_segment, fate_offset, 48);
VR_AT_(vr_segment, sqe_stride, 56);
VR_AT_(vr_segment, first_index, 68);
VR_AT_(vr_segment, segment_bytes, 72);
VR_AT_(vr_segment, boot_id, 80);
VR_AT_(vr_segment, ring, 100);

/* A flight recorder's header, written once before anybody sees it. */
#define VR_RECORDER_MAGIC UINT64_C(0x5344524f43455256)
#define VR_RECORDER_HEADER_BYTES 4096u
#define VR_RECORDER_ENTRIES_MAX 65536u
#define VR_RECORD_TIME_SHIFT 16u
#define VR_FEATURE_RECORDER 1u      /* PROBE: RECORDER is served, and WHY with VR_RING_ANY */
#define VR_SESSION_OWN 0xffffffffu  /* RECORDER: this session's own */
#define VR_RING_ANY 0xffffffffu     /* WHY by record: in any ring of this uid's sessions */

struct vr_recorder_header {
    uint64_t magic;
    uint32_t abi_version;
    uint32_t header_bytes; /* to the first entry */
    uint32_t entry_stride; /* from one entry to the next: they may grow */
    uint32_t entries;      /* a power of two */
    uint64_t boot_id[2];
    uint32_t engine;
    uint32_t session;
    uint32_t engine_pid;
    uint32_t client_pid;
    uint32_t uid; /* the client's */
    uint32_t reserved;
};
VR_SIZE_(vr_recorder_header, 64);
VR_AT_(vr_recorder_header, boot_id, 24);
VR_AT_(vr_recorder_header, uid, 56);

/* What is kept of an op that is over. */
struct vr_record {
    uint32_t sequence; /* 0: empty, or being written; entry n lies in place (n - 1) % entries */
    uint16_t ring;
    uint8_t class_;
    uint8_t opcode;     /* never NOP */
    uint64_t record;    /* as in its CQE */
    uint64_t user_data; /* from its SQE */
    uint64_t taken_ns;  /* CLOCK_MONOTONIC */
    uint64_t queued;    /* ns from intake to first post << 16 | requests posted; 0: none was */
    uint64_t total;     /* ns from intake to its end << 16 | times it found no credit */
    int32_t res;        /* this and the next two as in its CQE; ARM: notifications delivered */
    uint16_t flags;
    uint16_t detail;
    uint32_t bytes; /* asked for; ARM: notifications */
    uint8_t rail;   /* that it went by last */
    uint8_t wait;   /* VR_WAIT_*: what it lacked the last time it could not go on */
    uint8_t cause;  /* errno of the first failure of its own, not its queue pair's; 0: none */
    uint8_t retries; /* times the fabric posted one of its requests again; saturates */
};
VR_SIZE_(vr_record, 64);
VR_AT_(vr_record, record, 8);
VR_AT_(vr_record, total, 40);
VR_AT_(vr_record, res, 48);
VR_AT_(vr_record, bytes, 56);
VR_AT_(vr_record, retries, 63);

/* A telemetry page's header, written once before anybody sees it. Behind it lie blocks of u64
 * words, block_stride bytes each: of the lanes (class high, medium, low; of each users' and then
 * the engine's own work), of the rails, of all sessions that are gone, and of each session. */
#define VR_TELEMETRY_MAGIC UINT64_C(0x53524554454d5256)
#define VR_TELEMETRY_HEADER_BYTES 4096u
#define VR_BLOCK_STRIDE 4096u
#define VR_BLOCK_COUNTERS 32u    /* words before the histograms */
#define VR_HISTOGRAM_BUCKETS 240u
#define VR_HISTOGRAM_UNIT_NS 16u
#define VR_HISTOGRAM_STEPS 8u    /* buckets to an octave */
#define VR_TELEMETRY_LANES 6u
#define VR_WAIT_REASONS 16u      /* counted apart, VR_WAIT_* from 0 */
#define VR_FEATURE_TELEMETRY 2u  /* PROBE: TELEMETRY is served */
#define VR_FEATURE_PEERS 4u      /* PROBE: PEERS is served */
#define VR_FEATURE_CARDS 8u      /* PROBE: CARDS is served */

struct vr_telemetry_header {
    uint64_t magic;
    uint32_t abi_version;
    uint32_t header_bytes; /* to the first block */
    uint32_t block_stride; /* from one block to the next: they may grow */
    uint32_t counters;     /* words of a block before its two histograms */
    uint32_t buckets;      /* words of each histogram: queue wait, service */
    uint32_t unit_ns;
    uint32_t steps; /* buckets to an octave, a power of two */
    uint32_t lanes; /* blocks of each kind */
    uint32_t rails;
    uint32_t sessions;
    uint64_t boot_id[2];
    uint32_t engine;
    uint32_t engine_pid;
};
VR_SIZE_(vr_telemetry_header, 72);
VR_AT_(vr_telemetry_header, boot_id, 48);
VR_AT_(vr_telemetry_header, engine_pid, 68);

/* Words of a block: of ops, in lanes and sessions; of requests, at rails. */
enum vr_tally {
    VR_TALLY_SEQUENCE = 0, /* odd while the block is written */
    VR_TALLY_ENQUEUED = 1,
    VR_TALLY_DISPATCHED = 2,
    VR_TALLY_COMPLETED = 3,
    VR_TALLY_BYTES = 4,
    VR_TALLY_PASSED = 5,    /* ended without a lane */
    VR_TALLY_QUEUED = 6,    /* now */
    VR_TALLY_IN_FLIGHT = 7, /* now */
    VR_TALLY_FAILED = 8,    /* of those dispatched */
    VR_TALLY_WITHDRAWN = 9, /* ended while queued */
    VR_TALLY_CANCELLED = 10, /* of these */
    VR_TALLY_REQUEUED = 11,  /* not taken; at rails: handed back undone */
    VR_TALLY_RETURNED = 12,  /* requests that a rail handed back */
    VR_TALLY_DEFERS = 13,
    VR_TALLY_USES = 14, /* sessions: odd if the place is in use */
    VR_TALLY_SPARE = 15,
    VR_TALLY_WAITS = 16 /* the first of VR_WAIT_REASONS: defers by VR_WAIT_* */
};

/* Byte offsets of the shared words: u32, but for the u64 counters. */
#define VR_AT_SQ_TAIL 256u      /* client: SQEs pushed */
#define VR_AT_CQ_HEAD 384u      /* client: CQEs popped */
#define VR_AT_BELL_AT 512u      /* client: ring my bell when cq_tail passes this */
#define VR_AT_SQ_HEAD 640u      /* engine: SQEs taken */
#define VR_AT_CQ_TAIL 768u      /* engine: CQEs published */
#define VR_AT_ENGINE_FLAGS 896u /* engine: VR_ENGINE_*, VR_FAULT_* in bits 16-31 */
#define VR_AT_COUNTERS 1024u    /* engine: u64 each, by enum vr_ring_counter_at */

#define VR_ENGINE_NEED_WAKEUP (1u << 0) /* ring the SQ bell after publishing */
#define VR_ENGINE_CLOSING (1u << 1)     /* no further SQE is taken */
#define VR_ENGINE_FAULTED (1u << 2)     /* the ring broke a rule and gets no more CQEs */
#define VR_FAULT_SQ_TAIL_BEYOND 1u
#define VR_FAULT_SQ_TAIL_BACK 2u
#define VR_FAULT_CQ_HEAD 3u

/* Fate entry: record id u64, then SQE number << VR_FATE_SHIFT | stage, u64. */
#define VR_FATE_FREE 0u
#define VR_FATE_ACCEPTED 1u
#define VR_FATE_POSTED 2u
#define VR_FATE_SHIFT 2u

enum vr_ring_counter_at {
    VR_RING_COUNTER_HEARTBEAT = 0,
    VR_RING_COUNTER_TAKEN = 1,
    VR_RING_COUNTER_COMPLETED = 2,
    VR_RING_COUNTER_REFUSED = 3,
    VR_RING_COUNTER_BELLS_RUNG = 4,
    VR_RING_COUNTER_SLEEPS = 5,
    VR_RING_COUNTER_SKIPPED = 6
};

/* ----- Control messages: one SEQPACKET datagram each; a reply has VR_REPLY in its kind. ----- */

#define VR_REPLY 0x8000u
#define VR_UID_OWN 0xffffffffu   /* IMPORT: my own uid */
#define VR_RING_FENCELESS 1u     /* RING flag; this client fences and does not set it */
#define VR_OBJECT_RING 1u        /* MAPPED, RELEASE: id is a ring number ... */
#define VR_OBJECT_REGION 2u      /* ... or the id of a region (RELEASE: or import) */
#define VR_REGION_ALLOCATED 1u   /* REGION source: the engine's memory */
#define VR_REGION_MEMFD 2u       /* REGION source: the client's memfd */
#define VR_REGION_HUGE (1u << 0) /* REGION flag: huge pages, if there are any to spare */
#define VR_RIGHT_READ (1u << 0)
#define VR_RIGHT_WRITE (1u << 1)
#define VR_RIGHT_ATOMIC (1u << 2)
#define VR_RIGHT_NOTIFY (1u << 3)
#define VR_RIGHTS_ALL (VR_RIGHT_READ | VR_RIGHT_WRITE | VR_RIGHT_ATOMIC | VR_RIGHT_NOTIFY)
#define VR_CONTRACT_ALL 0u /* the quota of all uids */
#define VR_CONTRACT_UID 1u /* this uid's own */
#define VR_STATS_SESSION 0u
#define VR_STATS_ENGINE 1u /* its own uid and root only */

enum vr_kind {
    VR_KIND_HELLO = 1,
    VR_KIND_RING = 2,
    VR_KIND_MAPPED = 3,
    VR_KIND_REGION = 4,
    VR_KIND_EXPORT = 5,
    VR_KIND_IMPORT = 6,
    VR_KIND_CONNECT = 7,
    VR_KIND_RELEASE = 8,
    VR_KIND_PREPARE = 9, /* reserved */
    VR_KIND_PROBE = 10,
    VR_KIND_STATS = 11,
    VR_KIND_CANCEL = 12,
    VR_KIND_WHY = 13,
    VR_KIND_RECORDER = 14,
    VR_KIND_TELEMETRY = 15,
    VR_KIND_PEERS = 16,
    VR_KIND_CARDS = 17
};

/* Places in a STATS reply; those not named are 0. */
#define VR_COUNTERS 40u
enum vr_counter {
    VR_COUNTER_TAKEN = 0,
    VR_COUNTER_COMPLETED = 1, /* final outcomes, refusals and skipped successes included */
    VR_COUNTER_REFUSED = 2,
    VR_COUNTER_FAILED = 3,
    VR_COUNTER_CANCELLED = 4,
    VR_COUNTER_OPS_HIGH = 5,
    VR_COUNTER_OPS_MEDIUM = 6,
    VR_COUNTER_OPS_LOW = 7,
    VR_COUNTER_BYTES = 8,
    VR_COUNTER_NOTIFIED = 9,
    VR_COUNTER_IN_FLIGHT = 10,
    VR_COUNTER_RINGS = 11,
    VR_COUNTER_REGIONS = 12,
    VR_COUNTER_REGION_BYTES = 13,
    VR_COUNTER_SESSIONS = 14, /* engine scope, as those below where a session has none */
    VR_COUNTER_TURNS = 15,
    VR_COUNTER_SLEEPS = 16,
    VR_COUNTER_RECORDS = 17,
    VR_COUNTER_DESCRIPTORS = 18,
    VR_COUNTER_FAULTS = 19,
    VR_COUNTER_DEFERS = 20,
    VR_COUNTER_BELLS_RUNG = 21,
    VR_COUNTER_EVICTED = 22,
    VR_COUNTER_EDGES_OVER = 23,
    VR_COUNTER_EDGES_LIVE = 24,
    VR_COUNTER_DEP_FAILED = 25,
    VR_COUNTER_FOLD_HIT = 26,
    VR_COUNTER_FOLD_NONE = 27,
    VR_COUNTER_FOLD_DISABLED = 28,
    VR_COUNTER_FOLD_EDGES = 29,
    VR_COUNTER_FOLD_KEY = 30,
    VR_COUNTER_FOLD_STARTED = 31,
    VR_COUNTER_SUPERSEDED = 32,
    VR_COUNTER_MERGED = 33
};

/* WHY: where an op is, and what it waits for. */
#define VR_STATE_QUEUED 1u
#define VR_STATE_POSTED 2u
#define VR_STATE_ARMED 3u
#define VR_STATE_FLUSHING 4u
#define VR_STATE_UNTAKEN 5u /* its SQE lies in the SQ, or is kept as a copy */
#define VR_STATE_WAITING 6u /* for predecessors */
#define VR_STATE_FOLDED 7u  /* into another op, whose end is its own */
#define VR_MODE_WEIGHTED 1u
#define VR_MODE_STRICT 2u
#define VR_MODE_FIFO 3u
#define VR_MODE_TENT 4u
#define VR_MODE_DIRECT 5u
#define VR_RAIL_OPEN 0u       /* takes requests */
#define VR_RAIL_FULL 1u       /* its depth is used up */
#define VR_RAIL_MEMORY 2u     /* its device had no memory for the last post */
#define VR_RAIL_CONNECTING 3u /* for the first time */
#define VR_RAIL_DEGRADED 4u   /* in doubt: it is brought to rest */
#define VR_RAIL_REBUILDING 5u /* or on trial after that */
#define VR_RAIL_PAUSED 6u     /* its card erred too often */
#define VR_RAIL_DEAD 7u       /* its peer is gone */
#define VR_WAIT_NONE 0u
#define VR_WAIT_LANE 1u         /* ops of its lane */
#define VR_WAIT_CLASS 2u        /* a more urgent class */
#define VR_WAIT_WINDOW_OPS 3u   /* the window's ops */
#define VR_WAIT_WINDOW_BYTES 4u /* the window's bytes */
#define VR_WAIT_FABRIC 5u       /* the fabric works on it */
#define VR_WAIT_EARLIER 6u      /* earlier ops on the region (FLUSH) */
#define VR_WAIT_NOTIFY 7u       /* a peer's notification (ARM) */
#define VR_WAIT_RAIL 8u         /* its rail takes nothing now */
#define VR_WAIT_CREDIT 9u       /* its peer has no receive free for its notification */
#define VR_WAIT_WINDOW_WRS 10u  /* the window's work requests are in use */
#define VR_WAIT_PEER 11u        /* the window towards its peer is in use */
#define VR_WAIT_TURN 12u        /* other users, sessions or peers of its lane have their turn */
#define VR_WAIT_CAP 13u         /* its uid has as many bytes of class high posted as it may */
/* Of SQEs that are not taken. */
#define VR_WAIT_BELL 14u        /* the ring sleeps, and its bell was not rung */
#define VR_WAIT_INTAKE 15u      /* SQEs before it in its ring */
#define VR_WAIT_CQ 16u          /* no CQ slot can be promised: take completions */
#define VR_WAIT_RECORDS 17u     /* its session's part of the records */
#define VR_WAIT_QUOTA_OPS 18u   /* its uid has as many ops in flight as it may */
#define VR_WAIT_QUOTA_BYTES 19u /* its uid has as many bytes in flight as it may */
#define VR_WAIT_PAGES 20u       /* its session's part of the page list blocks */
#define VR_WAIT_SEARCH 21u      /* a CANCEL before it still looks for its op */
#define VR_WAIT_CLOSED 22u      /* nothing more is taken from its ring */
#define VR_WAIT_REVOKED 23u     /* revocations that are yet to be told */
#define VR_WAIT_PREDECESSOR 24u /* taken: predecessors that are not over */
#define VR_WAIT_SURVIVOR 25u    /* taken: the op that it was folded into */
#define VR_WAIT_EDGES 26u       /* its session's part of the edges */
#define VR_WAIT_QUOTA_EDGES 27u /* its uid has as many edges in use as it may */
#define VR_WAIT_DISTANCE 28u    /* an op 32,767 SQEs before it is not over */

struct vr_head { /* starts every request */
    uint16_t kind;
    uint16_t reserved;
    uint32_t bytes; /* of the whole message */
    uint64_t tag;   /* comes back in the reply */
};
VR_SIZE_(vr_head, 16);

struct vr_reply_head { /* starts every reply; status < 0: UTF-8 text follows, and nothing else */
    uint16_t kind;
    uint16_t reserved;
    uint32_t bytes;
    uint64_t tag;
    int32_t status;  /* 0 or -VR_E* */
    uint32_t detail; /* VR_DETAIL_* */
};
VR_SIZE_(vr_reply_head, 24);
VR_AT_(vr_reply_head, status, 16);

struct vr_hello { /* the first message */
    struct vr_head head;
    uint16_t version_min;
    uint16_t version_max;
    uint32_t reserved;
    uint64_t features;
    char name[32]; /* for logs */
};
VR_SIZE_(vr_hello, 64);
VR_AT_(vr_hello, name, 32);

struct vr_hello_reply { /* with 1 descriptor: the engine's pidfd */
    struct vr_reply_head reply;
    uint32_t version;
    uint32_t session;
    uint64_t features;
    uint64_t boot_id[2];
    uint32_t engine;
    uint32_t pid;
};
VR_SIZE_(vr_hello_reply, 64);
VR_AT_(vr_hello_reply, boot_id, 40);

struct vr_ring_request {
    struct vr_head head;
    uint32_t sq_entries;
    uint32_t cq_entries;
    uint32_t flags;
    uint32_t reserved;
};
VR_SIZE_(vr_ring_request, 32);

struct vr_ring_reply { /* with 3 descriptors: segment, SQ bell, CQ bell */
    struct vr_reply_head reply;
    uint32_t ring;
    uint32_t reserved;
    uint64_t segment_bytes;
};
VR_SIZE_(vr_ring_reply, 40);

struct vr_mapped { /* a ring or allocated region is mapped here: it goes live */
    struct vr_head head;
    uint32_t object;
    uint32_t id;
};
VR_SIZE_(vr_mapped, 24);

struct vr_region_request { /* VR_REGION_MEMFD: with 1 descriptor */
    struct vr_head head;
    uint32_t source;
    uint32_t flags;
    uint64_t bytes;
};
VR_SIZE_(vr_region_request, 32);

struct vr_region_reply { /* VR_REGION_ALLOCATED: with 1 descriptor */
    struct vr_reply_head reply;
    uint32_t region;
    uint32_t flags;
    uint64_t bytes;
};
VR_SIZE_(vr_region_reply, 40);

struct vr_export {
    struct vr_head head;
    uint32_t region;
    uint32_t rights;
    char name[VR_NAME_BYTES];
};
VR_SIZE_(vr_export, 88);

struct vr_export_reply {
    struct vr_reply_head reply;
    uint8_t secret[VR_SECRET_BYTES];
};
VR_SIZE_(vr_export_reply, 56);

struct vr_import {
    struct vr_head head;
    uint32_t rights;
    uint32_t uid;
    char name[VR_NAME_BYTES];
    uint8_t secret[VR_SECRET_BYTES];
    uint32_t peer; /* 0: this engine; else a number that CONNECT brought */
    uint32_t reserved;
};
VR_SIZE_(vr_import, 128);
VR_AT_(vr_import, secret, 88);
VR_AT_(vr_import, peer, 120);

struct vr_import_reply {
    struct vr_reply_head reply;
    uint32_t region;
    uint32_t rights;
    uint64_t bytes;
};
VR_SIZE_(vr_import_reply, 40);

struct vr_connect {
    struct vr_head head;
    uint32_t require; /* the VR_FABRIC_* that must carry its ops; 0: any */
    uint32_t reserved;
    char url[VR_URL_BYTES]; /* unix:/path/of/its/socket, or verbring://host:port */
};
VR_SIZE_(vr_connect, 152);
VR_AT_(vr_connect, url, 24);

struct vr_connect_reply {
    struct vr_reply_head reply;
    uint32_t peer; /* from 1: for IMPORT */
    uint32_t fabric;
    uint32_t rail;
    uint32_t reserved;
};
VR_SIZE_(vr_connect_reply, 40);
VR_AT_(vr_connect_reply, rail, 32);

struct vr_release { /* answered when nothing touches the object any more */
    struct vr_head head;
    uint32_t object;
    uint32_t id;
};
VR_SIZE_(vr_release, 24);

struct vr_probe {
    struct vr_head head;
};
VR_SIZE_(vr_probe, 16);

struct vr_probe_reply {
    struct vr_reply_head reply;
    uint64_t opcodes;   /* bit n: opcode n is served */
    uint64_t sqe_flags; /* flags that are served */
    uint64_t features;
    uint64_t fabrics; /* bit n: fabric n is there */
    uint32_t op_bytes_max;
    uint32_t pages_max;
    uint32_t entries_max;
    uint32_t rings_max;
    uint32_t regions_max;
    uint32_t class_ceiling; /* the most urgent class allowed */
    uint64_t region_bytes_max;
    uint32_t window_ops;
    uint32_t slice_bytes;
    uint64_t window_bytes;
    uint32_t uid;      /* the asking one, as the engine knows it */
    uint32_t contract; /* VR_CONTRACT_*: whose is in force for it */
    uint32_t sessions_max;
    uint32_t ops_max; /* in flight */
    uint32_t weight;  /* beside other uids of the same class */
    uint32_t control_per_s;
    uint64_t ops_bytes_max;  /* that ops in flight ask for; one may ask for more, alone */
    uint64_t high_bytes_max; /* of class high, posted; one request may have more, alone */
};
VR_SIZE_(vr_probe_reply, 144);
VR_AT_(vr_probe_reply, region_bytes_max, 80);
VR_AT_(vr_probe_reply, ops_bytes_max, 128);

struct vr_stats {
    struct vr_head head;
    uint32_t scope;
    uint32_t reserved;
};
VR_SIZE_(vr_stats, 24);

struct vr_stats_reply {
    struct vr_reply_head reply;
    uint64_t counters[VR_COUNTERS];
};
VR_SIZE_(vr_stats_reply, 344);

struct vr_op_query { /* CANCEL and WHY */
    struct vr_head head;
    uint32_t ring;
    uint32_t by;
    uint64_t target;
};
VR_SIZE_(vr_op_query, 32);

struct vr_cancel_reply {
    struct vr_reply_head reply;
    uint64_t record;
};
VR_SIZE_(vr_cancel_reply, 32);

struct vr_why_reply {
    struct vr_reply_head reply;
    uint64_t record; /* 0 before it is taken, as is all that only an op has */
    uint64_t number;
    uint64_t user_data;
    uint64_t age_ns;    /* since intake */
    uint64_t queued_ns; /* intake to first post; 0 if not posted */
    uint64_t bytes;
    uint64_t bytes_done;
    uint32_t ahead;  /* ops before it in its flow, up to 4095; untaken: SQEs of its ring */
    uint32_t defers; /* times it was at the head and found no credit */
    uint16_t opcode;
    uint16_t class_;
    uint16_t state; /* VR_STATE_* */
    uint16_t wait;  /* VR_WAIT_* */
    uint64_t reserved;
    uint64_t taken_ns;    /* CLOCK_MONOTONIC */
    uint64_t used;        /* of what it waits for, in the unit that `wait` names */
    uint64_t limit;       /* 0: it is nothing that is counted */
    uint64_t wants;       /* what it takes of that next */
    uint64_t rails;       /* that may carry what it posts next, a bit each; 0: this host */
    uint64_t rail_states; /* of these, lowest first, a byte each: VR_RAIL_* */
    uint32_t ring;
    uint32_t session;
    uint32_t flows;     /* other flows of its lane that have ops, up to 4095 */
    uint32_t posts;     /* requests given to the fabric; saturates at 65535 */
    uint32_t in_fabric; /* of these, under way */
    uint16_t rail;      /* went by last, or is to go by; 0: this host */
    uint8_t origin;     /* 0 ops of users, 1 the engine's own */
    uint8_t mode;       /* VR_MODE_* */
};
VR_SIZE_(vr_why_reply, 176);
VR_AT_(vr_why_reply, ahead, 80);
VR_AT_(vr_why_reply, reserved, 96);
VR_AT_(vr_why_reply, rail_states, 144);
VR_AT_(vr_why_reply, mode, 175);

struct vr_recorder_request {
    struct vr_head head;
    uint32_t session; /* VR_SESSION_OWN, or the first from here on that this uid may see */
    uint32_t reserved;
};
VR_SIZE_(vr_recorder_request, 24);

struct vr_recorder_reply { /* with 1 descriptor: the memfd, to be mapped for reading */
    struct vr_reply_head reply;
    uint32_t session;
    uint32_t entries;
    uint64_t bytes;
};
VR_SIZE_(vr_recorder_reply, 40);

struct vr_telemetry_request { /* its own uid and root only */
    struct vr_head head;
};
VR_SIZE_(vr_telemetry_request, 16);

struct vr_telemetry_reply { /* with 1 descriptor: the memfd, to be mapped for reading */
    struct vr_reply_head reply;
    uint64_t bytes;
};
VR_SIZE_(vr_telemetry_reply, 32);

/* PEERS. Of a rail also: VR_JOINT_*, how far it has come. */
#define VR_PEER_RAILS_MAX 12u
#define VR_PEER_ERROR_BYTES 152u
#define VR_UNHEARD 0xffffffffu /* heard_ms: never */
#define VR_PEER_OURS 1u        /* sessions here asked for it */
#define VR_PEER_THEIRS 2u      /* the other engine came */
#define VR_PEER_RAIL_APART 4u  /* class of a rail: that of one flow, which failed others' */
#define VR_PHASE_REACHING 1u   /* on the way to the URL */
#define VR_PHASE_GREETING 2u   /* greeted, not answered yet */
#define VR_PHASE_JOINING 3u    /* rails are being joined */
#define VR_PHASE_UP 4u
#define VR_PHASE_LOST 5u       /* being forgotten */
#define VR_PHASE_GONE 6u       /* no such connection: `error` tells what became of the last */
#define VR_JOINT_CONNECTING 1u /* for the first time */
#define VR_JOINT_UP 2u
#define VR_JOINT_QUIESCING 3u  /* in doubt: both ends are brought to rest */
#define VR_JOINT_REBUILDING 4u /* being connected anew */
#define VR_JOINT_PUT_OFF 5u    /* could not be connected; tried again in put_off_ms */
#define VR_JOINT_LOST 6u

struct vr_peers_request { /* its own uid and root only */
    struct vr_head head;
    uint32_t at; /* the first place asked for: 0, then the last reply's `at` and one */
    uint32_t reserved;
};
VR_SIZE_(vr_peers_request, 24);

struct vr_peer_rail {
    uint32_t queue_pair; /* its number on its device; 0: none */
    uint8_t rail;        /* its number, as in CQEs and the telemetry page */
    uint8_t card;
    uint8_t class_; /* that goes by it; 0: all; VR_PEER_RAIL_APART */
    uint8_t state;  /* VR_JOINT_* */
    uint16_t rebuilt;
    uint16_t put_off_ms;
};
VR_SIZE_(vr_peer_rail, 12);

struct vr_peers_reply {
    struct vr_reply_head reply;
    uint32_t at;
    uint32_t count; /* of all connections, and of failures that are remembered */
    uint64_t phase_ms;
    uint64_t boot_id[2]; /* the other engine's; zeros until it has told */
    uint32_t pid;        /* the other engine's, on its host; 0 likewise */
    uint32_t heard_ms;   /* since anything was heard of it; VR_UNHEARD */
    uint32_t imports;    /* theirs, that sessions here have */
    uint32_t loans;      /* ours, that they have */
    uint32_t sessions;   /* here, that have a number for it */
    uint32_t error_ms;   /* since what `error` tells */
    uint8_t phase;       /* VR_PHASE_* */
    uint8_t direction;   /* VR_PEER_OURS or VR_PEER_THEIRS */
    uint8_t rails_count; /* of `rails`; the others are zeros */
    uint8_t reserved[5];
    char place[VR_URL_BYTES]; /* the URL, or where they came from; empty: this host */
    struct vr_peer_rail rails[VR_PEER_RAILS_MAX];
    char error[VR_PEER_ERROR_BYTES]; /* why the last connection to or from there was lost */
};
VR_SIZE_(vr_peers_reply, 512);
VR_AT_(vr_peers_reply, phase_ms, 32);
VR_AT_(vr_peers_reply, phase, 80);
VR_AT_(vr_peers_reply, place, 88);
VR_AT_(vr_peers_reply, rails, 216);
VR_AT_(vr_peers_reply, error, 360);

/* CARDS */
#define VR_CARD_ADDRESSES_MAX 4u
#define VR_CARD_NAME_BYTES 80u

struct vr_cards_request { /* its own uid and root only */
    struct vr_head head;
    uint32_t card; /* its number, from 0, as vr_peer_rail has it */
    uint32_t reserved;
};
VR_SIZE_(vr_cards_request, 24);

struct vr_cards_reply {
    struct vr_reply_head reply;
    uint32_t card;
    uint32_t count;        /* of all cards */
    uint64_t window_bytes; /* that may be in flight by it, over all its rails */
    uint32_t window_ops;
    uint32_t window_wrs;
    uint8_t addresses[VR_CARD_ADDRESSES_MAX][16]; /* GIDs that rails may use, best first */
    uint8_t addresses_count;                      /* of `addresses`; the others are zeros */
    uint8_t reserved[7];
    char name[VR_CARD_NAME_BYTES]; /* device and port, for people */
};
VR_SIZE_(vr_cards_reply, 200);
VR_AT_(vr_cards_reply, window_bytes, 32);
VR_AT_(vr_cards_reply, addresses, 48);
VR_AT_(vr_cards_reply, name, 120);

/* ===== The client's own types ===== */

/* A session: one control connection. Fields may be read, except where noted not written. */
struct vr_session {
    int fd;           /* control socket; hung up = the session is over */
    int engine_pidfd; /* readable = the engine is dead */
    uint32_t session;
    uint32_t engine;
    uint32_t engine_pid; /* as told; the pidfd is the authority */
    uint64_t boot_id[2];
    uint64_t features;
    uint64_t reply_timeout_ns; /* may be set: 0 waits for ever; a late reply ends the session */
    uint64_t tag;
    int broken;                             /* 0, or the -errno that ended the session */
    uint32_t error_detail;                  /* VR_DETAIL_* of the last control call, if it failed */
    char error_text[VR_ERROR_TEXT_MAX + 1]; /* the last control call's; empty if it succeeded */
};

/* Memory of this process that the engine maps too. Freed by vr_region_free. */
struct vr_region {
    struct vr_session *session;
    uint32_t id;
    uint32_t flags; /* VR_REGION_HUGE if so */
    void *data;     /* its first byte here; page aligned */
    uint64_t bytes;
};

/* A peer's region as imported by this session. Freed by vr_release(.., VR_OBJECT_REGION, id). */
struct vr_remote {
    uint32_t id;
    uint32_t rights; /* VR_RIGHT_* granted */
    uint64_t bytes;
};

/* Another engine, as this session reaches it through its own. Ends with the session. */
struct vr_peer {
    struct vr_session *session;
    uint32_t number; /* from 1 */
    uint32_t fabric; /* VR_FABRIC_*: what carries ops to it */
    uint32_t rail;   /* which queue pair does so for medium ops; other classes may have their own */
};

/* One SQ and one CQ. Only spin_ns is the user's to set. */
struct vr_ring {
    struct vr_session *session;
    uint64_t spin_ns;   /* how long vr_wait looks before it sleeps */
    uint32_t ring;      /* its number */
    int sq_bell;        /* a byte sent wakes the engine */
    int cq_bell;        /* readable: look at the CQ (see vr_bell_arm) */
    struct vr_segment header; /* as checked at creation; the shared one is never read again */
    unsigned char *segment;
    uint64_t pushed;    /* SQEs written: the number of the next one */
    uint64_t published; /* SQEs the engine can see */
    uint64_t taken;     /* SQEs the engine took, as last seen and believed */
    uint32_t popped;    /* cursor of the next CQE */
    uint32_t cq_tail;   /* as last seen and believed */
    int bell_owed;      /* the engine sleeps and could not be rung */
};

/* A session's flight recorder, mapped for reading: the last of its ops that are over. It outlives
 * the session and the engine. Freed by vr_recorder_free. */
struct vr_recorder {
    int fd; /* by this others find it at this process: verbring ledger --pid */
    struct vr_recorder_header header; /* as checked; the shared one is never read again */
    const unsigned char *data;
    uint64_t bytes;
};

/* An engine's telemetry page, mapped for reading. It outlives the session and the engine. Freed by
 * vr_telemetry_free. */
struct vr_telemetry {
    struct vr_telemetry_header header; /* as checked; the shared one is never read again */
    const unsigned char *data;
    uint64_t bytes;
};

/* One block of it, copied. */
struct vr_tallies {
    uint64_t counts[VR_BLOCK_COUNTERS];  /* by VR_TALLY_* */
    uint64_t wait[VR_HISTOGRAM_BUCKETS]; /* from intake to first post, of ops that have ended */
    uint64_t service[VR_HISTOGRAM_BUCKETS]; /* from first post to the end, of the same */
};

#define VR_SPIN_NS_DEFAULT UINT64_C(20000)

/* What became of an op whose engine died, or whose session ended, without its CQE. */
enum vr_verdict {
    VR_NOT_STARTED = 0,   /* it had no effect, and never will */
    VR_INDETERMINATE = 1, /* it may have taken effect, in whole or in part */
    VR_DONE = 2           /* it was done: a success whose CQE was skipped */
};

/* ===== Below the surface: names that end in _ are not part of the interface ===== */

#define VR_FDS_MAX_ 4u /* even, so that the kernel has no room for one more */
#define VR_STRIDE_MAX_ 4096u
#define VR_SEALS_ADD_ 1033 /* F_ADD_SEALS, which glibc shows with _GNU_SOURCE only */
#define VR_SEALS_GET_ 1034
#define VR_SEALS_SIZE_ 6        /* F_SEAL_SHRINK | F_SEAL_GROW */
#define VR_MFD_FLAGS_ 3u        /* MFD_CLOEXEC | MFD_ALLOW_SEALING */
#define VR_POLLRDHUP_ 0x2000    /* POLLRDHUP, likewise */
#define VR_POLL_LOST_ (POLLHUP | POLLERR | POLLNVAL | VR_POLLRDHUP_)

static inline uint64_t vr_now_ns_(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static inline uint64_t vr_later_(uint64_t now_ns, uint64_t wait_ns)
{
    return wait_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + wait_ns;
}

static inline void vr_pause_(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* poll(2) until deadline_ns (UINT64_MAX: for ever). The system call, because ppoll() is shown with
 * _GNU_SOURCE only; the kernel's timespec is ours on 64-bit hosts. */
static inline int vr_poll_(struct pollfd *fds, unsigned count, uint64_t deadline_ns)
{
    struct timespec left;
    struct timespec *limit = NULL;
    long ready;
    if (deadline_ns != UINT64_MAX) {
        uint64_t now_ns = vr_now_ns_();
        uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        left.tv_sec = (time_t)(left_ns / UINT64_C(1000000000));
        left.tv_nsec = (long)(left_ns % UINT64_C(1000000000));
        limit = &left;
    }
    ready = syscall(SYS_ppoll, fds, (unsigned long)count, limit, NULL, 0UL);
    return ready < 0 ? -errno : (int)ready;
}

static inline void vr_close_fd_(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Keeps the reason of a failure and returns it. */
static inline int vr_fail_(struct vr_session *session, int error, const char *what)
{
    session->error_detail = VR_DETAIL_NONE;
    snprintf(session->error_text, sizeof session->error_text, "%s: %s", what, strerror(-error));
    return error;
}

/* The same, for failures after which requests and replies no longer match. */
static inline int vr_break_(struct vr_session *session, int error, const char *what)
{
    if (session->broken == 0)
        session->broken = error;
    if (session->fd >= 0)
        shutdown(session->fd, SHUT_RDWR);
    return vr_fail_(session, error, what);
}

static inline int vr_send_(struct vr_session *session, void *bytes, size_t count, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part;
    struct msghdr message;
    ssize_t sent;
    part.iov_base = bytes;
    part.iov_len = count;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
        struct cmsghdr *rights;
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    do
        sent = sendmsg(session->fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return -errno;
    return (size_t)sent == count ? 0 : -EPROTO;
}

struct vr_received_ {
    union {
        struct vr_reply_head head;
        char bytes[VR_MESSAGE_BYTES_MAX];
    } message;
    size_t bytes;
    int fds[VR_FDS_MAX_];
    unsigned fd_count;
    int cut; /* MSG_CTRUNC, MSG_TRUNC */
};

/* Takes a datagram that is there. Every descriptor that came with it is in `got`. */
static inline int vr_take_datagram_(int fd, struct vr_received_ *got)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * VR_FDS_MAX_)];
    } control;
    struct iovec part;
    struct msghdr message;
    struct cmsghdr *at;
    ssize_t count;
    part.iov_base = got->message.bytes;
    part.iov_len = sizeof got->message.bytes;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    count = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (count < 0)
        return -errno;
    got->bytes = (size_t)count;
    got->fd_count = 0;
    got->cut = message.msg_flags & (MSG_CTRUNC | MSG_TRUNC);
    for (at = CMSG_FIRSTHDR(&message); at != NULL; at = CMSG_NXTHDR(&message, at)) {
        size_t place, fds;
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
            continue;
        fds = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (place = 0; place < fds && got->fd_count < VR_FDS_MAX_; place++)
            memcpy(&got->fds[got->fd_count++], CMSG_DATA(at) + place * sizeof(int), sizeof(int));
    }
    return 0;
}

static inline void vr_close_received_(struct vr_received_ *got)
{
    unsigned place;
    for (place = 0; place < got->fd_count; place++)
        vr_close_fd_(&got->fds[place]);
    got->fd_count = 0;
}

static inline int vr_pidfd_dead_(int pidfd, uint64_t deadline_ns)
{
    struct pollfd look;
    int ready;
    look.fd = pidfd;
    look.events = POLLIN;
    look.revents = 0;
    do
        ready = vr_poll_(&look, 1, deadline_ns);
    while (ready == -EINTR);
    if (ready < 0)
        return ready;
    return (look.revents & POLLIN) != 0;
}

/* Why a control socket ended: death is told apart, as it makes verdicts final. */
static inline int vr_ended_(struct vr_session *session)
{
    int dead = session->engine_pidfd >= 0 && vr_pidfd_dead_(session->engine_pidfd, 0) == 1;
    return vr_break_(session, dead ? -ESHUTDOWN : -EPIPE, "the engine ended the session");
}

/* Waits for one datagram, or the engine's death, or the time-out. */
static inline int vr_receive_(struct vr_session *session, struct vr_received_ *got)
{
    uint64_t deadline_ns = UINT64_MAX;
    int resets = 0;
    if (session->reply_timeout_ns != 0)
        deadline_ns = vr_later_(vr_now_ns_(), session->reply_timeout_ns);
    for (;;) {
        struct pollfd look[2];
        int ready, taken;
        look[0].fd = session->fd;
        look[1].fd = session->engine_pidfd;
        look[0].events = look[1].events = POLLIN;
        look[0].revents = look[1].revents = 0;
        ready = vr_poll_(look, 2, deadline_ns);
        if (ready == -EINTR)
            continue;
        if (ready < 0)
            return vr_break_(session, ready, "poll");
        /* A reply sent before the death is still to be had, so the socket comes first. */
        taken = vr_take_datagram_(session->fd, got);
        if (taken == 0 && got->bytes == 0 && got->fd_count == 0)
            return vr_ended_(session);
        if (taken == 0)
            return 0;
        if (taken == -ECONNRESET && resets++ == 0)
            continue; /* told once, before what is still queued: look again */
        if (taken == -ECONNRESET || taken == -ENOTCONN)
            return vr_ended_(session);
        if (taken != -EAGAIN && taken != -EINTR)
            return vr_break_(session, taken, "recvmsg");
        if (look[1].revents != 0)
            return vr_break_(session, -ESHUTDOWN, "the engine is dead");
        if (ready == 0)
            return vr_break_(session, -ETIMEDOUT, "no reply from the engine");
    }
}

/* Keeps the text of a failed reply, harmless to a terminal. */
static inline int vr_refused_(struct vr_session *session, const struct vr_received_ *got)
{
    size_t place, count = got->bytes - sizeof got->message.head;
    session->error_detail = got->message.head.detail;
    for (place = 0; place < count; place++) {
        char letter = got->message.bytes[sizeof got->message.head + place];
        int printable = (unsigned char)letter >= 0x20 && letter != 0x7f;
        session->error_text[place] = printable ? letter : '?';
    }
    session->error_text[count] = '\0';
    return got->message.head.status;
}

/* Sends a request and takes its reply with exactly `fd_count` descriptors. On failure the reply is
 * all zeros, with one exception: the request succeeded, but its descriptors did not fit into this
 * process. Then -EMFILE comes with a reply, so that what was made can be given back. */
static inline int vr_call_(struct vr_session *session, enum vr_kind kind, void *request,
                           uint32_t request_bytes, int request_fd, void *reply, size_t reply_bytes,
                           int *fds, unsigned fd_count)
{
    struct vr_head *head = (struct vr_head *)request;
    struct vr_received_ got;
    int status, good;
    session->error_detail = VR_DETAIL_NONE;
    session->error_text[0] = '\0';
    memset(reply, 0, reply_bytes);
    if (session->broken != 0)
        return vr_fail_(session, session->broken, "the session is over");
    head->kind = (uint16_t)kind;
    head->bytes = request_bytes;
    head->tag = ++session->tag;
    status = vr_send_(session, request, request_bytes, request_fd);
    if (status == -EPIPE || status == -ECONNRESET || status == -ENOTCONN)
        return vr_ended_(session);
    if (status != 0)
        return vr_break_(session, status, "sendmsg");
    memset(&got, 0, sizeof got);
    status = vr_receive_(session, &got);
    if (status != 0)
        return status;

    good = (got.cut & MSG_TRUNC) == 0 && got.bytes >= sizeof got.message.head &&
           got.message.head.kind == ((uint32_t)kind | VR_REPLY) && got.message.head.reserved == 0 &&
           got.message.head.bytes == got.bytes && got.message.head.tag == head->tag;
    if (good && got.message.head.status < 0) {
        good = got.message.head.status >= -4095 && got.fd_count == 0 && got.cut == 0 &&
               got.bytes <= sizeof got.message.head + VR_ERROR_TEXT_MAX;
        if (good)
            return vr_refused_(session, &got);
    }
    if (good)
        good = got.message.head.status == 0 && got.bytes == reply_bytes &&
               (got.cut == 0 ? got.fd_count == fd_count : got.fd_count < fd_count);
    if (!good) {
        vr_close_received_(&got);
        return vr_break_(session, -EPROTO, "a malformed reply");
    }
    memcpy(reply, got.message.bytes, reply_bytes);
    if (got.fd_count != fd_count) {
        vr_close_received_(&got);
        return vr_fail_(session, -EMFILE, "descriptors of the reply");
    }
    if (fd_count > 0)
        memcpy(fds, got.fds, fd_count * sizeof(int));
    return 0;
}

/* Maps shared memory that came from the engine, if it cannot shrink beneath us. The seals are
 * asked first: that fails at once for anything but a memfd, whatever is behind the descriptor. */
static inline int vr_map_as_(struct vr_session *session, int fd, uint64_t bytes, int protection,
                             void **data)
{
    struct stat status;
    int seals = fcntl(fd, VR_SEALS_GET_);
    void *map;
    if (seals < 0 || (seals & VR_SEALS_SIZE_) != VR_SEALS_SIZE_)
        return vr_fail_(session, -EPROTO, "memory from the engine that is not sealed");
    if (fstat(fd, &status) != 0)
        return vr_fail_(session, -errno, "fstat");
    if (bytes == 0 || status.st_size < 0 || (uint64_t)status.st_size < bytes)
        return vr_fail_(session, -EPROTO, "memory from the engine that is smaller than told");
    map = mmap(NULL, (size_t)bytes, protection, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return vr_fail_(session, -errno, "mmap");
    *data = map;
    return 0;
}

static inline int vr_map_sealed_(struct vr_session *session, int fd, uint64_t bytes, void **data)
{
    return vr_map_as_(session, fd, bytes, PROT_READ | PROT_WRITE, data);
}

static inline int vr_mapped_(struct vr_session *session, uint32_t object, uint32_t id)
{
    struct vr_mapped request;
    struct vr_reply_head reply;
    memset(&request, 0, sizeof request);
    request.object = object;
    request.id = id;
    return vr_call_(session, VR_KIND_MAPPED, &request, sizeof request, -1, &reply, sizeof reply,
                    NULL, 0);
}

/* Gives back what could not be used, and keeps the reason why. */
static inline int vr_release_(struct vr_session *session, uint32_t object, uint32_t id)
{
    struct vr_release request;
    struct vr_reply_head reply;
    memset(&request, 0, sizeof request);
    request.object = object;
    request.id = id;
    return vr_call_(session, VR_KIND_RELEASE, &request, sizeof request, -1, &reply, sizeof reply,
                    NULL, 0);
}

static inline void vr_abandon_(struct vr_session *session, uint32_t object, uint32_t id)
{
    char text[VR_ERROR_TEXT_MAX + 1];
    uint32_t detail = session->error_detail;
    memcpy(text, session->error_text, sizeof text);
    (void)vr_release_(session, object, id);
    memcpy(session->error_text, text, sizeof text);
    session->error_detail = detail;
}

/* Copies text into its zero-padded field of `most` bytes, if that can carry it. */
static inline int vr_pad_(struct vr_session *session, const char *text, char *field, size_t most,
                          uint32_t detail, const char *rule)
{
    size_t count = strlen(text);
    if (count == 0 || count > most) {
        vr_fail_(session, -EINVAL, rule);
        session->error_detail = detail;
        return -EINVAL;
    }
    memcpy(field, text, count);
    return 0;
}

static inline int vr_name_(struct vr_session *session, const char *name, char *field)
{
    return vr_pad_(session, name, field, VR_NAME_BYTES, VR_DETAIL_NAME,
                   "a name has 1 to 64 bytes");
}

/* ----- Ring memory: only ever touched as atomic words, each slot once. ----- */

static inline uint32_t *vr_word_(const struct vr_ring *ring, uint32_t at)
{
    return (uint32_t *)(void *)(ring->segment + at);
}

static inline uint64_t *vr_slot_(const struct vr_ring *ring, uint64_t offset, uint32_t stride,
                                 uint32_t slot)
{
    return (uint64_t *)(void *)(ring->segment + offset + (uint64_t)slot * stride);
}

static inline uint32_t vr_index_(const struct vr_ring *ring, uint64_t number)
{
    return ring->header.first_index + (uint32_t)number;
}

static inline int vr_table_good_(const struct vr_segment *header, uint64_t offset,
                                 uint32_t entries, uint32_t stride, size_t stride_min)
{
    uint64_t bytes = (uint64_t)entries * stride;
    return stride >= stride_min && stride <= VR_STRIDE_MAX_ && stride % 8 == 0 &&
           offset % 8 == 0 && offset >= header->header_bytes &&
           offset <= header->segment_bytes && bytes <= header->segment_bytes - offset;
}

static inline int vr_entries_good_(uint32_t entries)
{
    return entries >= VR_ENTRIES_MIN && entries <= VR_ENTRIES_MAX &&
           (entries & (entries - 1)) == 0;
}

/* Copies the header once and judges the copy: afterwards every slot lies inside the mapping. */
static inline int vr_header_(struct vr_ring *ring, const struct vr_ring_reply *reply,
                             uint32_t sq_entries, uint32_t cq_entries)
{
    struct vr_segment *header = &ring->header;
    uint64_t words[sizeof(struct vr_segment) / 8];
    const uint64_t *shared = vr_slot_(ring, 0, 0, 0);
    size_t at;
    for (at = 0; at < sizeof words / sizeof words[0]; at++)
        words[at] = __atomic_load_n(&shared[at], __ATOMIC_RELAXED);
    memcpy(header, words, sizeof *header);
    return header->magic == VR_MAGIC && header->abi_version == VR_ABI_VERSION &&
           header->features == ring->session->features &&
           header->segment_bytes == reply->segment_bytes && header->ring == reply->ring &&
           header->engine == ring->session->engine &&
           header->boot_id[0] == ring->session->boot_id[0] &&
           header->boot_id[1] == ring->session->boot_id[1] &&
           header->header_bytes >= VR_AT_COUNTERS + 64 &&
           header->header_bytes <= header->segment_bytes && header->sq_entries == sq_entries &&
           header->cq_entries == cq_entries && vr_entries_good_(sq_entries) &&
           vr_entries_good_(cq_entries) &&
           vr_table_good_(header, header->sq_offset, sq_entries, header->sqe_stride,
                          sizeof(struct vr_sqe)) &&
           vr_table_good_(header, header->cq_offset, cq_entries, header->cqe_stride,
                          sizeof(struct vr_cqe)) &&
           vr_table_good_(header, header->fate_offset, cq_entries, header->fate_stride, 16);
}

static inline void vr_observe_taken_(struct vr_ring *ring)
{
    /* Acquire: the engine's loads of the slots come before our stores into them. */
    uint32_t head = __atomic_load_n(vr_word_(ring, VR_AT_SQ_HEAD), __ATOMIC_ACQUIRE);
    uint32_t advance = head - vr_index_(ring, ring->taken);
    /* A head that cannot be is not believed: the ring then looks full for ever. */
    if (advance <= ring->published - ring->taken)
        ring->taken += advance;
}

/* Looks at the engine's tail; returns how many CQEs can be popped, or -EPROTO if it cannot be. */
static inline int vr_observe_tail_(struct vr_ring *ring)
{
    /* sync: cqe-visible (acquire) */
    uint32_t tail = __atomic_load_n(vr_word_(ring, VR_AT_CQ_TAIL), __ATOMIC_ACQUIRE);
    uint32_t ready = tail - ring->popped;
    if (ready > ring->header.cq_entries || ready < ring->cq_tail - ring->popped)
        return -EPROTO;
    ring->cq_tail = tail;
    return (int)ready;
}

static inline void vr_copy_cqe_(const struct vr_ring *ring, uint32_t index, struct vr_cqe *cqe)
{
    const uint64_t *slot = vr_slot_(ring, ring->header.cq_offset, ring->header.cqe_stride,
                                    index & (ring->header.cq_entries - 1));
    uint64_t words[sizeof(struct vr_cqe) / 8];
    size_t at;
    for (at = 0; at < sizeof words / sizeof words[0]; at++)
        words[at] = __atomic_load_n(&slot[at], __ATOMIC_RELAXED);
    memcpy(cqe, words, sizeof *cqe);
}

/* A full socket is a bell that is ringing already. */
static inline int vr_ring_bell_(int bell)
{
    const char byte = 1;
    ssize_t sent;
    do
        sent = send(bell, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == 1 || errno == EAGAIN ? 0 : -errno;
}

/* Takes what is pending, within a bound: a byte left behind costs one look, no wake-up. Returns 0,
 * or -EPIPE if nobody can ring it any more. */
static inline int vr_silence_bell_(int bell)
{
    char pending[256];
    int round;
    for (round = 0; round < 16; round++) {
        ssize_t count = recv(bell, pending, sizeof pending, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count == 0 || (count < 0 && errno != EAGAIN))
            return -EPIPE;
        if (count < (ssize_t)sizeof pending)
            return 0;
    }
    return 0;
}

/* Why no more CQEs come. Death is told apart, as it makes verdicts final. */
static inline int vr_lost_(const struct vr_ring *ring)
{
    uint32_t flags = __atomic_load_n(vr_word_(ring, VR_AT_ENGINE_FLAGS), __ATOMIC_ACQUIRE);
    int pidfd = ring->session->engine_pidfd;
    if ((flags & VR_ENGINE_FAULTED) != 0)
        return -EIO;
    return pidfd >= 0 && vr_pidfd_dead_(pidfd, 0) == 1 ? -ESHUTDOWN : -EPIPE;
}

/* ===== Sessions ===== */

/* Opens a session on the engine at the Unix socket `path`, under `name` (up to 32 bytes, for the
 * engine's logs). 0, or -errno; error_text is set either way, and on failure nothing is left
 * open. */
static inline int vr_connect_as(const char *path, const char *name, struct vr_session *session)
{
    struct sockaddr_un address;
    struct vr_hello request;
    struct vr_hello_reply reply;
    size_t count = strlen(path);
    int status;
    memset(session, 0, sizeof *session);
    session->fd = session->engine_pidfd = -1;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (count == 0 || count >= sizeof address.sun_path)
        return vr_break_(session, -ENAMETOOLONG, "socket path");
    memcpy(address.sun_path, path, count);
    session->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (session->fd < 0)
        return vr_break_(session, -errno, "socket");
    do
        status = connect(session->fd, (const struct sockaddr *)&address, sizeof address);
    while (status != 0 && errno == EINTR);
    if (status != 0) {
        status = vr_break_(session, -errno, "connect");
        vr_close_fd_(&session->fd);
        return status;
    }
    memset(&request, 0, sizeof request);
    request.version_min = request.version_max = VR_ABI_VERSION;
    count = strlen(name);
    memcpy(request.name, name, count < sizeof request.name ? count : sizeof request.name);
    status = vr_call_(session, VR_KIND_HELLO, &request, sizeof request, -1, &reply, sizeof reply,
                      &session->engine_pidfd, 1);
    if (status == 0 && (reply.version != VR_ABI_VERSION || reply.features != 0))
        status = vr_break_(session, -EPROTO, "a version or feature that was not offered");
    if (status != 0) {
        session->broken = status;
        vr_close_fd_(&session->engine_pidfd);
        vr_close_fd_(&session->fd);
        return status;
    }
    session->session = reply.session;
    session->engine = reply.engine;
    session->engine_pid = reply.pid;
    session->features = reply.features;
    memcpy(session->boot_id, reply.boot_id, sizeof session->boot_id);
    return 0;
}

/* Opens a session as vr_connect_as does, named after the calling thread. */
static inline int vr_connect(const char *path, struct vr_session *session)
{
    char name[17];
    char *letter;
    memset(name, 0, sizeof name);
    if (prctl(PR_GET_NAME, name, 0, 0, 0) != 0)
        name[0] = '\0';
    for (letter = name; *letter != '\0'; letter++)
        if (*letter < 0x20 || *letter > 0x7e)
            *letter = '?';
    return vr_connect_as(path, name, session);
}

/* Ends the session: the engine ends queued ops, drains posted ones, then releases all it held.
 * Rings and regions stay mapped here until vr_ring_free and vr_region_free. Safe to repeat. */
static inline void vr_close(struct vr_session *session)
{
    if (session->broken == 0)
        session->broken = -EPIPE;
    vr_close_fd_(&session->fd);
    vr_close_fd_(&session->engine_pidfd);
}

/* 1 once the engine process is dead, 0 if it still lives after timeout_ns (0 only looks, negative
 * waits for ever), or -errno. A dying engine hangs up before it is dead, so after -EPIPE wait
 * here before calling a verdict final. */
static inline int vr_engine_dead(const struct vr_session *session, int64_t timeout_ns)
{
    uint64_t deadline_ns = UINT64_MAX;
    if (session->engine_pidfd < 0)
        return -EBADF;
    if (timeout_ns >= 0)
        deadline_ns = vr_later_(vr_now_ns_(), (uint64_t)timeout_ns);
    return vr_pidfd_dead_(session->engine_pidfd, deadline_ns);
}

/* Gives back a ring (VR_OBJECT_RING), or a region or import (VR_OBJECT_REGION), by its number;
 * returns when nothing touches it any more. 0 or -errno. Of use for imports: rings and regions
 * have vr_ring_free and vr_region_free, which also unmap. */
static inline int vr_release(struct vr_session *session, uint32_t object, uint32_t id)
{
    return vr_release_(session, object, id);
}

/* Asks what this engine serves and allows. 0, or -errno and all zeros. */
static inline int vr_probe(struct vr_session *session, struct vr_probe_reply *probe)
{
    struct vr_probe request;
    memset(&request, 0, sizeof request);
    return vr_call_(session, VR_KIND_PROBE, &request, sizeof request, -1, probe, sizeof *probe,
                    NULL, 0);
}

/* Reads counters (by enum vr_counter) of VR_STATS_SESSION or VR_STATS_ENGINE. 0, or -errno and all
 * counters 0. */
static inline int vr_stats(struct vr_session *session, uint32_t scope,
                           uint64_t counters[VR_COUNTERS])
{
    struct vr_stats request;
    struct vr_stats_reply reply;
    int status;
    memset(&request, 0, sizeof request);
    request.scope = scope;
    status = vr_call_(session, VR_KIND_STATS, &request, sizeof request, -1, &reply, sizeof reply,
                      NULL, 0);
    memcpy(counters, reply.counters, sizeof reply.counters);
    return status;
}

/* ===== Regions ===== */

/* Makes a region of `bytes` in memory of the engine's and maps it. flags: 0 or VR_REGION_HUGE
 * (region->flags tells whether it was granted). 0 or -errno. */
static inline int vr_region_alloc(struct vr_session *session, uint64_t bytes, uint32_t flags,
                                  struct vr_region *region)
{
    struct vr_region_request request;
    struct vr_region_reply reply;
    int status, fd = -1;
    memset(region, 0, sizeof *region);
    memset(&request, 0, sizeof request);
    request.source = VR_REGION_ALLOCATED;
    request.flags = flags;
    request.bytes = bytes;
    status = vr_call_(session, VR_KIND_REGION, &request, sizeof request, -1, &reply, sizeof reply,
                      &fd, 1);
    if (status != 0 && reply.reply.kind == 0)
        return status;
    if (status == 0 && reply.bytes < bytes)
        status = vr_fail_(session, -EPROTO, "a region smaller than asked for");
    if (status == 0)
        status = vr_map_sealed_(session, fd, reply.bytes, &region->data);
    vr_close_fd_(&fd);
    if (status != 0) {
        vr_abandon_(session, VR_OBJECT_REGION, reply.region);
        return status;
    }
    status = vr_mapped_(session, VR_OBJECT_REGION, reply.region);
    if (status != 0) {
        munmap(region->data, (size_t)reply.bytes);
        region->data = NULL;
        return status;
    }
    region->session = session;
    region->id = reply.region;
    region->flags = reply.flags;
    region->bytes = reply.bytes;
    return 0;
}

/* Makes a memfd of `bytes`, a multiple of the page size, seals, maps and registers it. The memory
 * is charged to this process. 0 or -errno. */
static inline int vr_region_memfd(struct vr_session *session, uint64_t bytes,
                                  struct vr_region *region)
{
    struct vr_region_request request;
    struct vr_region_reply reply;
    int status, fd;
    void *map = MAP_FAILED;
    memset(region, 0, sizeof *region);
    if (bytes > INT64_MAX)
        return vr_fail_(session, -EINVAL, "region bytes");
    fd = (int)syscall(SYS_memfd_create, "verbring", VR_MFD_FLAGS_);
    if (fd < 0)
        return vr_fail_(session, -errno, "memfd_create");
    status = ftruncate(fd, (off_t)bytes) != 0 ? -errno : 0;
    if (status == 0 && fcntl(fd, VR_SEALS_ADD_, VR_SEALS_SIZE_) != 0)
        status = -errno;
    if (status == 0)
        map = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (status == 0 && map == MAP_FAILED)
        status = -errno;
    if (status != 0) {
        close(fd);
        return vr_fail_(session, status, "making the memfd");
    }
    memset(&request, 0, sizeof request);
    request.source = VR_REGION_MEMFD;
    request.bytes = bytes;
    status = vr_call_(session, VR_KIND_REGION, &request, sizeof request, fd, &reply, sizeof reply,
                      NULL, 0);
    close(fd);
    if (status == 0 && reply.bytes != bytes) {
        status = vr_fail_(session, -EPROTO, "a region of another size than was sent");
        vr_abandon_(session, VR_OBJECT_REGION, reply.region);
    }
    if (status != 0) {
        munmap(map, (size_t)bytes);
        return status;
    }
    region->session = session;
    region->id = reply.region;
    region->flags = reply.flags;
    region->data = map;
    region->bytes = bytes;
    return 0;
}

/* Releases a region, waiting until no op touches it, and unmaps it in any case. 0 or -errno. */
static inline int vr_region_free(struct vr_region *region)
{
    int status;
    if (region->data == NULL)
        return 0;
    status = vr_release_(region->session, VR_OBJECT_REGION, region->id);
    munmap(region->data, (size_t)region->bytes);
    memset(region, 0, sizeof *region);
    return status;
}

/* Offers a region under a name (1 to 64 bytes, unique for the uid) with VR_RIGHT_* rights; fills
 * in the secret that importers must show. 0, or -errno and a secret of zeros. */
static inline int vr_export(const struct vr_region *region, const char *name, uint32_t rights,
                            uint8_t secret[VR_SECRET_BYTES])
{
    struct vr_export request;
    struct vr_export_reply reply;
    int status;
    memset(secret, 0, VR_SECRET_BYTES);
    memset(&request, 0, sizeof request);
    request.region = region->id;
    request.rights = rights;
    status = vr_name_(region->session, name, request.name);
    if (status == 0)
        status = vr_call_(region->session, VR_KIND_EXPORT, &request, sizeof request, -1, &reply,
                          sizeof reply, NULL, 0);
    if (status == 0)
        memcpy(secret, reply.secret, sizeof reply.secret);
    return status;
}

static inline int vr_take_up_(struct vr_session *session, uint32_t peer, uint32_t uid,
                              const char *name, const uint8_t secret[VR_SECRET_BYTES],
                              uint32_t rights, struct vr_remote *remote)
{
    struct vr_import request;
    struct vr_import_reply reply;
    int status;
    memset(remote, 0, sizeof *remote);
    memset(&request, 0, sizeof request);
    request.rights = rights;
    request.uid = uid;
    request.peer = peer;
    memcpy(request.secret, secret, sizeof request.secret);
    status = vr_name_(session, name, request.name);
    if (status == 0)
        status = vr_call_(session, VR_KIND_IMPORT, &request, sizeof request, -1, &reply,
                          sizeof reply, NULL, 0);
    if (status != 0)
        return status;
    remote->id = reply.region;
    remote->rights = reply.rights;
    remote->bytes = reply.bytes;
    return 0;
}

/* Takes up the export `name` of `uid` (VR_UID_OWN: our own). rights: VR_RIGHT_* wanted, 0 takes
 * all that are offered. 0 or -errno. */
static inline int vr_import(struct vr_session *session, uint32_t uid, const char *name,
                            const uint8_t secret[VR_SECRET_BYTES], uint32_t rights,
                            struct vr_remote *remote)
{
    return vr_take_up_(session, 0, uid, name, secret, rights, remote);
}

/* As vr_import, at another engine; `uid` is the exporter's there. */
static inline int vr_import_from(const struct vr_peer *peer, uint32_t uid, const char *name,
                                 const uint8_t secret[VR_SECRET_BYTES], uint32_t rights,
                                 struct vr_remote *remote)
{
    return vr_take_up_(peer->session, peer->number, uid, name, secret, rights, remote);
}

/* ===== Peers ===== */

/* Connects our engine to the one at `url`, "unix:" and the absolute path of its socket on this
 * host, or "verbring://HOST:PORT" on any, if both engines have the same key; the peer lasts as
 * long as the session. require: the VR_FABRIC_* that must carry ops to it, 0 takes any. 0 or
 * -errno. */
static inline int vr_connect_peer(struct vr_session *session, const char *url, uint32_t require,
                                  struct vr_peer *peer)
{
    struct vr_connect request;
    struct vr_connect_reply reply;
    int status;
    memset(peer, 0, sizeof *peer);
    memset(&request, 0, sizeof request);
    request.require = require;
    status = vr_pad_(session, url, request.url, sizeof request.url, VR_DETAIL_URL,
                     "a URL has 1 to 128 bytes");
    if (status == 0)
        status = vr_call_(session, VR_KIND_CONNECT, &request, sizeof request, -1, &reply,
                          sizeof reply, NULL, 0);
    if (status != 0)
        return status;
    if (reply.peer == 0 || reply.fabric > 255 || reply.rail > 255 ||
        (require != 0 && require != reply.fabric))
        return vr_fail_(session, -EPROTO, "a peer other than the one asked for");
    peer->session = session;
    peer->number = reply.peer;
    peer->fabric = reply.fabric;
    peer->rail = reply.rail;
    return 0;
}

/* 1 if a field holds text that ends in zeros, or fills it. */
static inline int vr_padded_(const char *field, size_t bytes)
{
    size_t end = 0;
    while (end < bytes && field[end] != '\0')
        end++;
    while (end < bytes && field[end] == '\0')
        end++;
    return end == bytes;
}

/* Asks for the connection to another engine at place `at` or behind it, for root and the engine's
 * own uid: begin with 0, go on with peer->at + 1. Texts in it are not ended by a zero where they
 * fill their field, and may hold what others wrote. 0; -ENOENT behind the last, all zeros;
 * -EOPNOTSUPP if this engine does not tell; or another -errno. */
static inline int vr_peers(struct vr_session *session, uint32_t at, struct vr_peers_reply *peer)
{
    struct vr_peers_request request;
    struct vr_probe_reply probe;
    int status;
    memset(peer, 0, sizeof *peer);
    if (at == 0) {
        status = vr_probe(session, &probe);
        if (status != 0)
            return status;
        if ((probe.features & VR_FEATURE_PEERS) == 0)
            return vr_fail_(session, -EOPNOTSUPP, "this engine does not tell of other engines");
    }
    memset(&request, 0, sizeof request);
    request.at = at;
    status = vr_call_(session, VR_KIND_PEERS, &request, sizeof request, -1, peer, sizeof *peer,
                      NULL, 0);
    if (status != 0)
        return status;
    if (peer->at < at || peer->rails_count > VR_PEER_RAILS_MAX ||
        !vr_padded_(peer->place, sizeof peer->place) ||
        !vr_padded_(peer->error, sizeof peer->error)) {
        memset(peer, 0, sizeof *peer);
        return vr_fail_(session, -EPROTO, "a peer that cannot be");
    }
    return 0;
}

/* Asks for a card that our engine reaches others by, for root and the engine's own uid: begin with
 * 0. Its name is not ended by a zero where it fills its field. 0; -ENOENT behind the last, all
 * zeros; -EOPNOTSUPP if this engine does not tell; or another -errno. */
static inline int vr_cards(struct vr_session *session, uint32_t number,
                           struct vr_cards_reply *card)
{
    struct vr_cards_request request;
    struct vr_probe_reply probe;
    int status;
    memset(card, 0, sizeof *card);
    if (number == 0) {
        status = vr_probe(session, &probe);
        if (status != 0)
            return status;
        if ((probe.features & VR_FEATURE_CARDS) == 0)
            return vr_fail_(session, -EOPNOTSUPP, "this engine does not tell of its cards");
    }
    memset(&request, 0, sizeof request);
    request.card = number;
    status = vr_call_(session, VR_KIND_CARDS, &request, sizeof request, -1, card, sizeof *card,
                      NULL, 0);
    if (status != 0)
        return status;
    if (card->card != number || card->addresses_count > VR_CARD_ADDRESSES_MAX ||
        !vr_padded_(card->name, sizeof card->name)) {
        memset(card, 0, sizeof *card);
        return vr_fail_(session, -EPROTO, "a card that cannot be");
    }
    return 0;
}

/* ===== Rings ===== */

/* Makes a ring. Entry counts are powers of two from VR_ENTRIES_MIN to VR_ENTRIES_MAX; cq_entries
 * is also the most ops in flight. 0 or -errno. */
static inline int vr_ring_create(struct vr_session *session, uint32_t sq_entries,
                                 uint32_t cq_entries, struct vr_ring *ring)
{
    struct vr_ring_request request;
    struct vr_ring_reply reply;
    int status, fds[3] = {-1, -1, -1};
    void *map = NULL;
    memset(ring, 0, sizeof *ring);
    ring->session = session;
    ring->spin_ns = VR_SPIN_NS_DEFAULT;
    ring->sq_bell = ring->cq_bell = -1;
    memset(&request, 0, sizeof request);
    request.sq_entries = sq_entries;
    request.cq_entries = cq_entries;
    status = vr_call_(session, VR_KIND_RING, &request, sizeof request, -1, &reply, sizeof reply,
                      fds, 3);
    if (status != 0 && reply.reply.kind == 0)
        return status;
    if (status == 0 && reply.segment_bytes < VR_AT_COUNTERS + 64)
        status = vr_fail_(session, -EPROTO, "a segment without room for its header");
    if (status == 0)
        status = vr_map_sealed_(session, fds[0], reply.segment_bytes, &map);
    if (status == 0) {
        ring->segment = (unsigned char *)map;
        if (!vr_header_(ring, &reply, sq_entries, cq_entries))
            status = vr_fail_(session, -EPROTO, "a segment header that cannot be");
    }
    if (status != 0)
        vr_abandon_(session, VR_OBJECT_RING, reply.ring);
    else
        status = vr_mapped_(session, VR_OBJECT_RING, reply.ring);
    vr_close_fd_(&fds[0]);
    if (status != 0) {
        if (map != NULL)
            munmap(map, (size_t)reply.segment_bytes);
        vr_close_fd_(&fds[1]);
        vr_close_fd_(&fds[2]);
        ring->segment = NULL;
        return status;
    }
    ring->ring = reply.ring;
    ring->sq_bell = fds[1];
    ring->cq_bell = fds[2];
    ring->popped = ring->cq_tail = ring->header.first_index;
    return 0;
}

/* Releases a ring, waiting until its ops have ended, and unmaps it in any case; CQEs not reaped
 * are lost. 0 or -errno. A ring that vr_ring_create failed to make is accepted. */
static inline int vr_ring_free(struct vr_ring *ring)
{
    int status;
    if (ring->segment == NULL)
        return 0;
    status = vr_release_(ring->session, VR_OBJECT_RING, ring->ring);
    munmap(ring->segment, (size_t)ring->header.segment_bytes);
    ring->segment = NULL;
    vr_close_fd_(&ring->sq_bell);
    vr_close_fd_(&ring->cq_bell);
    return status;
}

/* Returns how many SQEs can be pushed now, or fewer: the engine's head is looked at only when no
 * room is known of, so that 0 is exact and the rest costs nothing. */
static inline uint32_t vr_room(struct vr_ring *ring)
{
    if (ring->pushed - ring->taken == ring->header.sq_entries)
        vr_observe_taken_(ring);
    return ring->header.sq_entries - (uint32_t)(ring->pushed - ring->taken);
}

/* Copies an SQE into the SQ, unseen by the engine until vr_submit. Returns its number in this
 * ring (0 for the first; CANCEL, WHY and verdicts go by it), or -EAGAIN if the SQ is full. */
static inline int64_t vr_push(struct vr_ring *ring, const struct vr_sqe *sqe)
{
    uint64_t words[sizeof(struct vr_sqe) / 8];
    uint64_t *slot;
    size_t at;
    if (vr_room(ring) == 0)
        return -EAGAIN;
    memcpy(words, sqe, sizeof words);
    slot = vr_slot_(ring, ring->header.sq_offset, ring->header.sqe_stride,
                    vr_index_(ring, ring->pushed) & (ring->header.sq_entries - 1));
    for (at = 0; at < sizeof words / sizeof words[0]; at++)
        __atomic_store_n(&slot[at], words[at], __ATOMIC_RELAXED);
    return (int64_t)ring->pushed++;
}

/* Publishes what was pushed and wakes the engine if it sleeps. Returns how many SQEs became
 * visible; or, though they are visible, -EIO (the ring is faulted), -EPIPE (no further SQE is
 * taken) or another -errno if the bell could not be rung: calling again rings again. */
static inline int vr_submit(struct vr_ring *ring)
{
    uint64_t count = ring->pushed - ring->published;
    uint32_t flags;
    if (count != 0) {
        ring->published = ring->pushed;
        /* sync: sqe-visible (release) */
        __atomic_store_n(vr_word_(ring, VR_AT_SQ_TAIL), vr_index_(ring, ring->pushed),
                         __ATOMIC_RELEASE);
        /* sync: engine-sleep. We write sq_tail, then read engine_flags; the engine writes
         * NEED_WAKEUP, then reads sq_tail. Without a full fence on each side both could read the
         * old value: the SQE unseen, the engine asleep, nobody to wake it. */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        flags = __atomic_load_n(vr_word_(ring, VR_AT_ENGINE_FLAGS), __ATOMIC_RELAXED);
        if ((flags & VR_ENGINE_FAULTED) != 0)
            return -EIO;
        if ((flags & VR_ENGINE_CLOSING) != 0)
            return -EPIPE;
        if ((flags & VR_ENGINE_NEED_WAKEUP) != 0)
            ring->bell_owed = 1;
    }
    if (ring->bell_owed) {
        int status = vr_ring_bell_(ring->sq_bell);
        if (status != 0)
            return status == -ECONNRESET ? -EPIPE : status;
        ring->bell_owed = 0;
    }
    return (int)count;
}

/* Returns how many CQEs can be reaped now, or -EPROTO if the engine's tail cannot be. */
static inline int vr_ready(struct vr_ring *ring)
{
    return vr_observe_tail_(ring);
}

/* Copies the oldest CQE without popping it: 1, or 0 if there is none, or -EPROTO. What vr_reap
 * gives later is copied anew. */
static inline int vr_peek(struct vr_ring *ring, struct vr_cqe *cqe)
{
    if (ring->cq_tail == ring->popped) {
        int ready = vr_observe_tail_(ring);
        if (ready <= 0)
            return ready;
    }
    vr_copy_cqe_(ring, ring->popped, cqe);
    return 1;
}

/* Pops up to `count` CQEs and gives their slots back. Returns how many, 0 if there are none, or
 * -EPROTO if the engine's tail cannot be. Never blocks. */
static inline int vr_reap(struct vr_ring *ring, struct vr_cqe *cqes, uint32_t count)
{
    uint32_t place, known = ring->cq_tail - ring->popped;
    if (known < count) {
        int ready = vr_observe_tail_(ring);
        if (ready < 0 && known == 0)
            return ready;
        known = ring->cq_tail - ring->popped;
    }
    if (count > known)
        count = known;
    if (count == 0)
        return 0;
    for (place = 0; place < count; place++)
        vr_copy_cqe_(ring, ring->popped + place, &cqes[place]);
    ring->popped += count;
    /* Release: our loads of the slots come before the engine's stores into them. */
    __atomic_store_n(vr_word_(ring, VR_AT_CQ_HEAD), ring->popped, __ATOMIC_RELEASE);
    return (int)count;
}

/* The VR_ENGINE_* bits of this ring. */
static inline uint32_t vr_engine_flags(const struct vr_ring *ring)
{
    return __atomic_load_n(vr_word_(ring, VR_AT_ENGINE_FLAGS), __ATOMIC_ACQUIRE);
}

/* Why this ring was faulted: VR_FAULT_*, or 0 if it was not. */
static inline uint32_t vr_fault_reason(const struct vr_ring *ring)
{
    uint32_t flags = vr_engine_flags(ring);
    return (flags & VR_ENGINE_FAULTED) != 0 ? flags >> 16 : 0;
}

/* A counter that the engine keeps in the segment. */
static inline uint64_t vr_ring_counter(const struct vr_ring *ring, enum vr_ring_counter_at at)
{
    return __atomic_load_n(vr_slot_(ring, VR_AT_COUNTERS, 8, (uint32_t)at & 7), __ATOMIC_RELAXED);
}

/* The descriptor that a reactor polls for POLLIN. Before each sleep call vr_bell_arm. The reactor
 * should also watch session.engine_pidfd (POLLIN: engine dead) and session.fd (POLLHUP: over). */
static inline int vr_ring_fd(const struct vr_ring *ring)
{
    return ring->cq_bell;
}

/* Asks for the bell once `want` CQEs (1 to cq_entries) are ready. Returns 0: sleep on vr_ring_fd;
 * or, if they are ready already, how many are; or -EIO, -ESHUTDOWN, -EPIPE or -EPROTO, as vr_wait
 * does. Silences the bell first. */
static inline int vr_bell_arm(struct vr_ring *ring, uint32_t want)
{
    int ready, bell;
    if (want < 1)
        want = 1;
    if (want > ring->header.cq_entries)
        want = ring->header.cq_entries;
    bell = vr_silence_bell_(ring->cq_bell);
    __atomic_store_n(vr_word_(ring, VR_AT_BELL_AT), ring->popped + (want - 1), __ATOMIC_RELAXED);
    /* sync: client-sleep. We write bell_at, then read cq_tail; the engine writes cq_tail, then
     * reads bell_at. Without a full fence on each side both could read the old value, and the
     * bell would never come. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ready = vr_observe_tail_(ring);
    if (ready < 0 || (uint32_t)ready >= want)
        return ready;
    if (bell != 0 || (vr_engine_flags(ring) & VR_ENGINE_FAULTED) != 0)
        return vr_lost_(ring);
    return 0;
}

/* Waits until `want` CQEs (1 to cq_entries) are ready: first looking for spin_ns, then asleep.
 * Does not submit. Returns how many are ready, or
 *     -ETIME      timeout_ns passed (negative: never; 0: only looks)
 *     -EINTR      a signal handler ran
 *     -EIO        the ring is faulted; no more CQEs will come
 *     -ESHUTDOWN  the engine is dead: reap what there is, then vr_verdict is final
 *     -EPIPE      the session is over: as above, once vr_engine_dead
 *     -EPROTO     the engine's tail cannot be
 * On every error fewer than `want` may be there to reap. */
static inline int vr_wait(struct vr_ring *ring, uint32_t want, int64_t timeout_ns)
{
    uint64_t now_ns, deadline_ns = UINT64_MAX, spin_until_ns;
    int ready = vr_observe_tail_(ring);
    if (want < 1)
        want = 1;
    if (want > ring->header.cq_entries)
        want = ring->header.cq_entries;
    if (ready < 0 || (uint32_t)ready >= want)
        return ready;
    now_ns = vr_now_ns_();
    if (timeout_ns >= 0)
        deadline_ns = vr_later_(now_ns, (uint64_t)timeout_ns);
    spin_until_ns = vr_later_(now_ns, ring->spin_ns);
    if (spin_until_ns > deadline_ns)
        spin_until_ns = deadline_ns;
    for (; now_ns < spin_until_ns; now_ns = vr_now_ns_()) {
        int look;
        for (look = 0; look < 32; look++) {
            vr_pause_();
            ready = vr_observe_tail_(ring);
            if (ready < 0 || (uint32_t)ready >= want)
                return ready;
        }
    }
    for (;;) {
        struct pollfd look[3];
        int woken;
        ready = vr_bell_arm(ring, want);
        if (ready != 0)
            return ready;
        if (ring->session->fd < 0)
            return -EPIPE;
        look[0].fd = ring->cq_bell;
        look[0].events = POLLIN;
        look[1].fd = ring->session->engine_pidfd;
        look[1].events = POLLIN;
        /* Hang-up only: a reply that another thread waits for is none of our business. */
        look[2].fd = ring->session->fd;
        look[2].events = VR_POLLRDHUP_;
        look[0].revents = look[1].revents = look[2].revents = 0;
        woken = vr_poll_(look, 3, deadline_ns);
        ready = vr_observe_tail_(ring);
        if (ready < 0 || (uint32_t)ready >= want)
            return ready;
        if (woken < 0)
            return woken;
        if (woken == 0)
            return -ETIME;
        if (look[1].revents != 0)
            return -ESHUTDOWN;
        if (((look[0].revents | look[2].revents) & VR_POLL_LOST_) != 0)
            return vr_lost_(ring);
    }
}

/* vr_submit, then vr_wait. Returns as vr_wait does, or vr_submit's error. */
static inline int vr_submit_and_wait(struct vr_ring *ring, uint32_t want, int64_t timeout_ns)
{
    int status = vr_submit(ring);
    return status < 0 ? status : vr_wait(ring, want, timeout_ns);
}

/* Judges the SQE `number` of this ring, whose CQE is not among those reaped. Final once the
 * engine is dead (-ESHUTDOWN, vr_engine_dead) and all CQEs are reaped; before, a snapshot. */
static inline enum vr_verdict vr_verdict(struct vr_ring *ring, uint64_t number)
{
    uint32_t place;
    /* sync: fate-visible (acquire): a head seen here comes with the entries before it. */
    vr_observe_taken_(ring);
    for (place = 0; place < ring->header.cq_entries; place++) {
        const uint64_t *entry =
            vr_slot_(ring, ring->header.fate_offset, ring->header.fate_stride, place);
        /* sync: fate-entry (acquire) */
        uint64_t word = __atomic_load_n(&entry[1], __ATOMIC_ACQUIRE);
        uint64_t stage = word & ((UINT64_C(1) << VR_FATE_SHIFT) - 1);
        if (word >> VR_FATE_SHIFT != number)
            continue;
        if (stage == VR_FATE_ACCEPTED)
            return VR_NOT_STARTED;
        if (stage == VR_FATE_POSTED)
            return VR_INDETERMINATE;
    }
    return number < ring->taken ? VR_DONE : VR_NOT_STARTED;
}

/* Takes back an op of this ring over the control socket, which works while the SQ is full. `by`
 * is VR_CANCEL_BY_*. 0 (the op's own CQE says -VR_ECANCELED), -ENOENT, -EALREADY if it is posted,
 * or another -errno. *record, if not NULL, becomes the record taken back, or 0. */
static inline int vr_cancel(struct vr_ring *ring, uint32_t by, uint64_t target, uint64_t *record)
{
    struct vr_op_query request;
    struct vr_cancel_reply reply;
    int status;
    memset(&request, 0, sizeof request);
    request.ring = ring->ring;
    request.by = by;
    request.target = target;
    status = vr_call_(ring->session, VR_KIND_CANCEL, &request, sizeof request, -1, &reply,
                      sizeof reply, NULL, 0);
    if (record != NULL)
        *record = reply.record;
    return status;
}

/* Asks where an op of this ring is and what it waits for; by number also of an SQE that is not
 * taken yet. 0, -ENOENT if it is over or was never pushed, or another -errno. */
static inline int vr_why(struct vr_ring *ring, uint32_t by, uint64_t target,
                         struct vr_why_reply *why)
{
    struct vr_op_query request;
    memset(&request, 0, sizeof request);
    request.ring = ring->ring;
    request.by = by;
    request.target = target;
    return vr_call_(ring->session, VR_KIND_WHY, &request, sizeof request, -1, why, sizeof *why,
                    NULL, 0);
}

/* ===== The flight recorder ===== */

/* Reads the entry in a place; 1 if there is one that is whole. */
static inline int vr_read_record_(const struct vr_recorder *recorder, uint32_t place,
                                  struct vr_record *record)
{
    const unsigned char *entry = recorder->data + recorder->header.header_bytes +
                                 (uint64_t)place * recorder->header.entry_stride;
    const uint64_t *line = (const uint64_t *)(const void *)entry;
    uint64_t words[sizeof(struct vr_record) / 8];
    size_t at;
    words[0] = __atomic_load_n(&line[0], __ATOMIC_ACQUIRE);
    for (at = 1; at < sizeof words / sizeof words[0]; at++)
        words[at] = __atomic_load_n(&line[at], __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&line[0], __ATOMIC_RELAXED) != words[0])
        return 0;
    memcpy(record, words, sizeof *record);
    return record->sequence != 0;
}

static inline int vr_recorder_good_(const struct vr_recorder *recorder)
{
    const struct vr_recorder_header *header = &recorder->header;
    return header->magic == VR_RECORDER_MAGIC && header->abi_version == VR_ABI_VERSION &&
           header->header_bytes >= VR_RECORDER_HEADER_BYTES && header->header_bytes % 8 == 0 &&
           header->entry_stride >= sizeof(struct vr_record) && header->entry_stride % 8 == 0 &&
           header->entry_stride <= VR_STRIDE_MAX_ && header->entries != 0 &&
           header->entries <= VR_RECORDER_ENTRIES_MAX &&
           (header->entries & (header->entries - 1)) == 0 &&
           header->header_bytes + (uint64_t)header->entries * header->entry_stride <=
               recorder->bytes;
}

/* Unmaps a flight recorder. Safe to repeat. */
static inline void vr_recorder_free(struct vr_recorder *recorder)
{
    if (recorder->data != NULL)
        (void)munmap((void *)(uintptr_t)recorder->data, (size_t)recorder->bytes);
    recorder->data = NULL;
    vr_close_fd_(&recorder->fd);
}

/* Asks for this session's flight recorder, which is made if there is none, and maps it: from now on
 * the engine leaves an entry for each op that is over, NOPs apart. 0; -EOPNOTSUPP if this engine
 * keeps none; or another -errno. The engine need not live when it is read. */
static inline int vr_recorder_open(struct vr_session *session, struct vr_recorder *recorder)
{
    struct vr_recorder_request request;
    struct vr_recorder_reply reply;
    struct vr_probe_reply probe;
    void *data = NULL;
    int status;
    memset(recorder, 0, sizeof *recorder);
    recorder->fd = -1;
    status = vr_probe(session, &probe);
    if (status != 0)
        return status;
    if ((probe.features & VR_FEATURE_RECORDER) == 0)
        return vr_fail_(session, -EOPNOTSUPP, "this engine keeps no flight recorders");
    memset(&request, 0, sizeof request);
    request.session = VR_SESSION_OWN;
    status = vr_call_(session, VR_KIND_RECORDER, &request, sizeof request, -1, &reply,
                      sizeof reply, &recorder->fd, 1);
    if (status != 0)
        return status;
    status = reply.bytes < VR_RECORDER_HEADER_BYTES
                 ? vr_fail_(session, -EPROTO, "a flight recorder without a header")
                 : vr_map_as_(session, recorder->fd, reply.bytes, PROT_READ, &data);
    if (status == 0) {
        recorder->data = (const unsigned char *)data;
        recorder->bytes = reply.bytes;
        memcpy(&recorder->header, data, sizeof recorder->header);
        if (!vr_recorder_good_(recorder) || recorder->header.session != session->session)
            status = vr_fail_(session, -EPROTO, "a flight recorder that cannot be");
    }
    if (status != 0)
        vr_recorder_free(recorder);
    return status;
}

/* Copies what is known of the `count` ops that ended last, oldest first; returns how many. Those
 * that are overwritten meanwhile are left out. */
static inline uint32_t vr_last_records(const struct vr_recorder *recorder,
                                       struct vr_record *records, uint32_t count)
{
    uint32_t place, back, found = 0, newest = 0, entries = recorder->header.entries;
    struct vr_record record;
    for (place = 0; place < entries; place++)
        if (vr_read_record_(recorder, place, &record) &&
            (newest == 0 || record.sequence - newest < UINT32_C(1) << 31))
            newest = record.sequence;
    if (newest == 0)
        return 0;
    for (back = count < entries ? count : entries; back > 0; back--) {
        uint32_t sequence = newest - (back - 1);
        if (vr_read_record_(recorder, (sequence - 1) & (entries - 1), &record) &&
            record.sequence == sequence)
            records[found++] = record;
    }
    return found;
}

/* Finds what is known of the op with this record, as its CQE names it: 1, or 0 if it is not over or
 * overwritten. */
static inline int vr_find_record(const struct vr_recorder *recorder, uint64_t id,
                                 struct vr_record *record)
{
    uint32_t place;
    for (place = 0; place < recorder->header.entries; place++)
        if (vr_read_record_(recorder, place, record) && record->record == id)
            return 1;
    return 0;
}

/* From intake to first post (0 if nothing was posted), and to its end. */
static inline uint64_t vr_record_queued_ns(const struct vr_record *record)
{
    return record->queued >> VR_RECORD_TIME_SHIFT;
}

static inline uint64_t vr_record_total_ns(const struct vr_record *record)
{
    return record->total >> VR_RECORD_TIME_SHIFT;
}

/* Requests given to the fabric, and times that it found no credit; both saturate at 65535. */
static inline uint32_t vr_record_posts(const struct vr_record *record)
{
    return (uint32_t)(record->queued & ((1u << VR_RECORD_TIME_SHIFT) - 1));
}

static inline uint32_t vr_record_defers(const struct vr_record *record)
{
    return (uint32_t)(record->total & ((1u << VR_RECORD_TIME_SHIFT) - 1));
}

/* ===== The telemetry page ===== */

static inline int vr_telemetry_good_(const struct vr_telemetry *telemetry)
{
    const struct vr_telemetry_header *header = &telemetry->header;
    uint64_t words = header->counters + 2 * (uint64_t)header->buckets;
    uint64_t blocks = (uint64_t)header->lanes + header->rails + header->sessions + 1;
    /* Histograms of other buckets would have to be read otherwise. */
    return header->magic == VR_TELEMETRY_MAGIC && header->abi_version == VR_ABI_VERSION &&
           header->header_bytes >= VR_TELEMETRY_HEADER_BYTES && header->header_bytes % 8 == 0 &&
           header->counters >= VR_BLOCK_COUNTERS && header->buckets == VR_HISTOGRAM_BUCKETS &&
           header->unit_ns == VR_HISTOGRAM_UNIT_NS && header->steps == VR_HISTOGRAM_STEPS &&
           header->block_stride % 8 == 0 && header->block_stride >= 8 * words &&
           header->lanes >= VR_TELEMETRY_LANES &&
           header->header_bytes + blocks * header->block_stride <= telemetry->bytes;
}

/* Unmaps a telemetry page. Safe to repeat. */
static inline void vr_telemetry_free(struct vr_telemetry *telemetry)
{
    if (telemetry->data != NULL)
        (void)munmap((void *)(uintptr_t)telemetry->data, (size_t)telemetry->bytes);
    telemetry->data = NULL;
}

/* Asks for the engine's telemetry page and maps it: for root and the engine's own uid. 0;
 * -EOPNOTSUPP if this engine has none; or another -errno. To read it asks nothing of the engine. */
static inline int vr_telemetry_open(struct vr_session *session, struct vr_telemetry *telemetry)
{
    struct vr_telemetry_request request;
    struct vr_telemetry_reply reply;
    struct vr_probe_reply probe;
    void *data = NULL;
    int status, fd = -1;
    memset(telemetry, 0, sizeof *telemetry);
    status = vr_probe(session, &probe);
    if (status != 0)
        return status;
    if ((probe.features & VR_FEATURE_TELEMETRY) == 0)
        return vr_fail_(session, -EOPNOTSUPP, "this engine has no telemetry page");
    memset(&request, 0, sizeof request);
    status = vr_call_(session, VR_KIND_TELEMETRY, &request, sizeof request, -1, &reply,
                      sizeof reply, &fd, 1);
    if (status != 0)
        return status;
    status = reply.bytes < VR_TELEMETRY_HEADER_BYTES
                 ? vr_fail_(session, -EPROTO, "a telemetry page without a header")
                 : vr_map_as_(session, fd, reply.bytes, PROT_READ, &data);
    vr_close_fd_(&fd);
    if (status == 0) {
        telemetry->data = (const unsigned char *)data;
        telemetry->bytes = reply.bytes;
        memcpy(&telemetry->header, data, sizeof telemetry->header);
        if (!vr_telemetry_good_(telemetry) ||
            memcmp(telemetry->header.boot_id, session->boot_id, sizeof session->boot_id) != 0)
            status = vr_fail_(session, -EPROTO, "a telemetry page that cannot be");
    }
    if (status != 0)
        vr_telemetry_free(telemetry);
    return status;
}

/* Numbers of blocks, for vr_telemetry_read. */
static inline uint32_t vr_lane_block(uint32_t class_, uint32_t origin)
{
    return (class_ - 1) * 2 + (origin & 1);
}

static inline uint32_t vr_rail_block(const struct vr_telemetry *telemetry, uint32_t rail)
{
    return telemetry->header.lanes + rail;
}

/* Of all sessions that are gone. */
static inline uint32_t vr_gone_block(const struct vr_telemetry *telemetry)
{
    return telemetry->header.lanes + telemetry->header.rails;
}

static inline uint32_t vr_session_block(const struct vr_telemetry *telemetry, uint32_t session)
{
    return vr_gone_block(telemetry) + 1 + session;
}

/* Copies a block: 1 if the copy is whole; 0 if there is no such block, or it was being written each
 * time (its engine was killed meanwhile). */
static inline int vr_telemetry_read(const struct vr_telemetry *telemetry, uint32_t block,
                                    struct vr_tallies *tallies)
{
    const struct vr_telemetry_header *header = &telemetry->header;
    const unsigned char *data = telemetry->data + header->header_bytes;
    const uint64_t *shared, *histograms;
    uint64_t *out = tallies->counts;
    int tries;
    memset(tallies, 0, sizeof *tallies);
    if (block >= (uint64_t)header->lanes + header->rails + header->sessions + 1)
        return 0;
    shared = (const uint64_t *)(const void *)(data + (uint64_t)block * header->block_stride);
    histograms = shared + header->counters;
    for (tries = 0; tries < 10000; tries++) {
        uint64_t sequence = __atomic_load_n(&shared[VR_TALLY_SEQUENCE], __ATOMIC_ACQUIRE);
        uint32_t at;
        if (sequence % 2 == 1)
            continue;
        for (at = 0; at < VR_BLOCK_COUNTERS; at++)
            out[at] = __atomic_load_n(&shared[at], __ATOMIC_RELAXED);
        for (at = 0; at < VR_HISTOGRAM_BUCKETS; at++) {
            tallies->wait[at] = __atomic_load_n(&histograms[at], __ATOMIC_RELAXED);
            tallies->service[at] =
                __atomic_load_n(&histograms[VR_HISTOGRAM_BUCKETS + at], __ATOMIC_RELAXED);
        }
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&shared[VR_TALLY_SEQUENCE], __ATOMIC_RELAXED) == sequence)
            return 1;
    }
    return 0;
}

/* The longest time, in ns, of the bucket of `histogram` that so many thousandths of all times do not
 * exceed: 500 for p50, 999 for p99.9. 0 if it is empty. */
static inline uint64_t vr_percentile_ns(const uint64_t *histogram, uint32_t thousandths)
{
    uint64_t count = 0, below = 0, rank;
    uint32_t at;
    for (at = 0; at < VR_HISTOGRAM_BUCKETS; at++)
        count += histogram[at];
    /* Without the product of both, which may not fit. */
    rank = count / 1000 * thousandths + (count % 1000 * thousandths + 999) / 1000;
    rank = rank == 0 ? 1 : rank;
    for (at = 0; at < VR_HISTOGRAM_BUCKETS; at++) {
        uint32_t next = at + 1, octave = next / VR_HISTOGRAM_STEPS;
        below += histogram[at];
        if (below < rank)
            continue;
        octave = octave == 0 ? 0 : octave - 1;
        return ((uint64_t)(next - octave * VR_HISTOGRAM_STEPS) * VR_HISTOGRAM_UNIT_NS << octave) -
               1;
    }
    return 0;
}

/* ===== Filling SQEs =====
 *
 * Each vr_prep_* overwrites the whole SQE; user_data, class_ and flags are set afterwards. Offsets
 * and sizes are in bytes. */

/* Does nothing, and completes with 0. */
static inline void vr_prep_nop(struct vr_sqe *sqe)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = VR_OP_NOP;
}

static inline void vr_prep_data_(struct vr_sqe *sqe, enum vr_op op, const struct vr_region *local,
                                 uint64_t local_offset, const struct vr_remote *remote,
                                 uint64_t remote_offset, uint32_t bytes)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)op;
    sqe->local_region = local->id;
    sqe->local_offset = local_offset;
    sqe->remote_region = remote->id;
    sqe->remote_offset = remote_offset;
    sqe->bytes = bytes;
}

/* Copies a local range to a remote range; res is `bytes` (0 to VR_OP_BYTES_MAX). */
static inline void vr_prep_write(struct vr_sqe *sqe, const struct vr_region *local,
                                 uint64_t local_offset, const struct vr_remote *remote,
                                 uint64_t remote_offset, uint32_t bytes)
{
    vr_prep_data_(sqe, VR_OP_WRITE, local, local_offset, remote, remote_offset, bytes);
}

/* Copies a remote range to a local range; res is `bytes` (0 to VR_OP_BYTES_MAX). */
static inline void vr_prep_read(struct vr_sqe *sqe, const struct vr_region *local,
                                uint64_t local_offset, const struct vr_remote *remote,
                                uint64_t remote_offset, uint32_t bytes)
{
    vr_prep_data_(sqe, VR_OP_READ, local, local_offset, remote, remote_offset, bytes);
}

/* Copies pages from local to remote. `pages` entries of struct vr_page lie at list_offset of the
 * local region; each page is page_bytes long and its remote_offset counts from this
 * remote_offset. res is the sum. */
static inline void vr_prep_writev(struct vr_sqe *sqe, const struct vr_region *local,
                                  uint64_t list_offset, uint32_t pages,
                                  const struct vr_remote *remote, uint64_t remote_offset,
                                  uint32_t page_bytes)
{
    vr_prep_data_(sqe, VR_OP_WRITEV, local, list_offset, remote, remote_offset, page_bytes);
    sqe->arg[0] = (uint64_t)pages << 32;
}

/* Copies pages from remote to local; see vr_prep_writev. */
static inline void vr_prep_readv(struct vr_sqe *sqe, const struct vr_region *local,
                                 uint64_t list_offset, uint32_t pages,
                                 const struct vr_remote *remote, uint64_t remote_offset,
                                 uint32_t page_bytes)
{
    vr_prep_data_(sqe, VR_OP_READV, local, list_offset, remote, remote_offset, page_bytes);
    sqe->arg[0] = (uint64_t)pages << 32;
}

/* Adds to the remote u64; its old value lands at local_offset. Both offsets are multiples of 8;
 * res is 8. */
static inline void vr_prep_fetch_add(struct vr_sqe *sqe, const struct vr_region *local,
                                     uint64_t local_offset, const struct vr_remote *remote,
                                     uint64_t remote_offset, uint64_t addend)
{
    vr_prep_data_(sqe, VR_OP_FETCH_ADD, local, local_offset, remote, remote_offset, 0);
    sqe->arg[0] = addend;
}

/* Sets the remote u64 to `desired` if it is `expected`; its old value lands at local_offset,
 * which tells. Both offsets are multiples of 8; res is 8. */
static inline void vr_prep_cmp_swap(struct vr_sqe *sqe, const struct vr_region *local,
                                    uint64_t local_offset, const struct vr_remote *remote,
                                    uint64_t remote_offset, uint64_t expected, uint64_t desired)
{
    vr_prep_data_(sqe, VR_OP_CMP_SWAP, local, local_offset, remote, remote_offset, 0);
    sqe->arg[0] = expected;
    sqe->arg[1] = desired;
}

/* Takes back an op of the same ring; `by` is VR_CANCEL_BY_*. res is 0 (its own CQE says
 * -VR_ECANCELED), -VR_ENOENT, or -VR_EALREADY if it is posted. */
static inline void vr_prep_cancel(struct vr_sqe *sqe, uint32_t by, uint64_t target)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = VR_OP_CANCEL;
    sqe->arg[0] = target;
    sqe->arg[1] = by;
}

/* Completes when this session's earlier ops on a region or import, by id, have ended. */
static inline void vr_prep_flush(struct vr_sqe *sqe, uint32_t region_id)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = VR_OP_FLUSH;
    sqe->local_region = region_id;
}

/* FLUSH that first ends the region's exports: after its CQE no peer reaches the memory. */
static inline void vr_prep_revoke(struct vr_sqe *sqe, const struct vr_region *region)
{
    vr_prep_flush(sqe, region->id);
    sqe->flags = VR_SQE_REVOKE;
}

/* Asks for `count` (1 to cq_entries) CQEs about notifications of an own region, each with
 * VR_CQE_NOTIFY, all but the last also with VR_CQE_MORE. */
static inline void vr_prep_arm(struct vr_sqe *sqe, const struct vr_region *region, uint32_t count)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = VR_OP_ARM;
    sqe->local_region = region->id;
    sqe->bytes = count;
}

/* Completes once all that it waits for is over: with 0, or failing as the first that failed. Up to
 * ten edges, by vr_after and vr_after_end; vr_join is for any number. */
static inline void vr_prep_join(struct vr_sqe *sqe)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = VR_OP_JOIN;
}

/* Adds an edge: how many SQEs back in its ring (1 to 32767), with VR_EDGE_ORDER_ONLY if it is to
 * carry no failure. -EINVAL if it names no SQE; -E2BIG if all places are taken: two, of a JOIN
 * ten. */
static inline int vr_add_edge(struct vr_sqe *sqe, uint32_t edge)
{
    uint32_t place;
    if (edge > 0xffffu || (edge & 0x7fffu) == 0)
        return -EINVAL;
    for (place = 0; place < 2; place++) {
        if (sqe->edges[place] == 0) {
            sqe->edges[place] = (uint16_t)edge;
            return 0;
        }
    }
    for (place = 0; sqe->opcode == VR_OP_JOIN && place < 8; place++) {
        uint32_t shift = place % 4 * 16;
        if ((sqe->arg[place / 4] >> shift & 0xffffu) == 0) {
            sqe->arg[place / 4] |= (uint64_t)edge << shift;
            return 0;
        }
    }
    return -E2BIG;
}

static inline int vr_wait_for_(const struct vr_ring *ring, struct vr_sqe *sqe, int64_t number,
                               uint32_t order_only)
{
    if (number < 0 || (uint64_t)number >= ring->pushed)
        return -EINVAL;
    if (ring->pushed - (uint64_t)number > 0x7fffu)
        return -ERANGE;
    return vr_add_edge(sqe, (uint32_t)(ring->pushed - (uint64_t)number) | order_only);
}

/* Has an SQE, which must be the next one that is pushed into this ring, wait until the op of this
 * number (as vr_push returned it) is over. Should that fail, this one does not run: its CQE says
 * -VR_ECANCELED with VR_CQE_DEP_FAILED and the detail of what failed first. -EINVAL if that number
 * was not pushed; -ERANGE if it is more than 32767 back; -E2BIG if the SQE has all its edges. */
static inline int vr_after(const struct vr_ring *ring, struct vr_sqe *sqe, int64_t number)
{
    return vr_wait_for_(ring, sqe, number, 0);
}

/* As vr_after, but however that op ends. */
static inline int vr_after_end(const struct vr_ring *ring, struct vr_sqe *sqe, int64_t number)
{
    return vr_wait_for_(ring, sqe, number, VR_EDGE_ORDER_ONLY);
}

static inline int64_t vr_push_join_(struct vr_ring *ring, const int64_t *numbers, uint32_t count,
                                    uint32_t flags, uint64_t user_data)
{
    struct vr_sqe sqe;
    uint32_t place;
    vr_prep_join(&sqe);
    sqe.flags = (uint16_t)flags;
    sqe.user_data = user_data;
    for (place = 0; place < count; place++) {
        int status = vr_after(ring, &sqe, numbers[place]);
        if (status < 0)
            return status;
    }
    return vr_push(ring, &sqe);
}

/* Pushes a JOIN of any number of ops, and returns its number. Of more than ten, JOINs of JOINs make
 * it; those complete only if they fail, with `inner_data` for user_data. `numbers` is scratch
 * space afterwards. All are pushed, or none: -EINVAL if a number was not pushed, -ERANGE if one
 * is too far back, -E2BIG if the SQ is too small for all the JOINs, -EAGAIN if it has no room for
 * them now. */
static inline int64_t vr_join(struct vr_ring *ring, int64_t *numbers, uint32_t count,
                              uint64_t user_data, uint64_t inner_data)
{
    uint32_t from, to, left, joins = 1;
    for (left = count; left > 10; left = (left + 9) / 10)
        joins += left / 10 + (left % 10 > 1); /* one that is left over needs no JOIN */
    for (from = 0; from < count; from++) {
        if (numbers[from] < 0 || (uint64_t)numbers[from] >= ring->pushed)
            return -EINVAL;
        if (ring->pushed + joins - 1 - (uint64_t)numbers[from] > 0x7fffu)
            return -ERANGE;
    }
    if (joins > ring->header.sq_entries)
        return -E2BIG;
    if (joins > vr_room(ring))
        vr_observe_taken_(ring);
    if (joins > vr_room(ring))
        return -EAGAIN;
    for (left = count; left > 10; left = to) {
        for (from = to = 0; from < left; from += 10, to++) {
            uint32_t some = left - from < 10 ? left - from : 10;
            numbers[to] = some == 1 ? numbers[from]
                                    : vr_push_join_(ring, &numbers[from], some,
                                                    VR_SQE_SKIP_SUCCESS, inner_data);
        }
    }
    return vr_push_join_(ring, numbers, left, 0, user_data);
}

/* The next SQE that is pushed into the ring, whenever that is, waits for this one as by vr_after:
 * a chain needs no numbers. */
static inline void vr_set_link(struct vr_sqe *sqe)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_LINK);
}

/* As vr_set_link, but however this one ends. */
static inline void vr_set_hard_link(struct vr_sqe *sqe)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_HARDLINK);
}

/* Waits until all earlier SQEs of its ring are over (but for ARM), however they end, and has all
 * later ones wait for it, however it ends. */
static inline void vr_set_drain(struct vr_sqe *sqe)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_DRAIN);
}

/* Lets a WRITE or READ share the work of one of this ring that is queued, does just the same
 * and says so too; what lies between them does not matter. Its CQE then has VR_CQE_COALESCED and
 * the other one's record. Not with edges, links or DRAIN. */
static inline void vr_set_coalesce(struct vr_sqe *sqe)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_COALESCE);
}

/* Lets a WRITE replace a queued one of this ring for the same place, with the same length and tag:
 * the last value wins. The one that was replaced ends with it, VR_CQE_COALESCED. Not along with
 * vr_set_coalesce. */
static inline void vr_set_supersede(struct vr_sqe *sqe, uint64_t tag)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_SUPERSEDE);
    sqe->arg[1] = tag;
}

/* Has the remote region's owner notified once all bytes of this data op are placed. */
static inline void vr_set_notify(struct vr_sqe *sqe, uint32_t immediate)
{
    sqe->flags = (uint16_t)(sqe->flags | VR_SQE_NOTIFY);
    sqe->immediate = immediate;
}

/* Gives a data op up with -VR_ETIME if it is still queued this long after intake; 0 is never. */
static inline void vr_set_deadline(struct vr_sqe *sqe, uint32_t deadline_us)
{
    if (sqe->opcode == VR_OP_FETCH_ADD || sqe->opcode == VR_OP_CMP_SWAP)
        sqe->bytes = deadline_us;
    else
        sqe->arg[0] = (sqe->arg[0] & ~UINT64_C(0xffffffff)) | deadline_us;
}

/* Marks an op for logs and traces. Not for atomics, CANCEL and JOIN, which use the field. */
static inline void vr_set_tag(struct vr_sqe *sqe, uint64_t tag)
{
    sqe->arg[1] = tag;
}

/* ===== Reading CQEs ===== */

/* Which fabric (VR_FABRIC_*) carried a success. */
static inline uint32_t vr_cqe_fabric(const struct vr_cqe *cqe)
{
    return (uint32_t)cqe->detail >> 8;
}

/* Which rail did: 0 within the engine, others to its peers. */
static inline uint32_t vr_cqe_rail(const struct vr_cqe *cqe)
{
    return cqe->detail & 0xffu;
}

/* Nanoseconds from intake to first post, saturating at about 68 s. */
static inline uint64_t vr_cqe_queued_ns(const struct vr_cqe *cqe)
{
    return (uint64_t)cqe->queued * VR_CQE_TIME_UNIT_NS;
}

/* Nanoseconds from first post to completion, saturating at about 68 s. */
static inline uint64_t vr_cqe_service_ns(const struct vr_cqe *cqe)
{
    return (uint64_t)cqe->service * VR_CQE_TIME_UNIT_NS;
}

/* A word for a failure's detail. */
static inline const char *vr_detail_name(uint32_t detail)
{
    static const char *const names[] = {
        "no detail", "opcode", "class", "flags", "edges", "local_region", "remote_region",
        "local_offset", "remote_offset", "bytes", "immediate", "arg", "rights", "page list",
        "overlap", "deadline", "cancelled", "closing", "revoked", "message", "version",
        "entries", "descriptors", "seals", "name", "secret", "quota", "ring", "released",
        "faulted", "peer", "url", "require", "wire",
    };
    return detail < sizeof names / sizeof names[0] ? names[detail] : "unknown detail";
}

#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif /* VERBRING_H */
