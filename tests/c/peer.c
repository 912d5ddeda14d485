/* One side of the cross-language test: an exporter and a user, each in any language, in two
 * processes on one engine.
 *
 *     peer SOCKET export NAME                      prints `ready SECRETHEX`, later `ok`
 *     peer SOCKET use NAME SECRETHEX [OPTIONS]     prints `ok`
 *         --peer URL              imports from the engine there, not from its own
 *         --require local|verbs   what must have carried every success; else what the engine
 *                                 names as the way to the peer
 *
 * Beside the steps that all languages share, this one tries the control calls (PROBE, STATS,
 * CANCEL, WHY) and a region of a memfd. Every completion is held to its res, detail and flags; the
 * first mismatch ends the process with status 1 and says what was expected. Compiled as C11 and as
 * C++17. */
#include "verbring.h"

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>

#define REGION_BYTES (UINT64_C(1) << 20)
#define PATTERN_BYTES 65536u /* the exporter's, at offset 0 */
#define WRITTEN_AT 65536u    /* where the user writes its own pattern, as long */
#define ADDED_AT 524288u     /* a u64, 1000 at first */
#define SWAPPED_AT 524296u   /* a u64, 0 at first */
#define PAGES_AT 602112u     /* where the user's pages go */
#define PAGE_BYTES 4096u
#define LOW_AT 589824u /* where the low-class writes go */
#define LOW_BYTES 262144u
#define LOW_OPS 8u
#define FIRST_IMMEDIATE 0xC0FFEEu
#define LAST_IMMEDIATE 0xBEEFu
#define PATIENCE_NS (INT64_C(60) * 1000000000)
#define USAGE                                                                       \
    "usage: peer SOCKET export NAME |\n"                                           \
    "       peer SOCKET use NAME SECRETHEX [--peer URL] [--require local|verbs]\n"

static void die(const char *form, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2), noreturn))
#endif
    ;

static void die(const char *form, ...)
{
    va_list values;
    va_start(values, form);
    fputs("peer: ", stderr);
    vfprintf(stderr, form, values);
    fputc('\n', stderr);
    va_end(values);
    exit(1);
}

static void must(const struct vr_session *session, const char *step, int status)
{
    if (status < 0)
        die("%s: %s (%s; %s)", step, strerror(-status), session->error_text,
            vr_detail_name(session->error_detail));
}

static uint8_t exporter_byte(uint32_t at)
{
    return (uint8_t)(at * 7 + 3);
}

static uint8_t user_byte(uint32_t at)
{
    return (uint8_t)(at * 13 + 5);
}

static uint8_t *byte_at(const struct vr_region *region, uint32_t at)
{
    return (uint8_t *)region->data + at;
}

static uint64_t u64_at(const struct vr_region *region, uint32_t at)
{
    uint64_t value;
    memcpy(&value, byte_at(region, at), sizeof value);
    return value;
}

static void expect_u64(const char *step, const struct vr_region *region, uint32_t at,
                       uint64_t value)
{
    if (u64_at(region, at) != value)
        die("%s: the u64 at %u is %" PRIu64 ", not %" PRIu64, step, at, u64_at(region, at), value);
}

static void expect_bytes(const char *step, const struct vr_region *region, uint32_t at,
                         uint32_t count, uint8_t (*byte)(uint32_t), uint32_t from)
{
    uint32_t place;
    for (place = 0; place < count; place++)
        if (*byte_at(region, at + place) != byte(from + place))
            die("%s: the byte at %u is %u, not %u", step, at + place,
                *byte_at(region, at + place), byte(from + place));
}

static void expect_cqe(const char *step, const struct vr_cqe *cqe, int32_t res, uint32_t detail,
                       uint32_t flags)
{
    if (cqe->res != res || cqe->detail != detail || cqe->flags != flags)
        die("%s: res %d, detail %u, flags %#x; expected res %d, detail %u, flags %#x", step,
            cqe->res, cqe->detail, (unsigned)cqe->flags, res, detail, flags);
}

