/* The C client's end of a ring, against an engine that this program plays itself: cursors that wrap
 * (first_index is near 2^32), strides larger than entries, values that cannot be, both bells, every
 * way a wait can end, and verdicts. Prints how many checks held; the first that does not ends the
 * program with status 1. Compiled as C11 and as C++17. */
#include "verbring.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>

#define SQ_ENTRIES 4u
#define CQ_ENTRIES 8u
#define FIRST_INDEX 0xfffffffdu
#define SQE_STRIDE 128u
#define CQE_STRIDE 40u
#define FATE_STRIDE 24u
#define SEGMENT_BYTES 16384u
#define FOR_EVER (INT64_C(60) * 1000000000) /* a hang is a failure with a name, not a stuck run */

static unsigned checks;

static void check(int holds, const char *what, int line)
{
    checks++;
    if (holds)
        return;
    fprintf(stderr, "tests/c/ring.c:%d: does not hold: %s (errno %s)\n", line, what,
            strerror(errno));
    exit(1);
}

#define CHECK(condition) check(condition, #condition, __LINE__)

/* ----- The engine's part ----- */

struct bench {
    struct vr_session session;
    struct vr_ring ring;
    int engine_socket;
    int engine_sq_bell;
    int engine_cq_bell;
    uint32_t cq_tail;
};

static void lay_out(struct vr_segment *header)
{
    memset(header, 0, sizeof *header);
    header->magic = VR_MAGIC;
    header->abi_version = VR_ABI_VERSION;
    header->header_bytes = 4096;
    header->sq_entries = SQ_ENTRIES;
    header->cq_entries = CQ_ENTRIES;
    header->sq_offset = 4096;
    header->cq_offset = 8192;
    header->fate_offset = 12288;
    header->sqe_stride = SQE_STRIDE;
    header->cqe_stride = CQE_STRIDE;
    header->fate_stride = FATE_STRIDE;
    header->first_index = FIRST_INDEX;
    header->segment_bytes = SEGMENT_BYTES;
}

static uint32_t word(const struct bench *bench, uint32_t at)
{
    return __atomic_load_n(vr_word_(&bench->ring, at), __ATOMIC_SEQ_CST);
}

static void set_word(const struct bench *bench, uint32_t at, uint32_t value)
{
    __atomic_store_n(vr_word_(&bench->ring, at), value, __ATOMIC_SEQ_CST);
}

/* Ring memory is shared, so that a forked child can play the engine too. */
static void set_up(struct bench *bench)
{
    int ends[2];
    struct vr_segment header;
    memset(bench, 0, sizeof *bench);
    lay_out(&header);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    bench->session.fd = ends[0];
    bench->engine_socket = ends[1];
    bench->session.engine_pidfd = -1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    bench->ring.sq_bell = ends[0];
    bench->engine_sq_bell = ends[1];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    bench->ring.cq_bell = ends[0];
    bench->engine_cq_bell = ends[1];
    bench->ring.segment = (unsigned char *)mmap(NULL, SEGMENT_BYTES, PROT_READ | PROT_WRITE,
                                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(bench->ring.segment != MAP_FAILED);
    memcpy(bench->ring.segment, &header, sizeof header);
    bench->ring.header = header;
    bench->ring.session = &bench->session;
    bench->ring.popped = bench->ring.cq_tail = bench->cq_tail = FIRST_INDEX;
    set_word(bench, VR_AT_SQ_TAIL, FIRST_INDEX);
    set_word(bench, VR_AT_SQ_HEAD, FIRST_INDEX);
    set_word(bench, VR_AT_CQ_TAIL, FIRST_INDEX);
    set_word(bench, VR_AT_CQ_HEAD, FIRST_INDEX);
    set_word(bench, VR_AT_BELL_AT, FIRST_INDEX - 1);
}

static void tear_down(struct bench *bench)
{
    munmap(bench->ring.segment, SEGMENT_BYTES);
    vr_close_fd_(&bench->ring.sq_bell);
    vr_close_fd_(&bench->ring.cq_bell);
    vr_close_fd_(&bench->engine_socket);
    vr_close_fd_(&bench->engine_sq_bell);
    vr_close_fd_(&bench->engine_cq_bell);
    vr_close(&bench->session);
}

static void set_slot(const struct bench *bench, uint64_t offset, uint32_t stride, uint32_t slot,
                     const void *entry, size_t bytes)
{
    memcpy(bench->ring.segment + offset + (size_t)slot * stride, entry, bytes);
}

static void complete(struct bench *bench, uint64_t user_data)
{
    struct vr_cqe cqe;
    memset(&cqe, 0, sizeof cqe);
    cqe.user_data = user_data;
    cqe.record = UINT64_C(1) << 32;
    cqe.res = (int32_t)user_data;
    set_slot(bench, 8192, CQE_STRIDE, bench->cq_tail % CQ_ENTRIES, &cqe, sizeof cqe);
    set_word(bench, VR_AT_CQ_TAIL, ++bench->cq_tail);
}

static void set_fate(const struct bench *bench, uint32_t place, uint64_t number, uint64_t stage)
{
    uint64_t entry[2];
    entry[0] = 1;
    entry[1] = number << VR_FATE_SHIFT | stage;
    set_slot(bench, 12288, FATE_STRIDE, place, entry, sizeof entry);
}

static int rung(int bell)
{
    char pending[64];
    return recv(bell, pending, sizeof pending, MSG_DONTWAIT) > 0;
}

static int64_t push(struct bench *bench, uint64_t user_data)
{
    struct vr_sqe sqe;
    vr_prep_nop(&sqe);
    sqe.user_data = user_data;
    return vr_push(&bench->ring, &sqe);
}

/* ----- Submitting ----- */

static void pushes_wrap_and_stop_when_full(void)
{
    struct bench bench;
    uint64_t round, number = 0;
    set_up(&bench);
    for (round = 0; round < 5; round++) {
        uint64_t place;
        uint32_t before = FIRST_INDEX + (uint32_t)number;
        for (place = 0; place < SQ_ENTRIES; place++)
            CHECK(push(&bench, 100 + number + place) == (int64_t)(number + place));
        CHECK(vr_room(&bench.ring) == 0);
        CHECK(push(&bench, 0) == -EAGAIN);
        CHECK(word(&bench, VR_AT_SQ_TAIL) == before);
        CHECK(vr_submit(&bench.ring) == (int)SQ_ENTRIES);
        CHECK(vr_submit(&bench.ring) == 0);
        CHECK(word(&bench, VR_AT_SQ_TAIL) == before + SQ_ENTRIES);
        for (place = 0; place < SQ_ENTRIES; place++) {
            struct vr_sqe sqe;
            uint32_t slot = (before + (uint32_t)place) % SQ_ENTRIES;
            memcpy(&sqe, bench.ring.segment + 4096 + slot * SQE_STRIDE, sizeof sqe);
            CHECK(sqe.opcode == VR_OP_NOP && sqe.user_data == 100 + number + place);
        }
        CHECK(push(&bench, 0) == -EAGAIN);
        number += SQ_ENTRIES;
        set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + (uint32_t)number);
        CHECK(vr_room(&bench.ring) == SQ_ENTRIES);
    }
    CHECK(!rung(bench.engine_sq_bell));
    tear_down(&bench);
}

