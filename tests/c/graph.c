/* Graphs of the C client through a real engine, whose socket is the argument: a chain by numbers and
 * one by links, a diamond, failures that travel and those that do not, DRAIN, a join of many, ops
 * that are folded and one that is replaced. What comes first is of the lowest class and what comes
 * after it of the highest, so that an edge that is not heeded shows in the bytes. Compiled as C11
 * and as C++17. */
#include "verbring.h"

#include <stdlib.h>

#define PLACE 32768u
#define MOST 512u

static unsigned checks;

static void check(int holds, const char *what, int line)
{
    checks++;
    if (holds)
        return;
    fprintf(stderr, "tests/c/graph.c:%d: does not hold: %s\n", line, what);
    exit(1);
}

#define CHECK(condition) check(condition, #condition, __LINE__)

static struct vr_session session;
static struct vr_region region;
static struct vr_remote remote;
static struct vr_ring ring;
static struct vr_cqe ends[MOST]; /* by SQE number, from the first of this part */
static int64_t first;

static uint64_t *word(uint32_t at)
{
    return (uint64_t *)region.data + at;
}

/* Pushes an SQE under its number. */
static int64_t push(struct vr_sqe *sqe)
{
    sqe->user_data = ring.pushed;
    return vr_push(&ring, sqe);
}

static struct vr_sqe write_of(uint32_t at, uint32_t place, uint64_t value)
{
    struct vr_sqe sqe;
    *word(at) = value;
    vr_prep_write(&sqe, &region, at * 8, &remote, PLACE + place * 8, 8);
    sqe.class_ = VR_CLASS_LOW;
    return sqe;
}

static struct vr_sqe read_of(uint32_t at, uint32_t place)
{
    struct vr_sqe sqe;
    vr_prep_read(&sqe, &region, at * 8, &remote, PLACE + place * 8, 8);
    sqe.class_ = VR_CLASS_HIGH;
    return sqe;
}

static struct vr_sqe add_to(uint32_t at, uint32_t place, uint64_t addend)
{
    struct vr_sqe sqe;
    vr_prep_fetch_add(&sqe, &region, at * 8, &remote, PLACE + place * 8, addend);
    return sqe;
}

/* Refused: its remote offset is no multiple of 8. */
static struct vr_sqe bad(uint32_t at)
{
    struct vr_sqe sqe = add_to(at, 0, 1);
    sqe.remote_offset += 3;
    return sqe;
}

static void begin(void)
{
    first = (int64_t)ring.pushed;
    memset(ends, 0, sizeof ends);
}

/* Submits, and takes so many completions. */
static void finish(uint32_t count)
{
    uint32_t place;
    for (place = 0; place < count; place++) {
        struct vr_cqe cqe;
        CHECK(vr_submit_and_wait(&ring, 1, INT64_C(60) * 1000000000) >= 1);
        CHECK(vr_reap(&ring, &cqe, 1) == 1);
        CHECK(cqe.user_data >= (uint64_t)first && cqe.user_data < ring.pushed);
        ends[cqe.user_data - (uint64_t)first] = cqe;
    }
    CHECK(vr_ready(&ring) == 0);
}

static const struct vr_cqe *end_of(int64_t number)
{
    return &ends[number - first];
}

static int failed_behind(int64_t number)
{
    const struct vr_cqe *cqe = end_of(number);
    return cqe->res == -VR_ECANCELED && cqe->detail == VR_DETAIL_REMOTE_OFFSET &&
           cqe->flags == (VR_CQE_DEP_FAILED | VR_CQE_RETRYABLE) && cqe->record != 0;
}

static void chains(void)
{
    uint64_t round;
    for (round = 0; round < 50; round++) {
        struct vr_sqe sqe;
        int64_t number;
        begin();
        sqe = write_of(0, 0, round);
        number = push(&sqe);
        sqe = read_of(1, 0);
        CHECK(vr_after(&ring, &sqe, number) == 0);
        number = push(&sqe);
        sqe = write_of(2, 0, 1000 + round);
        CHECK(vr_after(&ring, &sqe, number) == 0);
        vr_set_link(&sqe);
        push(&sqe);
        sqe = read_of(3, 0);
        push(&sqe);
        finish(4);
        CHECK(*word(1) == round && *word(3) == 1000 + round);
    }
}

static void diamonds(void)
{
    uint64_t round;
    for (round = 0; round < 50; round++) {
        struct vr_sqe sqe;
        int64_t top, left, right;
        begin();
        sqe = write_of(0, 0, round);
        top = push(&sqe);
        sqe = add_to(1, 0, 1 << 20);
        CHECK(vr_after(&ring, &sqe, top) == 0);
        left = push(&sqe);
        sqe = add_to(2, 0, UINT64_C(1) << 40);
        sqe.class_ = VR_CLASS_LOW;
        CHECK(vr_after(&ring, &sqe, top) == 0);
        right = push(&sqe);
        sqe = read_of(3, 0);
        CHECK(vr_after(&ring, &sqe, left) == 0 && vr_after(&ring, &sqe, right) == 0);
        push(&sqe);
        finish(4);
        CHECK(*word(3) == round + (1 << 20) + (UINT64_C(1) << 40));
    }
}