static void expect_record(const char *step, const struct vr_cqe *cqe, int there)
{
    if ((cqe->record != 0) != there)
        die("%s: record %#" PRIx64, step, cqe->record);
}

static uint64_t push(struct vr_ring *ring, const struct vr_sqe *sqe)
{
    int64_t number = vr_push(ring, sqe);
    if (number < 0)
        die("the SQ is full");
    return (uint64_t)number;
}

static struct vr_cqe reap(struct vr_ring *ring, const char *step)
{
    struct vr_cqe cqe;
    int status = vr_wait(ring, 1, PATIENCE_NS);
    if (status < 0)
        die("%s: waiting for its CQE: %s", step, strerror(-status));
    if (vr_reap(ring, &cqe, 1) != 1)
        die("%s: a CQE was announced and is not there", step);
    return cqe;
}

/* Runs one op on its own; its CQE carries the SQE's user_data, made from its number. */
static struct vr_cqe run(struct vr_ring *ring, struct vr_sqe *sqe, const char *step)
{
    struct vr_cqe cqe;
    int status;
    sqe->user_data = 1000 + ring->pushed;
    push(ring, sqe);
    status = vr_submit(ring);
    if (status != 1)
        die("%s: submit returned %d", step, status);
    cqe = reap(ring, step);
    if (cqe.user_data != sqe->user_data)
        die("%s: user_data %" PRIu64 ", not %" PRIu64, step, cqe.user_data, sqe->user_data);
    return cqe;
}

/* A success by this fabric. Rail 0 is within the engine; the others are queue pairs. */
static void expect_success(const char *step, const struct vr_cqe *cqe, int32_t res,
                           uint32_t fabric)
{
    expect_cqe(step, cqe, res, cqe->detail, 0);
    if (vr_cqe_fabric(cqe) != fabric || (vr_cqe_rail(cqe) == 0) != (fabric == VR_FABRIC_LOCAL))
        die("%s: carried by fabric %u, rail %u, not by fabric %u", step, vr_cqe_fabric(cqe),
            vr_cqe_rail(cqe), fabric);
}

/* ----- The exporter: memory, rights, and two notifications. ----- */

static void expect_notification(struct vr_ring *ring, const char *step, uint64_t user_data,
                                uint32_t immediate, uint32_t flags)
{
    struct vr_cqe cqe = reap(ring, step);
    expect_cqe(step, &cqe, 1, 0, flags);
    if (cqe.queued != immediate)
        die("%s: immediate %#x, not %#x", step, cqe.queued, immediate);
    if (cqe.user_data != user_data)
        die("%s: user_data %" PRIu64 " is not the ARM's", step, cqe.user_data);
}

/* WHY finds the ARM, once it is taken. */
static void expect_armed(struct vr_session *session, struct vr_ring *ring, uint64_t user_data)
{
    struct vr_why_reply why;
    while (vr_ring_counter(ring, VR_RING_COUNTER_TAKEN) == 0)
        sched_yield();
    must(session, "why", vr_why(ring, VR_CANCEL_BY_USER_DATA, user_data, &why));
    if (why.opcode != VR_OP_ARM || why.number != 0 || why.user_data != user_data ||
        why.state != VR_STATE_ARMED || why.wait != VR_WAIT_NOTIFY || why.record == 0)
        die("why: opcode %u, number %" PRIu64 ", state %u, wait %u", why.opcode, why.number,
            why.state, why.wait);
}