static void heads_that_cannot_be_are_not_believed(void)
{
    static const uint32_t wrong[] = {1, 2, SQ_ENTRIES, 0x80000000u, UINT32_MAX};
    struct bench bench;
    size_t at;
    set_up(&bench);
    for (at = 0; at < SQ_ENTRIES; at++)
        CHECK(push(&bench, at) >= 0);
    /* Nothing is published, so nothing can have been taken. */
    for (at = 0; at < sizeof wrong / sizeof wrong[0]; at++) {
        set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + wrong[at]);
        CHECK(vr_room(&bench.ring) == 0);
    }
    CHECK(vr_submit(&bench.ring) == (int)SQ_ENTRIES);
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + SQ_ENTRIES + 1);
    CHECK(vr_room(&bench.ring) == 0);
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + SQ_ENTRIES);
    CHECK(vr_room(&bench.ring) == SQ_ENTRIES);
    CHECK(push(&bench, 0) >= 0);
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX);
    CHECK(vr_room(&bench.ring) == SQ_ENTRIES - 1);
    tear_down(&bench);
}

static void the_shared_header_is_never_read_again(void)
{
    struct bench bench;
    struct vr_cqe cqe;
    set_up(&bench);
    memset(bench.ring.segment, 0xff, sizeof(struct vr_segment));
    CHECK(push(&bench, 5) == 0);
    CHECK(vr_submit(&bench.ring) == 1);
    complete(&bench, 5);
    CHECK(vr_reap(&bench.ring, &cqe, 1) == 1 && cqe.user_data == 5);
    CHECK(vr_verdict(&bench.ring, 0) == VR_NOT_STARTED);
    tear_down(&bench);
}

static void a_sleeping_engine_is_rung(void)
{
    struct bench bench;
    set_up(&bench);
    set_word(&bench, VR_AT_ENGINE_FLAGS, VR_ENGINE_NEED_WAKEUP);
    CHECK(push(&bench, 1) == 0);
    CHECK(!rung(bench.engine_sq_bell));
    CHECK(vr_submit(&bench.ring) == 1);
    CHECK(rung(bench.engine_sq_bell));
    CHECK(vr_submit(&bench.ring) == 0);
    CHECK(!rung(bench.engine_sq_bell));
    /* A bell that is full is ringing. */
    while (send(bench.ring.sq_bell, "", 1, MSG_DONTWAIT) == 1) {
    }
    CHECK(errno == EAGAIN);
    CHECK(push(&bench, 2) == 1);
    CHECK(vr_submit(&bench.ring) == 1);
    /* A bell that nobody hears is an error, until it is repaired. */
    vr_close_fd_(&bench.engine_sq_bell);
    CHECK(push(&bench, 3) == 2);
    CHECK(vr_submit(&bench.ring) == -EPIPE);
    CHECK(vr_submit(&bench.ring) == -EPIPE);
    tear_down(&bench);
}