static void failures(void)
{
    struct vr_sqe sqe;
    int64_t failed, child, grandchild, ordered;
    begin();
    sqe = bad(0);
    failed = push(&sqe);
    sqe = write_of(1, 0, 1);
    CHECK(vr_after(&ring, &sqe, failed) == 0);
    child = push(&sqe);
    sqe = write_of(2, 0, 2);
    CHECK(vr_after(&ring, &sqe, child) == 0);
    grandchild = push(&sqe);
    sqe = write_of(3, 0, 3);
    CHECK(vr_after_end(&ring, &sqe, failed) == 0);
    ordered = push(&sqe);
    sqe = read_of(4, 0);
    CHECK(vr_after(&ring, &sqe, ordered) == 0 && vr_after_end(&ring, &sqe, child) == 0);
    push(&sqe);
    finish(5);
    CHECK(end_of(failed)->res == -VR_EINVAL && end_of(failed)->flags == 0);
    CHECK(failed_behind(child) && failed_behind(grandchild));
    CHECK(end_of(ordered)->res == 8 && *word(4) == 3);
    /* By links. */
    begin();
    sqe = bad(0);
    vr_set_link(&sqe);
    push(&sqe);
    sqe = write_of(1, 0, 1);
    vr_set_hard_link(&sqe);
    child = push(&sqe);
    sqe = read_of(4, 0);
    push(&sqe);
    finish(3);
    CHECK(failed_behind(child) && *word(4) == 3);
}

static void drains(void)
{
    struct vr_sqe sqe;
    uint32_t place;
    begin();
    for (place = 0; place < 50; place++) {
        sqe = write_of(place, place, 7000 + place);
        push(&sqe);
    }
    vr_prep_nop(&sqe);
    vr_set_drain(&sqe);
    push(&sqe);
    for (place = 0; place < 50; place++) {
        sqe = read_of(100 + place, place);
        push(&sqe);
    }
    finish(101);
    for (place = 0; place < 50; place++)
        CHECK(*word(100 + place) == 7000 + place);
}

static void joins(void)
{
    int64_t numbers[150], last;
    struct vr_sqe sqe;
    uint32_t place;
    begin();
    for (place = 0; place < 150; place++) {
        sqe = write_of(place, place, 9000 + place);
        numbers[place] = push(&sqe);
    }
    /* The last of the joins is called 150, and the 17 before it 151. */
    last = vr_join(&ring, numbers, 150, (uint64_t)first + 150, (uint64_t)first + 151);
    CHECK(last == first + 150 + 17);
    sqe = read_of(200, 149);
    CHECK(vr_after(&ring, &sqe, last) == 0);
    push(&sqe);
    finish(152);
    CHECK(end_of(first + 150)->res == 0 && *word(200) == 9149);
    /* Should one fail, each join on the way to the last fails as well, and says so. */
    begin();
    for (place = 0; place < 20; place++) {
        sqe = place == 15 ? bad(0) : write_of(place, place, 0);
        numbers[place] = push(&sqe);
    }
    last = vr_join(&ring, numbers, 20, (uint64_t)first + 20, (uint64_t)first + 21);
    finish(22);
    CHECK(failed_behind(first + 20) && failed_behind(first + 21));
}

static void folds(void)
{
    uint64_t counters[VR_COUNTERS], hits;
    struct vr_sqe sqe;
    int64_t numbers[6];
    uint32_t place;
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) == 0);
    hits = counters[VR_COUNTER_FOLD_HIT];
    begin();
    for (place = 0; place < 6; place++) {
        sqe = read_of(0, 0);
        sqe.class_ = 0;
        vr_set_coalesce(&sqe);
        numbers[place] = push(&sqe);
    }
    finish(6);
    for (place = 0; place < 6; place++) {
        CHECK(end_of(numbers[place])->res == 8);
        CHECK(end_of(numbers[place])->flags == (place == 0 ? 0 : VR_CQE_COALESCED));
        CHECK(end_of(numbers[place])->record == end_of(numbers[0])->record);
    }
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) == 0);
    CHECK(counters[VR_COUNTER_FOLD_HIT] - hits == 5);
    /* Of values for one place the last one is carried. */
    begin();
    for (place = 0; place < 3; place++) {
        sqe = write_of(place, 0, 40 + place);
        vr_set_supersede(&sqe, 5);
        numbers[place] = push(&sqe);
    }
    finish(3);
    CHECK(end_of(numbers[0])->flags == VR_CQE_COALESCED && end_of(numbers[2])->flags == 0);
    CHECK(end_of(numbers[0])->record == end_of(numbers[2])->record);
    begin();
    sqe = read_of(9, 0);
    push(&sqe);
    finish(1);
    CHECK(*word(9) == 42);
}

int main(int count, char **words)
{
    uint8_t secret[VR_SECRET_BYTES];
    char name[VR_NAME_BYTES];
    CHECK(count == 2);
    CHECK(vr_connect(words[1], &session) == 0);
    CHECK(vr_region_alloc(&session, 65536, 0, &region) == 0);
    snprintf(name, sizeof name, "graph-%ld", (long)getpid());
    CHECK(vr_export(&region, name, VR_RIGHTS_ALL, secret) == 0);
    CHECK(vr_import(&session, VR_UID_OWN, name, secret, 0, &remote) == 0);
    CHECK(vr_ring_create(&session, MOST, MOST, &ring) == 0);
    chains();
    diamonds();
    failures();
    drains();
    joins();
    folds();
    vr_close(&session);
    printf("%u checks of graphs held\n", checks);
    return 0;
}