static void export_region(struct vr_session *session, const char *name)
{
    const uint64_t arm_data = 0x41524d;
    const uint64_t start = 1000;
    uint8_t secret[VR_SECRET_BYTES];
    struct vr_region region;
    struct vr_ring ring;
    struct vr_sqe sqe;
    uint32_t at;

    must(session, "region", vr_region_alloc(session, REGION_BYTES, 0, &region));
    for (at = 0; at < PATTERN_BYTES; at++)
        *byte_at(&region, at) = exporter_byte(at);
    memcpy(byte_at(&region, ADDED_AT), &start, sizeof start);
    must(session, "export", vr_export(&region, name, VR_RIGHTS_ALL, secret));
    must(session, "ring", vr_ring_create(session, 64, 128, &ring));
    vr_prep_arm(&sqe, &region, 2);
    sqe.user_data = arm_data;
    push(&ring, &sqe);
    if (vr_submit(&ring) != 1)
        die("arm: not submitted");
    expect_armed(session, &ring, arm_data);

    fputs("ready ", stdout);
    for (at = 0; at < sizeof secret; at++)
        printf("%02x", secret[at]);
    fputs("\n", stdout);
    fflush(stdout);

    expect_notification(&ring, "first notification", arm_data, FIRST_IMMEDIATE,
                        VR_CQE_NOTIFY | VR_CQE_MORE);
    expect_notification(&ring, "last notification", arm_data, LAST_IMMEDIATE, VR_CQE_NOTIFY);
    expect_bytes("after the last notification", &region, WRITTEN_AT, PATTERN_BYTES, user_byte, 0);
    expect_u64("after the last notification", &region, ADDED_AT, 1042);
    expect_u64("after the last notification", &region, SWAPPED_AT, 77);

    must(session, "free ring", vr_ring_free(&ring));
    must(session, "free region", vr_region_free(&region));
}

/* ----- The user's part, as the command line gives it. ----- */

struct part {
    const char *name;
    uint8_t secret[VR_SECRET_BYTES];
    const char *url;  /* NULL: our own engine */
    uint32_t require; /* 0: whatever the engine says */
};

/* ----- The user: one function a step. Its region, by offset: ----- */

#define MY_COPY 0u       /* what READ brings */
#define MY_OLD 65536u    /* where atomics leave old values */
#define MY_LIST 69632u   /* page lists */
#define MY_PAGES 73728u  /* what READV brings: 3 pages, not adjacent */
#define MY_BACK 98304u   /* WRITEV's pages, read back */
#define MY_DATA 131072u  /* what WRITE sends */
#define MY_LOW 262144u   /* what the low-class writes send */

struct user {
    struct vr_ring ring;
    struct vr_recorder recorder;
    struct vr_region near;
    struct vr_remote far;
    uint32_t fabric; /* what carries ops to the far side */
    uint32_t atomics; /* the same for atomics: where there is a card, it does them for all */
};

/* The flight recorder has what the CQE told. */
static void expect_kept(struct user *user, const struct vr_sqe *sqe, const struct vr_cqe *cqe,
                        const char *step)
{
    struct vr_record kept;
    if (!vr_find_record(&user->recorder, cqe->record, &kept))
        die("%s: record %#" PRIx64 " is not in the flight recorder", step, cqe->record);
    if (kept.user_data != cqe->user_data || kept.res != cqe->res || kept.flags != cqe->flags ||
        kept.detail != cqe->detail || kept.opcode != sqe->opcode || kept.ring != user->ring.ring)
        die("%s: the flight recorder tells of another op", step);
    if (vr_record_posts(&kept) == 0 || kept.cause != 0 || kept.taken_ns == 0 ||
        vr_record_queued_ns(&kept) / VR_CQE_TIME_UNIT_NS != cqe->queued ||
        vr_record_total_ns(&kept) < vr_record_queued_ns(&kept))
        die("%s: %u posts, cause %u, %" PRIu64 " ns queued, %" PRIu64 " in all", step,
            vr_record_posts(&kept), kept.cause, vr_record_queued_ns(&kept),
            vr_record_total_ns(&kept));
}

static void run_well(struct user *user, struct vr_sqe *sqe, const char *step, int32_t res)
{
    struct vr_cqe cqe = run(&user->ring, sqe, step);
    int atomic = sqe->opcode == VR_OP_FETCH_ADD || sqe->opcode == VR_OP_CMP_SWAP;
    expect_success(step, &cqe, res, atomic ? user->atomics : user->fabric);
    expect_record(step, &cqe, 1);
    expect_kept(user, sqe, &cqe, step);
}