static void submitting_tells_of_faults_and_closing(void)
{
    struct bench bench;
    set_up(&bench);
    CHECK(vr_fault_reason(&bench.ring) == 0);
    set_word(&bench, VR_AT_ENGINE_FLAGS, VR_ENGINE_CLOSING);
    CHECK(push(&bench, 1) == 0);
    CHECK(vr_submit(&bench.ring) == -EPIPE);
    set_word(&bench, VR_AT_ENGINE_FLAGS, VR_FAULT_SQ_TAIL_BACK << 16 | VR_ENGINE_FAULTED);
    CHECK(push(&bench, 1) == 1);
    CHECK(vr_submit(&bench.ring) == -EIO);
    CHECK(vr_fault_reason(&bench.ring) == VR_FAULT_SQ_TAIL_BACK);
    tear_down(&bench);
}

/* ----- Reaping ----- */

static void cqes_come_in_order_and_their_slots_go_back(void)
{
    struct bench bench;
    struct vr_cqe cqes[CQ_ENTRIES + 1];
    uint64_t number = 0, read = 0;
    uint32_t round;
    set_up(&bench);
    CHECK(vr_peek(&bench.ring, cqes) == 0);
    CHECK(vr_reap(&bench.ring, cqes, 9) == 0);
    for (round = 1; round <= 20; round++) {
        uint32_t count = 1 + round % CQ_ENTRIES, place;
        for (place = 0; place < count; place++)
            complete(&bench, number++);
        CHECK(vr_ready(&bench.ring) == (int)count);
        CHECK(vr_peek(&bench.ring, cqes) == 1 && cqes[0].user_data == read);
        CHECK(vr_ready(&bench.ring) == (int)count);
        CHECK(word(&bench, VR_AT_CQ_HEAD) == FIRST_INDEX + (uint32_t)read);
        CHECK(vr_reap(&bench.ring, cqes, 1) == 1 && cqes[0].user_data == read);
        CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES + 1) == (int)count - 1);
        for (place = 1; place < count; place++)
            CHECK(cqes[place - 1].user_data == read + place &&
                  cqes[place - 1].res == (int32_t)(read + place));
        read = number;
        CHECK(word(&bench, VR_AT_CQ_HEAD) == FIRST_INDEX + (uint32_t)read);
    }
    tear_down(&bench);
}

static void tails_that_cannot_be_are_refused(void)
{
    struct bench bench;
    struct vr_cqe cqes[CQ_ENTRIES];
    set_up(&bench);
    complete(&bench, 1);
    complete(&bench, 2);
    CHECK(vr_ready(&bench.ring) == 2);
    set_word(&bench, VR_AT_CQ_TAIL, FIRST_INDEX + CQ_ENTRIES + 1);
    CHECK(vr_ready(&bench.ring) == -EPROTO);
    CHECK(vr_wait(&bench.ring, 3, 0) == -EPROTO);
    set_word(&bench, VR_AT_CQ_TAIL, FIRST_INDEX + 1);
    CHECK(vr_ready(&bench.ring) == -EPROTO);
    set_word(&bench, VR_AT_CQ_TAIL, FIRST_INDEX - 1);
    CHECK(vr_bell_arm(&bench.ring, 3) == -EPROTO);
    /* What was seen before the lie is still to be had, and nothing after it. */
    CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES) == 2 && cqes[1].user_data == 2);
    CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES) == -EPROTO);
    CHECK(vr_peek(&bench.ring, cqes) == -EPROTO);
    tear_down(&bench);
}

/* ----- Waiting ----- */

static void waits_end_with_cqes_or_in_time(void)
{
    struct bench bench;
    struct vr_cqe cqes[CQ_ENTRIES];
    uint64_t begun_ns;
    set_up(&bench);
    CHECK(vr_wait(&bench.ring, 1, 0) == -ETIME);
    begun_ns = vr_now_ns_();
    CHECK(vr_wait(&bench.ring, 1, 3000000) == -ETIME);
    CHECK(vr_now_ns_() - begun_ns >= 3000000);
    bench.ring.spin_ns = UINT64_MAX;
    CHECK(vr_wait(&bench.ring, 1, 3000000) == -ETIME);
    bench.ring.spin_ns = 0;
    complete(&bench, 1);
    CHECK(vr_wait(&bench.ring, 1, FOR_EVER) == 1);
    CHECK(vr_wait(&bench.ring, 2, 0) == -ETIME);
    complete(&bench, 2);
    CHECK(vr_wait(&bench.ring, 0, FOR_EVER) == 2);
    CHECK(vr_submit_and_wait(&bench.ring, 2, FOR_EVER) == 2);
    /* More than the CQ holds is as many as it holds. */
    while (bench.cq_tail != FIRST_INDEX + CQ_ENTRIES)
        complete(&bench, 3);
    CHECK(vr_wait(&bench.ring, CQ_ENTRIES + 1, FOR_EVER) == (int)CQ_ENTRIES);
    CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES) == (int)CQ_ENTRIES);
    tear_down(&bench);
}