static void read_pattern(struct user *user)
{
    struct vr_sqe sqe;
    vr_prep_read(&sqe, &user->near, MY_COPY, &user->far, 0, PATTERN_BYTES);
    run_well(user, &sqe, "read", (int32_t)PATTERN_BYTES);
    expect_bytes("read", &user->near, MY_COPY, PATTERN_BYTES, exporter_byte, 0);
}

static void write_pattern(struct user *user)
{
    struct vr_sqe sqe;
    uint32_t at;
    for (at = 0; at < PATTERN_BYTES; at++)
        *byte_at(&user->near, MY_DATA + at) = user_byte(at);
    vr_prep_write(&sqe, &user->near, MY_DATA, &user->far, WRITTEN_AT, PATTERN_BYTES);
    vr_set_notify(&sqe, FIRST_IMMEDIATE);
    run_well(user, &sqe, "write", (int32_t)PATTERN_BYTES);
}

static void add_and_swap(struct user *user)
{
    const uint64_t unset = UINT64_MAX; /* so that an old value of 0 is seen to be stored */
    struct vr_sqe sqe;
    memcpy(byte_at(&user->near, MY_OLD), &unset, sizeof unset);
    memcpy(byte_at(&user->near, MY_OLD + 8), &unset, sizeof unset);
    memcpy(byte_at(&user->near, MY_OLD + 16), &unset, sizeof unset);
    vr_prep_fetch_add(&sqe, &user->near, MY_OLD, &user->far, ADDED_AT, 42);
    run_well(user, &sqe, "fetch-add", 8);
    expect_u64("fetch-add", &user->near, MY_OLD, 1000);
    vr_prep_cmp_swap(&sqe, &user->near, MY_OLD + 8, &user->far, SWAPPED_AT, 0, 77);
    run_well(user, &sqe, "swap", 8);
    expect_u64("swap", &user->near, MY_OLD + 8, 0);
    vr_prep_cmp_swap(&sqe, &user->near, MY_OLD + 16, &user->far, SWAPPED_AT, 0, 99);
    run_well(user, &sqe, "swap of another value", 8);
    expect_u64("swap of another value", &user->near, MY_OLD + 16, 77);
}

static void move_pages(struct user *user)
{
    static const uint32_t far_page[3] = {1, 5, 9};
    struct vr_page list[3];
    struct vr_sqe sqe;
    uint32_t page, at;

    for (page = 0; page < 3; page++) {
        list[page].local_offset = MY_PAGES + page * 2 * PAGE_BYTES;
        list[page].remote_offset = far_page[page] * PAGE_BYTES;
    }
    memcpy(byte_at(&user->near, MY_LIST), list, sizeof list);
    vr_prep_readv(&sqe, &user->near, MY_LIST, 3, &user->far, 0, PAGE_BYTES);
    run_well(user, &sqe, "readv", 3 * (int32_t)PAGE_BYTES);
    for (page = 0; page < 3; page++)
        expect_bytes("readv", &user->near, MY_PAGES + page * 2 * PAGE_BYTES, PAGE_BYTES,
                     exporter_byte, far_page[page] * PAGE_BYTES);

    /* Two pages of the pattern, and a page between them that must stay zero. */
    for (page = 0; page < 2; page++) {
        list[page].local_offset = MY_DATA + (page + 3) * PAGE_BYTES;
        list[page].remote_offset = page * 2 * PAGE_BYTES;
    }
    memcpy(byte_at(&user->near, MY_LIST), list, 2 * sizeof list[0]);
    vr_prep_writev(&sqe, &user->near, MY_LIST, 2, &user->far, PAGES_AT, PAGE_BYTES);
    run_well(user, &sqe, "writev", 2 * (int32_t)PAGE_BYTES);
    memset(byte_at(&user->near, MY_BACK), 0xff, 3 * PAGE_BYTES);
    vr_prep_read(&sqe, &user->near, MY_BACK, &user->far, PAGES_AT, 3 * PAGE_BYTES);
    run_well(user, &sqe, "reading the pages back", 3 * (int32_t)PAGE_BYTES);
    expect_bytes("writev", &user->near, MY_BACK, PAGE_BYTES, user_byte, 3 * PAGE_BYTES);
    expect_bytes("writev", &user->near, MY_BACK + 2 * PAGE_BYTES, PAGE_BYTES, user_byte,
                 4 * PAGE_BYTES);
    for (at = 0; at < PAGE_BYTES; at += 8)
        expect_u64("between the pages", &user->near, MY_BACK + PAGE_BYTES + at, 0);
}