static void arming_asks_for_the_bell_at_the_right_cqe(void)
{
    struct bench bench;
    set_up(&bench);
    CHECK(vr_bell_arm(&bench.ring, 3) == 0);
    CHECK(word(&bench, VR_AT_BELL_AT) == FIRST_INDEX + 2);
    complete(&bench, 1);
    complete(&bench, 2);
    CHECK(vr_bell_arm(&bench.ring, 3) == 0);
    CHECK(vr_bell_arm(&bench.ring, 2) == 2);
    /* A byte from before is taken out, so that it wakes nobody. */
    CHECK(send(bench.engine_cq_bell, "", 1, 0) == 1);
    CHECK(vr_bell_arm(&bench.ring, 3) == 0);
    CHECK(!rung(vr_ring_fd(&bench.ring)));
    tear_down(&bench);
}

/* Plays the engine in a child: waits until the client asks for its bell, acts, and ends. */
static pid_t fork_engine(struct bench *bench, void (*act)(struct bench *))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* The client's ends must hang up when the client's copies close. */
        vr_close_fd_(&bench->session.fd);
        vr_close_fd_(&bench->ring.sq_bell);
        vr_close_fd_(&bench->ring.cq_bell);
        while (word(bench, VR_AT_BELL_AT) == FIRST_INDEX - 1)
            vr_pause_();
        act(bench);
        _exit(0);
    }
    bench->session.engine_pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    CHECK(bench->session.engine_pidfd >= 0);
    return child;
}

/* Descriptors that only the child shall hold from now on. */
static void leave_ends_to_the_engine(struct bench *bench)
{
    vr_close_fd_(&bench->engine_socket);
    vr_close_fd_(&bench->engine_sq_bell);
    vr_close_fd_(&bench->engine_cq_bell);
}

static void until_killed(void)
{
    for (;;)
        pause();
}

static void complete_two_and_ring(struct bench *bench)
{
    int stale;
    /* A bell too early wakes the sleeper, who must go back to sleep. */
    for (stale = 0; stale < 100; stale++)
        send(bench->engine_cq_bell, "", 1, MSG_DONTWAIT);
    complete(bench, 1);
    send(bench->engine_cq_bell, "", 1, MSG_DONTWAIT);
    complete(bench, 2);
    send(bench->engine_cq_bell, "", 1, MSG_DONTWAIT);
    until_killed();
}

static void complete_and_die(struct bench *bench)
{
    complete(bench, 1);
}

static void hang_up_socket(struct bench *bench)
{
    vr_close_fd_(&bench->engine_socket);
    until_killed();
}

static void half_close_bell(struct bench *bench)
{
    shutdown(bench->engine_cq_bell, SHUT_WR);
    until_killed();
}

static void hang_up_bell(struct bench *bench)
{
    vr_close_fd_(&bench->engine_cq_bell);
    until_killed();
}

static void fault_and_ring(struct bench *bench)
{
    set_word(bench, VR_AT_ENGINE_FLAGS, VR_FAULT_CQ_HEAD << 16 | VR_ENGINE_FAULTED);
    send(bench->engine_cq_bell, "", 1, MSG_DONTWAIT);
    until_killed();
}

static void fault_and_hang_up(struct bench *bench)
{
    set_word(bench, VR_AT_ENGINE_FLAGS, VR_FAULT_CQ_HEAD << 16 | VR_ENGINE_FAULTED);
    vr_close_fd_(&bench->engine_cq_bell);
    until_killed();
}

static void a_wait_ends_as_the_engine_acts(void (*act)(struct bench *), uint32_t want, int result)
{
    struct bench bench;
    pid_t child;
    int dead = result == -ESHUTDOWN || act == complete_and_die;
    set_up(&bench);
    bench.ring.spin_ns = 0;
    child = fork_engine(&bench, act);
    leave_ends_to_the_engine(&bench);
    CHECK(vr_wait(&bench.ring, want, FOR_EVER) == result);
    if (!dead)
        CHECK(vr_engine_dead(&bench.session, 0) == 0);
    if (result == -EIO)
        CHECK(vr_fault_reason(&bench.ring) == VR_FAULT_CQ_HEAD);
    kill(child, SIGKILL);
    CHECK(vr_engine_dead(&bench.session, -1) == 1);
    CHECK(waitpid(child, NULL, 0) == child);
    /* After the death every wait ends so, and CQEs that came before are not lost. */
    if (result != -EIO)
        CHECK(vr_wait(&bench.ring, CQ_ENTRIES, FOR_EVER) == -ESHUTDOWN);
    if (result > 0) {
        struct vr_cqe cqes[CQ_ENTRIES];
        CHECK(vr_wait(&bench.ring, want, FOR_EVER) == result);
        CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES) == result && cqes[0].user_data == 1);
    }
    tear_down(&bench);
}