/* Eight low-class writes and, in the same submission, a CANCEL of the last, which must still be
 * queued. */
static void cancel_queued(struct user *user)
{
    struct vr_sqe sqe;
    uint64_t last = 0;
    uint32_t op, seen = 0;
    int status;
    for (op = 0; op < LOW_OPS; op++) {
        vr_prep_write(&sqe, &user->near, MY_LOW, &user->far, LOW_AT, LOW_BYTES);
        sqe.class_ = VR_CLASS_LOW;
        sqe.user_data = op;
        last = push(&user->ring, &sqe);
    }
    vr_prep_cancel(&sqe, VR_CANCEL_BY_NUMBER, last);
    sqe.user_data = LOW_OPS;
    push(&user->ring, &sqe);
    status = vr_submit_and_wait(&user->ring, LOW_OPS + 1, PATIENCE_NS);
    if (status < 0)
        die("cancel: waiting for %u CQEs: %s", LOW_OPS + 1, strerror(-status));
    for (op = 0; op <= LOW_OPS; op++) {
        struct vr_cqe cqe = reap(&user->ring, "cancel");
        if (cqe.user_data > LOW_OPS || (seen >> cqe.user_data & 1) != 0)
            die("cancel: a second CQE with user_data %" PRIu64, cqe.user_data);
        seen |= 1u << cqe.user_data;
        if (cqe.user_data == LOW_OPS)
            expect_cqe("cancel", &cqe, 0, 0, 0);
        else if (cqe.user_data == LOW_OPS - 1)
            expect_cqe("the cancelled write", &cqe, -VR_ECANCELED, VR_DETAIL_CANCELLED,
                       VR_CQE_RETRYABLE);
        else
            expect_success("a low-class write", &cqe, (int32_t)LOW_BYTES, user->fabric);
    }
}

static void be_refused(struct user *user)
{
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    vr_prep_write(&sqe, &user->near, 0, &user->far, UINT64_C(1) << 40, 64);
    cqe = run(&user->ring, &sqe, "a write beyond the region");
    expect_cqe("a write beyond the region", &cqe, -VR_EINVAL, VR_DETAIL_REMOTE_OFFSET, 0);
    expect_record("a write beyond the region", &cqe, 0);
}

static void notify_alone(struct user *user)
{
    struct vr_sqe sqe;
    vr_prep_write(&sqe, &user->near, 0, &user->far, 0, 0);
    vr_set_notify(&sqe, LAST_IMMEDIATE);
    run_well(user, &sqe, "a write of nothing", 0);
}

static void expect_none(struct vr_session *session, const char *step, int status)
{
    if (status != -VR_ENOENT)
        die("%s: %d (%s), and not ENOENT", step, status, session->error_text);
}

/* Control calls after all ops have ended, and FLUSH of a memfd's region. */
static void ask_the_engine(struct vr_session *session, struct user *user)
{
    const uint64_t served = UINT64_C(1) << VR_OP_WRITEV | UINT64_C(1) << VR_OP_ARM;
    uint64_t counters[VR_COUNTERS];
    struct vr_probe_reply probe;
    struct vr_why_reply why;
    struct vr_region own;
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    must(session, "probe", vr_probe(session, &probe));
    if ((probe.opcodes & served) != served || (probe.sqe_flags & VR_SQE_NOTIFY) == 0 ||
        (probe.fabrics >> VR_FABRIC_LOCAL & 1) == 0 || probe.op_bytes_max != VR_OP_BYTES_MAX)
        die("probe: opcodes %#" PRIx64 ", flags %#" PRIx64 ", fabrics %#" PRIx64, probe.opcodes,
            probe.sqe_flags, probe.fabrics);
    must(session, "memfd region", vr_region_memfd(session, REGION_BYTES, &own));
    vr_prep_flush(&sqe, own.id);
    cqe = run(&user->ring, &sqe, "flush");
    expect_cqe("flush", &cqe, 0, 0, 0);
    must(session, "free memfd region", vr_region_free(&own));
    must(session, "stats", vr_stats(session, VR_STATS_SESSION, counters));
    if (counters[VR_COUNTER_TAKEN] != user->ring.pushed || counters[VR_COUNTER_REFUSED] != 1 ||
        counters[VR_COUNTER_COMPLETED] != user->ring.pushed ||
        counters[VR_COUNTER_CANCELLED] != 1 || counters[VR_COUNTER_IN_FLIGHT] != 0)
        die("stats: taken %" PRIu64 ", refused %" PRIu64 ", cancelled %" PRIu64,
            counters[VR_COUNTER_TAKEN], counters[VR_COUNTER_REFUSED],
            counters[VR_COUNTER_CANCELLED]);
    expect_none(session, "why", vr_why(&user->ring, VR_CANCEL_BY_NUMBER, 0, &why));
    expect_none(session, "cancel", vr_cancel(&user->ring, VR_CANCEL_BY_NUMBER, 0, NULL));
}

/* The two ops that ended last: a write of nothing, and the FLUSH. */
static void look_back(struct user *user)
{
    struct vr_record kept[2], none;
    uint32_t count = vr_last_records(&user->recorder, kept, 2);
    if (count != 2 || kept[0].opcode != VR_OP_WRITE || kept[1].opcode != VR_OP_FLUSH ||
        kept[1].sequence != kept[0].sequence + 1 || vr_record_posts(&kept[1]) != 0)
        die("last records: %u, opcodes %u and %u", count, kept[0].opcode, kept[1].opcode);
    if (vr_find_record(&user->recorder, 1, &none))
        die("a record that never was is in the flight recorder");
}

/* The telemetry page has what STATS tells, a moment later at most. */
static void look_on(struct vr_session *session)
{
    struct vr_telemetry telemetry;
    struct vr_tallies tallies;
    uint64_t counters[VR_COUNTERS], ended = 0, times = 0;
    uint32_t block, at;
    must(session, "telemetry", vr_telemetry_open(session, &telemetry));
    must(session, "stats", vr_stats(session, VR_STATS_SESSION, counters));
    block = vr_session_block(&telemetry, session->session);
    while (ended + counters[VR_COUNTER_REFUSED] < counters[VR_COUNTER_COMPLETED]) {
        const uint64_t *counts = tallies.counts;
        if (!vr_telemetry_read(&telemetry, block, &tallies))
            die("a session's block cannot be read");
        ended = counts[VR_TALLY_COMPLETED] + counts[VR_TALLY_FAILED] +
                counts[VR_TALLY_WITHDRAWN] + counts[VR_TALLY_PASSED];
    }
    for (at = 0; at < VR_HISTOGRAM_BUCKETS; at++)
        times += tallies.service[at];
    if (ended + counters[VR_COUNTER_REFUSED] != counters[VR_COUNTER_COMPLETED] ||
        tallies.counts[VR_TALLY_BYTES] != counters[VR_COUNTER_BYTES] ||
        times != tallies.counts[VR_TALLY_COMPLETED] + tallies.counts[VR_TALLY_FAILED] ||
        vr_percentile_ns(tallies.service, 500) > vr_percentile_ns(tallies.service, 999) ||
        vr_percentile_ns(tallies.service, 999) == 0)
        die("telemetry: %" PRIu64 " ops ended and %" PRIu64 " were timed", ended, times);
    if (vr_telemetry_read(&telemetry, UINT32_MAX, &tallies))
        die("a block that cannot be is in the telemetry page");
    vr_telemetry_free(&telemetry);
    vr_telemetry_free(&telemetry);
}