/* The socket and bells may hang up before the process is gone, so either end is told; the pidfd
 * decides. */
static void a_dying_engine_ends_a_wait(void)
{
    struct bench bench;
    pid_t child;
    int status;
    set_up(&bench);
    bench.ring.spin_ns = 0;
    child = fork_engine(&bench, complete_and_die);
    leave_ends_to_the_engine(&bench);
    status = vr_wait(&bench.ring, 2, FOR_EVER);
    CHECK(status == -ESHUTDOWN || status == -EPIPE);
    CHECK(vr_engine_dead(&bench.session, FOR_EVER) == 1);
    CHECK(vr_wait(&bench.ring, 2, FOR_EVER) == -ESHUTDOWN);
    CHECK(vr_wait(&bench.ring, 1, FOR_EVER) == 1);
    CHECK(waitpid(child, NULL, 0) == child);
    tear_down(&bench);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void a_signal_ends_a_wait(void)
{
    struct bench bench;
    struct sigaction action;
    struct itimerval often, never;
    set_up(&bench);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    memset(&often, 0, sizeof often);
    memset(&never, 0, sizeof never);
    /* Again and again: the first may come before the wait. */
    often.it_value.tv_usec = often.it_interval.tv_usec = 1000;
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    CHECK(vr_wait(&bench.ring, 1, FOR_EVER) == -EINTR);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    tear_down(&bench);
}

static void a_closed_session_ends_a_wait(void)
{
    struct bench bench;
    set_up(&bench);
    complete(&bench, 1);
    vr_close(&bench.session);
    CHECK(vr_wait(&bench.ring, 1, FOR_EVER) == 1);
    CHECK(vr_wait(&bench.ring, 2, FOR_EVER) == -EPIPE);
    tear_down(&bench);
}

/* An engine that sleeps whenever it finds nothing, as the protocol wants it. */
static void serve_asleep(struct bench *bench)
{
    uint32_t head = FIRST_INDEX;
    for (;;) {
        uint32_t tail = word(bench, VR_AT_SQ_TAIL), old = bench->cq_tail;
        if (tail == head) {
            struct pollfd look;
            look.fd = bench->engine_sq_bell;
            look.events = POLLIN;
            set_word(bench, VR_AT_ENGINE_FLAGS, VR_ENGINE_NEED_WAKEUP);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (word(bench, VR_AT_SQ_TAIL) == head) {
                poll(&look, 1, -1);
                rung(bench->engine_sq_bell);
            }
            set_word(bench, VR_AT_ENGINE_FLAGS, 0);
            continue;
        }
        set_word(bench, VR_AT_SQ_HEAD, tail);
        for (; head != tail; head++)
            complete(bench, head - FIRST_INDEX);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        /* Due if bell_at lies in old..cq_tail. */
        if (bench->cq_tail - word(bench, VR_AT_BELL_AT) - 1 < bench->cq_tail - old) {
            uint64_t *bells = vr_slot_(&bench->ring, VR_AT_COUNTERS, 8, VR_RING_COUNTER_BELLS_RUNG);
            __atomic_add_fetch(bells, 1, __ATOMIC_SEQ_CST);
            send(bench->engine_cq_bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
}

/* Half of the time the client spins for its CQEs and then submits at once, to meet the engine on
 * its way to sleep; half of the time it sleeps too. */
static void no_wake_up_is_lost(void)
{
    const unsigned rounds = 40000;
    struct bench bench;
    struct vr_cqe cqes[CQ_ENTRIES];
    unsigned round, place;
    pid_t child;
    set_up(&bench);
    child = fork_engine(&bench, serve_asleep);
    leave_ends_to_the_engine(&bench);
    CHECK(vr_bell_arm(&bench.ring, 1) == 0);
    for (round = 0; round < rounds; round++) {
        unsigned count = 1 + round % SQ_ENTRIES;
        unsigned idle = round / 8 % 64;
        for (place = 0; place < count; place++)
            CHECK(push(&bench, 0) >= 0);
        for (; idle > 0; idle--)
            __asm__ __volatile__("");
        CHECK(vr_submit(&bench.ring) == (int)count);
        bench.ring.spin_ns = round / 4 % 2 == 0 ? 0 : UINT64_MAX;
        CHECK(vr_wait(&bench.ring, count, FOR_EVER) == (int)count);
        CHECK(vr_reap(&bench.ring, cqes, CQ_ENTRIES) == (int)count);
        CHECK(cqes[count - 1].user_data + 1 == bench.ring.pushed);
    }
    CHECK(vr_ring_counter(&bench.ring, VR_RING_COUNTER_BELLS_RUNG) > 0);
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
    tear_down(&bench);
}

/* ----- Verdicts ----- */

static void verdicts_follow_the_fate_table(void)
{
    struct bench bench;
    uint64_t number;
    uint32_t place;
    set_up(&bench);
    for (number = 0; number < SQ_ENTRIES; number++)
        CHECK(push(&bench, number) == (int64_t)number);
    CHECK(vr_submit(&bench.ring) == (int)SQ_ENTRIES);
    CHECK(vr_verdict(&bench.ring, 0) == VR_NOT_STARTED);
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + 3);
    set_fate(&bench, 0, 2, VR_FATE_ACCEPTED);
    set_fate(&bench, CQ_ENTRIES - 1, 1, VR_FATE_POSTED);
    set_fate(&bench, 3, 0, VR_FATE_FREE);
    CHECK(vr_verdict(&bench.ring, 0) == VR_DONE);
    CHECK(vr_verdict(&bench.ring, 1) == VR_INDETERMINATE);
    CHECK(vr_verdict(&bench.ring, 2) == VR_NOT_STARTED);
    CHECK(vr_verdict(&bench.ring, 3) == VR_NOT_STARTED);
    CHECK(vr_verdict(&bench.ring, 4) == VR_NOT_STARTED);
    /* Neither a head that cannot be nor a table of garbage makes anything done. */
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + 1000);
    CHECK(vr_verdict(&bench.ring, 3) == VR_NOT_STARTED);
    for (place = 0; place < CQ_ENTRIES; place++)
        set_fate(&bench, place, UINT64_MAX, 3);
    CHECK(vr_verdict(&bench.ring, 0) == VR_DONE);
    CHECK(vr_verdict(&bench.ring, 3) == VR_NOT_STARTED);
    CHECK(vr_verdict(&bench.ring, UINT64_MAX) == VR_NOT_STARTED);
    tear_down(&bench);
}

/* ----- Filling SQEs ----- */

static void preparing_fills_every_field(void)
{
    struct vr_region local;
    struct vr_remote remote;
    struct vr_sqe sqe;
    memset(&local, 0, sizeof local);
    memset(&remote, 0, sizeof remote);
    local.id = 7;
    remote.id = 9;
    memset(&sqe, 0xff, sizeof sqe);
    vr_prep_write(&sqe, &local, 1, &remote, 2, 3);
    CHECK(sqe.opcode == VR_OP_WRITE && sqe.class_ == 0 && sqe.flags == 0 && sqe.edges[0] == 0 &&
          sqe.edges[1] == 0 && sqe.user_data == 0 && sqe.local_region == 7 &&
          sqe.remote_region == 9 && sqe.local_offset == 1 && sqe.remote_offset == 2 &&
          sqe.bytes == 3 && sqe.immediate == 0 && sqe.arg[0] == 0 && sqe.arg[1] == 0);
    vr_set_notify(&sqe, 5);
    vr_set_deadline(&sqe, 6);
    vr_set_tag(&sqe, 8);
    CHECK(sqe.flags == VR_SQE_NOTIFY && sqe.immediate == 5 && sqe.arg[0] == 6 && sqe.arg[1] == 8);
    vr_prep_read(&sqe, &local, 1, &remote, 2, 3);
    CHECK(sqe.opcode == VR_OP_READ && sqe.flags == 0 && sqe.arg[0] == 0);
    vr_prep_writev(&sqe, &local, 16, 3, &remote, 2, 4096);
    vr_set_deadline(&sqe, 6);
    CHECK(sqe.opcode == VR_OP_WRITEV && sqe.bytes == 4096 && sqe.arg[0] == (UINT64_C(3) << 32 | 6));
    vr_prep_readv(&sqe, &local, 16, 3, &remote, 2, 4096);
    CHECK(sqe.opcode == VR_OP_READV && sqe.arg[0] == UINT64_C(3) << 32);
    vr_prep_fetch_add(&sqe, &local, 8, &remote, 16, UINT64_MAX);
    vr_set_deadline(&sqe, 6);
    CHECK(sqe.opcode == VR_OP_FETCH_ADD && sqe.arg[0] == UINT64_MAX && sqe.bytes == 6);
    vr_prep_cmp_swap(&sqe, &local, 8, &remote, 16, 4, 5);
    CHECK(sqe.opcode == VR_OP_CMP_SWAP && sqe.arg[0] == 4 && sqe.arg[1] == 5 && sqe.bytes == 0);
    vr_prep_cancel(&sqe, VR_CANCEL_BY_RECORD, 5);
    CHECK(sqe.opcode == VR_OP_CANCEL && sqe.arg[0] == 5 && sqe.arg[1] == VR_CANCEL_BY_RECORD);
    vr_prep_revoke(&sqe, &local);
    CHECK(sqe.opcode == VR_OP_FLUSH && sqe.local_region == 7 && sqe.flags == VR_SQE_REVOKE);
    vr_prep_arm(&sqe, &local, 2);
    CHECK(sqe.opcode == VR_OP_ARM && sqe.local_region == 7 && sqe.bytes == 2 && sqe.flags == 0);
    CHECK(strcmp(vr_detail_name(VR_DETAIL_FAULTED), "faulted") == 0);
    CHECK(strcmp(vr_detail_name(VR_DETAIL_CANCELLED), "cancelled") == 0);
    CHECK(strcmp(vr_detail_name(VR_DETAIL_REQUIRE), "require") == 0);
    CHECK(strcmp(vr_detail_name(VR_DETAIL_WIRE), "wire") == 0);
    CHECK(strcmp(vr_detail_name(VR_DETAIL_WIRE + 1), "unknown detail") == 0);
}

/* ----- Edges ----- */

/* A ring with so many slots of its own, of which the first `pushed` SQEs are over. */
static void set_up_wide(struct bench *bench, uint32_t sq_entries, uint64_t pushed,
                        unsigned char **slots)
{
    set_up(bench);
    *slots = (unsigned char *)calloc(sq_entries, SQE_STRIDE);
    CHECK(*slots != NULL);
    bench->ring.header.sq_entries = sq_entries;
    bench->ring.header.sq_offset = (uintptr_t)*slots - (uintptr_t)bench->ring.segment;
    bench->ring.pushed = bench->ring.published = bench->ring.taken = pushed;
    set_word(bench, VR_AT_SQ_HEAD, FIRST_INDEX + (uint32_t)pushed);
}

static struct vr_sqe slot_at(const struct bench *bench, const unsigned char *slots, uint64_t number)
{
    struct vr_sqe sqe;
    uint32_t index = FIRST_INDEX + (uint32_t)number;
    memcpy(&sqe, slots + index % bench->ring.header.sq_entries * SQE_STRIDE, sizeof sqe);
    return sqe;
}

static void edges_lie_where_the_abi_says(void)
{
    static const uint32_t edges[] = {1, 2, 3 | VR_EDGE_ORDER_ONLY, 4, 5, 6, 7, 32767, 9, 0xffff};
    struct vr_sqe sqe;
    unsigned char bytes[sizeof sqe];
    uint32_t place;
    vr_prep_join(&sqe);
    for (place = 0; place < 10; place++)
        CHECK(vr_add_edge(&sqe, edges[place]) == 0);
    CHECK(vr_add_edge(&sqe, 1) == -E2BIG);
    memcpy(bytes, &sqe, sizeof sqe);
    CHECK(bytes[0] == VR_OP_JOIN);
    for (place = 0; place < 10; place++) {
        uint32_t at = place < 2 ? 4 + 2 * place : 48 + 2 * (place - 2);
        CHECK((uint32_t)(bytes[at] | bytes[at + 1] << 8) == edges[place]);
    }
    vr_prep_nop(&sqe);
    CHECK(vr_add_edge(&sqe, 0) == -EINVAL);
    CHECK(vr_add_edge(&sqe, VR_EDGE_ORDER_ONLY) == -EINVAL);
    CHECK(vr_add_edge(&sqe, 0x10001) == -EINVAL);
    CHECK(vr_add_edge(&sqe, 32767) == 0 && vr_add_edge(&sqe, 1) == 0);
    CHECK(vr_add_edge(&sqe, 1) == -E2BIG);
    CHECK(sqe.edges[0] == 32767 && sqe.edges[1] == 1 && sqe.arg[0] == 0 && sqe.arg[1] == 0);
    vr_set_link(&sqe);
    vr_set_hard_link(&sqe);
    vr_set_drain(&sqe);
    CHECK(sqe.flags == (VR_SQE_LINK | VR_SQE_HARDLINK | VR_SQE_DRAIN));
    vr_prep_nop(&sqe);
    vr_set_coalesce(&sqe);
    vr_set_supersede(&sqe, 77);
    CHECK(sqe.flags == (VR_SQE_COALESCE | VR_SQE_SUPERSEDE) && sqe.arg[1] == 77);
}

static void ops_wait_for_numbers_that_were_pushed(void)
{
    struct bench bench;
    struct vr_sqe sqe;
    unsigned char *slots;
    set_up_wide(&bench, 8, 40000, &slots);
    vr_prep_nop(&sqe);
    CHECK(vr_after(&bench.ring, &sqe, -EAGAIN) == -EINVAL);
    CHECK(vr_after(&bench.ring, &sqe, 40000) == -EINVAL);
    CHECK(vr_after(&bench.ring, &sqe, 40000 - 32768) == -ERANGE);
    CHECK(vr_after(&bench.ring, &sqe, 40000 - 32767) == 0);
    CHECK(vr_after_end(&bench.ring, &sqe, 39999) == 0);
    CHECK(vr_after(&bench.ring, &sqe, 39998) == -E2BIG);
    CHECK(sqe.edges[0] == 32767 && sqe.edges[1] == (VR_EDGE_ORDER_ONLY | 1));
    CHECK(vr_push(&bench.ring, &sqe) == 40000);
    free(slots);
    tear_down(&bench);
}

/* Counts, for each op, in how many ways the one of this number waits for it. */
static void count_ways(const struct bench *bench, const unsigned char *slots, uint64_t number,
                       uint64_t first_join, uint32_t *ways)
{
    struct vr_sqe join = slot_at(bench, slots, number);
    uint16_t edges[10];
    uint32_t place;
    CHECK(join.opcode == VR_OP_JOIN);
    memcpy(edges, join.edges, sizeof join.edges);
    memcpy(edges + 2, join.arg, sizeof join.arg);
    for (place = 0; place < 10 && edges[place] != 0; place++) {
        uint64_t before = number - edges[place];
        if (before < first_join)
            ways[before]++;
        else
            count_ways(bench, slots, before, first_join, ways);
    }
}

static void a_join_of_any_number_waits_for_each_once(void)
{
    static const uint32_t counts[] = {0, 1, 2, 9, 10, 11, 12, 20, 21, 99, 100, 101, 111, 1024};
    uint32_t at;
    for (at = 0; at < sizeof counts / sizeof counts[0]; at++) {
        uint32_t count = counts[at], place;
        int64_t numbers[1025], last;
        uint32_t ways[1024];
        struct bench bench;
        struct vr_sqe sqe;
        unsigned char *slots;
        set_up_wide(&bench, 128, count, &slots);
        for (place = 0; place < count; place++)
            numbers[place] = place;
        last = vr_join(&bench.ring, numbers, count, 5, 6);
        CHECK(last >= count && (uint64_t)last + 1 == bench.ring.pushed);
        memset(ways, 0, sizeof ways);
        count_ways(&bench, slots, (uint64_t)last, count, ways);
        for (place = 0; place < count; place++)
            CHECK(ways[place] == 1);
        sqe = slot_at(&bench, slots, (uint64_t)last);
        CHECK(sqe.user_data == 5 && sqe.flags == 0);
        for (place = count; place < (uint32_t)last; place++) {
            sqe = slot_at(&bench, slots, place);
            CHECK(sqe.user_data == 6 && sqe.flags == VR_SQE_SKIP_SUCCESS);
        }
        free(slots);
        tear_down(&bench);
    }
}

static void a_join_is_pushed_whole_or_not_at_all(void)
{
    int64_t numbers[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    struct bench bench;
    unsigned char *slots;
    set_up_wide(&bench, 2, 40000, &slots);
    CHECK(vr_join(&bench.ring, numbers, 1, 0, 0) == -ERANGE);
    numbers[0] = 40000;
    CHECK(vr_join(&bench.ring, numbers, 1, 0, 0) == -EINVAL);
    free(slots);
    tear_down(&bench);
    set_up_wide(&bench, 2, 20, &slots);
    numbers[0] = 0;
    CHECK(vr_join(&bench.ring, numbers, 12, 0, 0) == -E2BIG);
    CHECK(push(&bench, 0) == 20);
    CHECK(vr_join(&bench.ring, numbers, 11, 0, 0) == -EAGAIN);
    CHECK(bench.ring.pushed == 21 && numbers[11] == 11);
    CHECK(vr_submit(&bench.ring) == 1);
    set_word(&bench, VR_AT_SQ_HEAD, FIRST_INDEX + 21);
    CHECK(vr_join(&bench.ring, numbers, 11, 0, 0) == 22);
    free(slots);
    tear_down(&bench);
}

static void cqes_tell_what_carried_them(void)
{
    struct vr_cqe cqe;
    memset(&cqe, 0, sizeof cqe);
    cqe.detail = VR_FABRIC_VERBS << 8 | 63;
    CHECK(vr_cqe_fabric(&cqe) == VR_FABRIC_VERBS && vr_cqe_rail(&cqe) == 63);
}

int main(void)
{
    pushes_wrap_and_stop_when_full();
    heads_that_cannot_be_are_not_believed();
    the_shared_header_is_never_read_again();
    a_sleeping_engine_is_rung();
    submitting_tells_of_faults_and_closing();
    cqes_come_in_order_and_their_slots_go_back();
    tails_that_cannot_be_are_refused();
    waits_end_with_cqes_or_in_time();
    arming_asks_for_the_bell_at_the_right_cqe();
    a_wait_ends_as_the_engine_acts(complete_two_and_ring, 2, 2);
    a_wait_ends_as_the_engine_acts(complete_and_die, 1, 1);
    a_wait_ends_as_the_engine_acts(hang_up_socket, 1, -EPIPE);
    a_wait_ends_as_the_engine_acts(hang_up_bell, 1, -EPIPE);
    a_wait_ends_as_the_engine_acts(half_close_bell, 1, -EPIPE);
    a_wait_ends_as_the_engine_acts(fault_and_ring, 1, -EIO);
    a_wait_ends_as_the_engine_acts(fault_and_hang_up, 1, -EIO);
    a_dying_engine_ends_a_wait();
    no_wake_up_is_lost();
    a_signal_ends_a_wait();
    a_closed_session_ends_a_wait();
    verdicts_follow_the_fate_table();
    preparing_fills_every_field();
    edges_lie_where_the_abi_says();
    ops_wait_for_numbers_that_were_pushed();
    a_join_of_any_number_waits_for_each_once();
    a_join_is_pushed_whole_or_not_at_all();
    cqes_tell_what_carried_them();
    printf("%u checks of the ring held\n", checks);
    return 0;
}