/* Imports from where the options say. */
static void take_up(struct vr_session *session, const struct part *part, struct user *user)
{
    struct vr_probe_reply probe;
    user->fabric = VR_FABRIC_LOCAL;
    if (part->url == NULL) {
        must(session, "import",
             vr_import(session, VR_UID_OWN, part->name, part->secret, 0, &user->far));
    } else {
        struct vr_peer peer;
        must(session, "connect peer",
             vr_connect_peer(session, part->url, part->require, &peer));
        must(session, "import from peer",
             vr_import_from(&peer, VR_UID_OWN, part->name, part->secret, 0, &user->far));
        user->fabric = peer.fabric;
    }
    if (part->require != 0)
        user->fabric = part->require;
    must(session, "probe", vr_probe(session, &probe));
    user->atomics = (probe.fabrics >> VR_FABRIC_VERBS & 1) != 0 ? VR_FABRIC_VERBS : user->fabric;
}

static void use_region(struct vr_session *session, const struct part *part)
{
    struct user user;
    struct vr_remote *far = &user.far;
    take_up(session, part, &user);
    if (far->rights != VR_RIGHTS_ALL || far->bytes != REGION_BYTES)
        die("import: rights %#x, %" PRIu64 " bytes", far->rights, far->bytes);
    must(session, "region", vr_region_alloc(session, REGION_BYTES, 0, &user.near));
    must(session, "ring", vr_ring_create(session, 64, 128, &user.ring));
    must(session, "recorder", vr_recorder_open(session, &user.recorder));

    read_pattern(&user);
    write_pattern(&user);
    add_and_swap(&user);
    move_pages(&user);
    cancel_queued(&user);
    be_refused(&user);
    notify_alone(&user);
    ask_the_engine(session, &user);
    look_back(&user);
    look_on(session);
    vr_recorder_free(&user.recorder);
    vr_recorder_free(&user.recorder);

    must(session, "free ring", vr_ring_free(&user.ring));
    must(session, "release import", vr_release(session, VR_OBJECT_REGION, far->id));
    must(session, "free region", vr_region_free(&user.near));
}

static int parse_secret(const char *text, uint8_t secret[VR_SECRET_BYTES])
{
    uint32_t at;
    if (strlen(text) != 2 * VR_SECRET_BYTES)
        return 0;
    for (at = 0; at < VR_SECRET_BYTES; at++) {
        unsigned value;
        if (sscanf(text + 2 * at, "%2x", &value) != 1)
            return 0;
        secret[at] = (uint8_t)value;
    }
    return 1;
}

static int parse_options(int count, char **words, struct part *part)
{
    for (; count >= 2; count -= 2, words += 2) {
        if (strcmp(words[0], "--peer") == 0)
            part->url = words[1];
        else if (strcmp(words[0], "--require") == 0 && strcmp(words[1], "local") == 0)
            part->require = VR_FABRIC_LOCAL;
        else if (strcmp(words[0], "--require") == 0 && strcmp(words[1], "verbs") == 0)
            part->require = VR_FABRIC_VERBS;
        else
            return 0;
    }
    return count == 0;
}

int main(int count, char **words)
{
    struct vr_session session;
    struct part part;
    int exporter = count == 4 && strcmp(words[2], "export") == 0;
    int user = count >= 5 && strcmp(words[2], "use") == 0;
    memset(&part, 0, sizeof part);
    if (user)
        user = parse_secret(words[4], part.secret) && parse_options(count - 5, words + 5, &part);
    if (!exporter && !user) {
        fputs(USAGE, stderr);
        return 2;
    }
    part.name = words[3];
    must(&session, "connect", vr_connect_as(words[1], "peer-c", &session));
    if (exporter)
        export_region(&session, part.name);
    else
        use_region(&session, &part);
    vr_close(&session);
    puts("ok");
    return 0;
}
