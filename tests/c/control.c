/* The C client's control calls, against engines that lie: a forked child answers on a real socket,
 * well but for one trick at a time. After every trick the call must have failed as told here, the
 * session must be over or go on as it should, what the engine had made must be given back, and no
 * descriptor may be left. Prints how many checks held; the first that does not ends the program
 * with status 1. Compiled as C11 and as C++17. */
#include "verbring.h"

#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define RING_NUMBER 9u
#define REGION_ID 0x100005u
#define FIRST_INDEX 0xfffffff0u
#define REGION_BYTES 8192u

static unsigned checks;
static const char *trying = "";

static void check(int holds, const char *what, int line)
{
    checks++;
    if (holds)
        return;
    fprintf(stderr, "tests/c/control.c:%d: trying '%s', does not hold: %s\n", line, trying, what);
    exit(1);
}

#define CHECK(condition) check(condition, #condition, __LINE__)

/* ----- The engine ----- */

enum trick {
    HONEST,
    /* What happens to the first reply of the kind that the case names. */
    TAG_OF_ANOTHER,
    KIND_OF_ANOTHER,
    KIND_WITHOUT_REPLY,
    RESERVED_SET,
    BYTES_TOO_MANY,
    STATUS_POSITIVE,
    STATUS_NO_ERRNO,
    SHORTER,
    LONGER,
    HEAD_ALONE,
    LESS_THAN_HEAD,
    HUGE_MESSAGE,
    REFUSED,
    REFUSED_WITH_DESCRIPTOR,
    REFUSED_AT_LENGTH,
    ONE_DESCRIPTOR_MORE,
    MANY_DESCRIPTORS_MORE,
    ONE_DESCRIPTOR_LESS,
    NO_DESCRIPTORS,
    HANGS_UP,
    DIES,
    STAYS_SILENT,
    /* What is wrong with memory or a header. */
    UNSEALED,
    SEALED_HALF,
    NO_MEMFD,
    FILE_TOO_SMALL,
    SIZE_ZERO,
    SIZE_OVER_ADDRESS_SPACE,
    SIZE_OF_ANOTHER,
    MAGIC,
    VERSION,
    FEATURES,
    HEADER_TOO_SMALL,
    HEADER_TOO_LARGE,
    ENTRIES_OF_ANOTHER,
    ENTRIES_ODD,
    STRIDE_ZERO,
    STRIDE_SHORT,
    STRIDE_UNALIGNED,
    STRIDE_HUGE,
    OFFSET_IN_HEADER,
    OFFSET_UNALIGNED,
    OFFSET_BEYOND,
    OFFSET_WRAPS,
    FATE_BEYOND,
    SEGMENT_LARGER_THAN_FILE,
    RING_OF_ANOTHER,
    BOOT_OF_ANOTHER,
    ENGINE_OF_ANOTHER,
    /* What is wrong with a peer. */
    PEER_ZERO,
    FABRIC_OF_ANOTHER,
    FABRIC_HUGE,
    RAIL_HUGE,
    PLACE_BEFORE,
    RAILS_TOO_MANY,
    TEXT_UNPADDED
};

struct engine {
    int fd;
    enum trick trick;
    enum vr_kind victim;
    uint32_t rings; /* made and not given back; STATS tells */
    uint32_t regions;
    uint64_t messages[32]; /* by kind */
};

union message {
    struct vr_head head;
    struct vr_hello hello;
    struct vr_ring_request ring;
    struct vr_mapped mapped;
    struct vr_region_request region;
    struct vr_export exported;
    struct vr_import imported;
    struct vr_connect connect;
    struct vr_release release;
    struct vr_stats stats;
    struct vr_op_query query;
    struct vr_recorder_request recorder;
    struct vr_peers_request peers;
    struct vr_cards_request cards;
    char bytes[VR_MESSAGE_BYTES_MAX];
};

union answer {
    struct vr_reply_head reply;
    struct vr_hello_reply hello;
    struct vr_ring_reply ring;
    struct vr_region_reply region;
    struct vr_export_reply exported;
    struct vr_import_reply imported;
    struct vr_connect_reply connect;
    struct vr_probe_reply probe;
    struct vr_stats_reply stats;
    struct vr_cancel_reply cancel;
    struct vr_why_reply why;
    struct vr_recorder_reply recorder;
    struct vr_telemetry_reply telemetry;
    struct vr_peers_reply peers;
    struct vr_cards_reply cards;
    char bytes[2 * VR_MESSAGE_BYTES_MAX];
};

static void send_answer(const struct engine *engine, union answer *with, size_t bytes,
                        const int *fds, unsigned fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 32)];
    } control;
    struct iovec part;
    struct msghdr message;
    part.iov_base = with;
    part.iov_len = bytes;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd_count > 0) {
        struct cmsghdr *rights;
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    if (sendmsg(engine->fd, &message, MSG_NOSIGNAL) < 0)
        _exit(1);
}

/* Answers, with the trick if it is about this kind of message. */
static void answer_tricked(struct engine *engine, const union message *request, union answer *with,
                           size_t bytes, const int *fds, unsigned fd_count)
{
    int many[32];
    unsigned at;
    with->reply.kind = (uint16_t)(request->head.kind | VR_REPLY);
    with->reply.bytes = (uint32_t)bytes;
    with->reply.tag = request->head.tag;
    if (request->head.kind != (uint16_t)engine->victim) {
        send_answer(engine, with, bytes, fds, fd_count);
        return;
    }
    for (at = 0; at < 32; at++)
        many[at] = at < fd_count ? fds[at] : engine->fd;
    switch (engine->trick) {
    case TAG_OF_ANOTHER:
        with->reply.tag++;
        break;
    case KIND_OF_ANOTHER:
        with->reply.kind++;
        break;
    case KIND_WITHOUT_REPLY:
        with->reply.kind = request->head.kind;
        break;
    case RESERVED_SET:
        with->reply.reserved = 1;
        break;
    case BYTES_TOO_MANY:
        with->reply.bytes += 8;
        break;
    case STATUS_POSITIVE:
        with->reply.status = 1;
        break;
    case STATUS_NO_ERRNO:
        with->reply.status = INT32_MIN;
        break;
    case SHORTER:
        with->reply.bytes = (uint32_t)(bytes -= 8);
        break;
    case LONGER:
        with->reply.bytes = (uint32_t)(bytes += 8);
        break;
    case HEAD_ALONE:
        with->reply.bytes = (uint32_t)(bytes = sizeof with->reply);
        break;
    case LESS_THAN_HEAD:
        bytes = 8;
        break;
    case HUGE_MESSAGE:
        with->reply.bytes = (uint32_t)(bytes = sizeof with->bytes);
        break;
    case REFUSED:
    case REFUSED_WITH_DESCRIPTOR:
        with->reply.status = -VR_EDQUOT;
        with->reply.detail = VR_DETAIL_QUOTA;
        memcpy(with->bytes + sizeof with->reply, "quota\33[2J rings", 15);
        with->reply.bytes = (uint32_t)(bytes = sizeof with->reply + 15);
        fd_count = engine->trick == REFUSED ? 0 : 1;
        break;
    case REFUSED_AT_LENGTH:
        with->reply.status = -VR_EDQUOT;
        with->reply.bytes = (uint32_t)(bytes = sizeof with->reply + VR_ERROR_TEXT_MAX + 1);
        fd_count = 0;
        break;
    case ONE_DESCRIPTOR_MORE:
        fd_count++;
        break;
    case MANY_DESCRIPTORS_MORE:
        fd_count = 32;
        break;
    case ONE_DESCRIPTOR_LESS:
        fd_count--;
        break;
    case NO_DESCRIPTORS:
        fd_count = 0;
        break;
    case HANGS_UP:
        vr_close_fd_(&engine->fd);
        for (;;)
            pause();
    case DIES:
        _exit(0);
    case STAYS_SILENT:
        return;
    default:
        break;
    }
    send_answer(engine, with, bytes, many, fd_count);
}

static int memory(enum trick trick, uint64_t bytes)
{
    int fd, ends[2];
    if (trick == NO_MEMFD) {
        if (pipe(ends) != 0)
            _exit(1);
        close(ends[1]);
        return ends[0];
    }
    fd = (int)syscall(SYS_memfd_create, "fake", VR_MFD_FLAGS_);
    if (fd < 0 || ftruncate(fd, (off_t)(trick == FILE_TOO_SMALL ? bytes - 4096 : bytes)) != 0)
        _exit(1);
    if (trick != UNSEALED &&
        fcntl(fd, VR_SEALS_ADD_, trick == SEALED_HALF ? 4 : VR_SEALS_SIZE_) != 0)
        _exit(1);
    return fd;
}

static void spoil(struct vr_segment *header, enum trick trick)
{
    switch (trick) {
    case MAGIC: header->magic++; break;
    case VERSION: header->abi_version = 2; break;
    case FEATURES: header->features = 1; break;
    case HEADER_TOO_SMALL: header->header_bytes = 1024; break;
    case HEADER_TOO_LARGE: header->header_bytes = UINT32_MAX; break;
    case ENTRIES_OF_ANOTHER: header->cq_entries *= 2; break;
    case ENTRIES_ODD: header->sq_entries = 3; break;
    case STRIDE_ZERO: header->sqe_stride = 0; break;
    case STRIDE_SHORT: header->cqe_stride = 24; break;
    case STRIDE_UNALIGNED: header->sqe_stride = 68; break;
    case STRIDE_HUGE: header->fate_stride = 1u << 31; break;
    case OFFSET_IN_HEADER: header->cq_offset = 1024; break;
    case OFFSET_UNALIGNED: header->sq_offset += 4; break;
    case OFFSET_BEYOND: header->sq_offset = header->segment_bytes - 64; break;
    case OFFSET_WRAPS: header->cq_offset = UINT64_MAX - 7; break;
    case FATE_BEYOND: header->fate_offset = header->segment_bytes - 8; break;
    case SEGMENT_LARGER_THAN_FILE: header->segment_bytes *= 2; break;
    case RING_OF_ANOTHER: header->ring++; break;
    case BOOT_OF_ANOTHER: header->boot_id[1]++; break;
    case ENGINE_OF_ANOTHER: header->engine++; break;
    default: break;
    }
}

static void make_ring(struct engine *engine, const union message *request, union answer *with)
{
    const uint64_t bytes = 16384;
    enum trick trick = engine->victim == VR_KIND_RING ? engine->trick : HONEST;
    struct vr_segment header;
    int ends[2], fds[3];
    memset(&header, 0, sizeof header);
    header.magic = VR_MAGIC;
    header.abi_version = VR_ABI_VERSION;
    header.header_bytes = 4096;
    header.sq_entries = request->ring.sq_entries;
    header.cq_entries = request->ring.cq_entries;
    header.sq_offset = 4096;
    header.cq_offset = 8192;
    header.fate_offset = 12288;
    header.sqe_stride = 64;
    header.cqe_stride = 32;
    header.fate_stride = 16;
    header.first_index = FIRST_INDEX;
    header.segment_bytes = bytes;
    header.boot_id[0] = 11;
    header.boot_id[1] = 12;
    header.engine = 1;
    header.ring = RING_NUMBER;
    spoil(&header, trick);
    fds[0] = memory(trick, bytes);
    if (trick != NO_MEMFD && pwrite(fds[0], &header, sizeof header, 0) < 0)
        _exit(1);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0)
        _exit(1);
    fds[1] = ends[0]; /* the other end stays open here until the process ends */
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0)
        _exit(1);
    fds[2] = ends[0];
    engine->rings++;
    with->ring.ring = RING_NUMBER;
    with->ring.segment_bytes = bytes;
    if (trick == SIZE_ZERO)
        with->ring.segment_bytes = 0;
    if (trick == SIZE_OVER_ADDRESS_SPACE)
        with->ring.segment_bytes = UINT64_MAX;
    answer_tricked(engine, request, with, sizeof with->ring, fds, 3);
}

static void make_region(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_REGION ? engine->trick : HONEST;
    int fd = -1;
    with->region.region = REGION_ID;
    with->region.bytes = request->region.bytes;
    if (trick == SIZE_OF_ANOTHER)
        with->region.bytes -= 4096;
    if (trick == SIZE_OVER_ADDRESS_SPACE)
        with->region.bytes = UINT64_MAX;
    if (request->region.source == VR_REGION_ALLOCATED)
        fd = memory(trick, request->region.bytes);
    engine->regions++;
    answer_tricked(engine, request, with, sizeof with->region, &fd, fd >= 0 ? 1 : 0);
    vr_close_fd_(&fd);
}

static void connect_peer(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_CONNECT ? engine->trick : HONEST;
    if (strncmp(request->connect.url, "unix:/", 6) != 0 || request->connect.reserved != 0)
        _exit(1);
    with->connect.peer = trick == PEER_ZERO ? 0 : (uint32_t)engine->messages[VR_KIND_CONNECT];
    with->connect.fabric = trick == FABRIC_HUGE ? 256 : VR_FABRIC_VERBS;
    if (trick == FABRIC_OF_ANOTHER)
        with->connect.fabric = VR_FABRIC_LOCAL;
    with->connect.rail = trick == RAIL_HUGE ? 256 : 9;
    answer_tricked(engine, request, with, sizeof with->connect, NULL, 0);
}

/* There are two: at places 3 and 8. */
static void tell_peers(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_PEERS ? engine->trick : HONEST;
    uint32_t at = request->peers.at;
    if (request->peers.reserved != 0)
        _exit(1);
    if (at > 8) {
        with->reply.status = -ENOENT;
        answer_tricked(engine, request, with, sizeof with->reply, NULL, 0);
        return;
    }
    with->peers.at = trick == PLACE_BEFORE ? at - 1 : at > 3 ? 8 : 3;
    with->peers.count = 2;
    with->peers.phase = VR_PHASE_UP;
    with->peers.direction = VR_PEER_OURS;
    with->peers.rails_count = trick == RAILS_TOO_MANY ? VR_PEER_RAILS_MAX + 1 : 1;
    with->peers.rails[0].rail = 9;
    with->peers.rails[0].state = VR_JOINT_UP;
    memset(with->peers.place, 'p', sizeof with->peers.place);
    memcpy(with->peers.error, "gone", 5);
    with->peers.error[VR_PEER_ERROR_BYTES - 1] = trick == TEXT_UNPADDED ? 'x' : '\0';
    answer_tricked(engine, request, with, sizeof with->peers, NULL, 0);
}

/* There are two. */
static void tell_card(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_CARDS ? engine->trick : HONEST;
    uint32_t card = request->cards.card;
    if (request->cards.reserved != 0)
        _exit(1);
    if (card > 1) {
        with->reply.status = -ENOENT;
        answer_tricked(engine, request, with, sizeof with->reply, NULL, 0);
        return;
    }
    with->cards.card = trick == PLACE_BEFORE ? card + 1 : card;
    with->cards.count = 2;
    with->cards.window_bytes = UINT64_C(1) << 33;
    with->cards.window_ops = 64;
    with->cards.window_wrs = 256;
    with->cards.addresses_count = trick == RAILS_TOO_MANY ? VR_CARD_ADDRESSES_MAX + 1 : 1;
    with->cards.addresses[0][15] = 7;
    memcpy(with->cards.name, "rxe0 port 1", 12);
    with->cards.name[VR_CARD_NAME_BYTES - 1] = trick == TEXT_UNPADDED ? 'x' : '\0';
    answer_tricked(engine, request, with, sizeof with->cards, NULL, 0);
}

static void make_recorder(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_RECORDER ? engine->trick : HONEST;
    struct vr_recorder_header header;
    int fd;
    if (request->recorder.session != VR_SESSION_OWN || request->recorder.reserved != 0)
        _exit(1);
    memset(&header, 0, sizeof header);
    header.magic = VR_RECORDER_MAGIC + (trick == MAGIC);
    header.abi_version = trick == VERSION ? 2 : VR_ABI_VERSION;
    header.header_bytes = trick == HEADER_TOO_SMALL ? 64 : VR_RECORDER_HEADER_BYTES;
    header.entries = trick == ENTRIES_ODD ? 3 : trick == ENTRIES_OF_ANOTHER ? 128 : 64;
    header.entry_stride = trick == STRIDE_SHORT ? 56 : trick == STRIDE_UNALIGNED ? 68 : 64;
    header.session = trick == SIZE_OF_ANOTHER ? 4 : 3;
    with->recorder.session = 3;
    with->recorder.entries = 64;
    with->recorder.bytes = trick == SIZE_ZERO ? 0 : 8192;
    fd = memory(trick, 8192);
    if (trick != NO_MEMFD && pwrite(fd, &header, sizeof header, 0) < 0)
        _exit(1);
    answer_tricked(engine, request, with, sizeof with->recorder, &fd, 1);
    vr_close_fd_(&fd);
}

static void make_telemetry(struct engine *engine, const union message *request, union answer *with)
{
    enum trick trick = engine->victim == VR_KIND_TELEMETRY ? engine->trick : HONEST;
    const uint64_t bytes = 4096 + 9 * 4096;
    struct vr_telemetry_header header;
    int fd;
    memset(&header, 0, sizeof header);
    header.magic = VR_TELEMETRY_MAGIC + (trick == MAGIC);
    header.abi_version = trick == VERSION ? 2 : VR_ABI_VERSION;
    header.header_bytes = trick == HEADER_TOO_SMALL ? 64 : VR_TELEMETRY_HEADER_BYTES;
    header.block_stride = trick == STRIDE_SHORT ? 4088 : trick == STRIDE_UNALIGNED ? 4100 : 4096;
    header.counters = VR_BLOCK_COUNTERS;
    header.buckets = trick == ENTRIES_ODD ? 239 : VR_HISTOGRAM_BUCKETS;
    header.unit_ns = VR_HISTOGRAM_UNIT_NS;
    header.steps = VR_HISTOGRAM_STEPS;
    header.lanes = VR_TELEMETRY_LANES;
    header.rails = 1;
    header.sessions = trick == ENTRIES_OF_ANOTHER ? 2 : 1;
    header.boot_id[0] = 11;
    header.boot_id[1] = trick == BOOT_OF_ANOTHER ? 13 : 12;
    with->telemetry.bytes = trick == SIZE_ZERO ? 0 : bytes;
    fd = memory(trick, bytes);
    if (trick != NO_MEMFD && pwrite(fd, &header, sizeof header, 0) < 0)
        _exit(1);
    answer_tricked(engine, request, with, sizeof with->telemetry, &fd, 1);
    vr_close_fd_(&fd);
}

/* Takes a request and looks at what a real engine would look at. */
static void take(struct engine *engine, union message *request)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 4)];
    } control;
    struct iovec part;
    struct msghdr message;
    ssize_t count;
    part.iov_base = request;
    part.iov_len = sizeof *request;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    count = recvmsg(engine->fd, &message, 0);
    if (count <= 0)
        _exit(0);
    if ((size_t)count != request->head.bytes || request->head.reserved != 0)
        _exit(1);
    if (request->head.kind == VR_KIND_REGION && request->region.source == VR_REGION_MEMFD) {
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        int fd;
        if (rights == NULL)
            _exit(1);
        memcpy(&fd, CMSG_DATA(rights), sizeof fd);
        if (fcntl(fd, VR_SEALS_GET_) != VR_SEALS_SIZE_)
            _exit(1);
        close(fd);
    }
}

static void serve_one(struct engine *engine)
{
    union message request;
    union answer with;
    int fd;
    memset(&with, 0, sizeof with);
    take(engine, &request);
    engine->messages[request.head.kind & 31]++;
    switch ((enum vr_kind)request.head.kind) {
    case VR_KIND_HELLO:
        with.hello.version = VR_ABI_VERSION;
        if (engine->victim == VR_KIND_HELLO && engine->trick == VERSION)
            with.hello.version = 2;
        if (engine->victim == VR_KIND_HELLO && engine->trick == FEATURES)
            with.hello.features = 1;
        with.hello.session = 3;
        with.hello.engine = 1;
        with.hello.boot_id[0] = 11;
        with.hello.boot_id[1] = 12;
        fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
        answer_tricked(engine, &request, &with, sizeof with.hello, &fd, 1);
        close(fd);
        break;
    case VR_KIND_RING:
        make_ring(engine, &request, &with);
        break;
    case VR_KIND_REGION:
        make_region(engine, &request, &with);
        break;
    case VR_KIND_RELEASE:
        if (request.release.object == VR_OBJECT_RING && request.release.id == RING_NUMBER)
            engine->rings--;
        if (request.release.object == VR_OBJECT_REGION && request.release.id == REGION_ID)
            engine->regions--;
        answer_tricked(engine, &request, &with, sizeof with.reply, NULL, 0);
        break;
    case VR_KIND_EXPORT:
        memset(with.exported.secret, 0x5a, VR_SECRET_BYTES);
        answer_tricked(engine, &request, &with, sizeof with.exported, NULL, 0);
        break;
    case VR_KIND_IMPORT:
        with.imported.region = REGION_ID + 1;
        with.imported.rights = request.imported.rights;
        with.imported.bytes = request.imported.uid + UINT64_C(1000) * request.imported.peer;
        answer_tricked(engine, &request, &with, sizeof with.imported, NULL, 0);
        break;
    case VR_KIND_PROBE:
        with.probe.opcodes = 0xf7f;
        with.probe.features = VR_FEATURE_RECORDER | VR_FEATURE_TELEMETRY | VR_FEATURE_PEERS |
                              VR_FEATURE_CARDS;
        answer_tricked(engine, &request, &with, sizeof with.probe, NULL, 0);
        break;
    case VR_KIND_RECORDER:
        make_recorder(engine, &request, &with);
        break;
    case VR_KIND_TELEMETRY:
        make_telemetry(engine, &request, &with);
        break;
    case VR_KIND_STATS:
        with.stats.counters[VR_COUNTER_RINGS] = engine->rings;
        with.stats.counters[VR_COUNTER_REGIONS] = engine->regions;
        with.stats.counters[VR_COUNTERS - 1] = engine->messages[VR_KIND_MAPPED];
        answer_tricked(engine, &request, &with, sizeof with.stats, NULL, 0);
        break;
    case VR_KIND_CANCEL:
        with.cancel.record = request.query.target;
        answer_tricked(engine, &request, &with, sizeof with.cancel, NULL, 0);
        break;
    case VR_KIND_WHY:
        with.why.number = request.query.target;
        with.why.bytes = request.query.ring;
        answer_tricked(engine, &request, &with, sizeof with.why, NULL, 0);
        break;
    case VR_KIND_MAPPED:
        answer_tricked(engine, &request, &with, sizeof with.reply, NULL, 0);
        break;
    case VR_KIND_CONNECT:
        connect_peer(engine, &request, &with);
        break;
    case VR_KIND_PEERS:
        tell_peers(engine, &request, &with);
        break;
    case VR_KIND_CARDS:
        tell_card(engine, &request, &with);
        break;
    case VR_KIND_PREPARE:
        _exit(1);
    }
}

/* ----- Meeting it ----- */

static char socket_path[108];
static int listener = -1;

static pid_t fork_engine(enum trick trick, enum vr_kind victim)
{
    struct engine engine;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0)
        return child;
    signal(SIGPIPE, SIG_IGN);
    memset(&engine, 0, sizeof engine);
    engine.trick = trick;
    engine.victim = victim;
    engine.fd = accept(listener, NULL, NULL);
    vr_close_fd_(&listener);
    for (;;)
        serve_one(&engine);
}

static void end_engine(pid_t child)
{
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *list = opendir("/proc/self/fd");
    CHECK(list != NULL);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

static void listen_somewhere(const char *directory)
{
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    snprintf(socket_path, sizeof socket_path, "%s/engine.sock", directory);
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (const struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(listener, 4) == 0);
}

/* What a call against a trick must come to. */
struct expectation {
    const char *name;
    enum trick trick;
    enum vr_kind victim;
    int result;
    int goes_on; /* the session does, and everything is given back */
};

static int call(struct vr_session *session, const struct expectation *want)
{
    struct vr_ring ring;
    struct vr_region region;
    struct vr_probe_reply probe;
    struct vr_peer peer;
    struct vr_recorder recorder;
    struct vr_telemetry telemetry;
    struct vr_peers_reply told;
    struct vr_cards_reply card;
    int status;
    switch (want->victim) {
    case VR_KIND_PEERS:
        status = vr_peers(session, 2, &told);
        CHECK(status < 0);
        CHECK(told.at == 0 && told.place[0] == '\0' && told.rails_count == 0);
        return status;
    case VR_KIND_CARDS:
        status = vr_cards(session, 1, &card);
        CHECK(status < 0);
        CHECK(card.card == 0 && card.name[0] == '\0' && card.addresses_count == 0);
        return status;
    case VR_KIND_CONNECT:
        /* Asked for any, a fabric that cannot be is still found out. */
        status = vr_connect_peer(session, "unix:/other",
                                 want->trick == FABRIC_HUGE ? 0 : VR_FABRIC_VERBS, &peer);
        CHECK(status < 0);
        CHECK(peer.session == NULL && peer.number == 0);
        return status;
    case VR_KIND_RING:
    case VR_KIND_MAPPED:
        status = vr_ring_create(session, 64, 64, &ring);
        CHECK(status < 0);
        CHECK(ring.segment == NULL && ring.sq_bell == -1 && ring.cq_bell == -1);
        CHECK(vr_ring_free(&ring) == 0);
        return status;
    case VR_KIND_RECORDER:
        status = vr_recorder_open(session, &recorder);
        CHECK(status < 0);
        CHECK(recorder.data == NULL && recorder.fd == -1);
        vr_recorder_free(&recorder);
        return status;
    case VR_KIND_TELEMETRY:
        status = vr_telemetry_open(session, &telemetry);
        CHECK(status < 0);
        CHECK(telemetry.data == NULL);
        vr_telemetry_free(&telemetry);
        return status;
    case VR_KIND_REGION:
        status = vr_region_alloc(session, REGION_BYTES, 0, &region);
        CHECK(status < 0);
        CHECK(region.data == NULL && vr_region_free(&region) == 0);
        return status;
    default:
        status = vr_probe(session, &probe);
        CHECK(status < 0);
        CHECK(probe.opcodes == 0);
        return status;
    }
}

static void meet(const struct expectation *want)
{
    unsigned before = open_descriptors();
    uint64_t counters[VR_COUNTERS];
    struct vr_session session;
    pid_t child;
    int status;
    trying = want->name;
    child = fork_engine(want->trick, want->victim);
    status = vr_connect_as(socket_path, "control", &session);
    if (want->victim == VR_KIND_HELLO) {
        CHECK(status == want->result);
        CHECK(session.fd == -1 && session.engine_pidfd == -1);
        CHECK(session.error_text[0] != '\0');
    } else {
        CHECK(status == 0);
        CHECK(session.session == 3 && vr_engine_dead(&session, 0) == 0);
        if (want->trick == STAYS_SILENT)
            session.reply_timeout_ns = 10000000;
        CHECK(call(&session, want) == want->result);
        CHECK(session.error_text[0] != '\0');
        status = vr_stats(&session, VR_STATS_SESSION, counters);
        CHECK(status == (want->goes_on ? 0 : want->result));
        if (want->goes_on) {
            CHECK(counters[VR_COUNTER_RINGS] == 0 && counters[VR_COUNTER_REGIONS] == 0);
            CHECK(session.error_text[0] == '\0' && session.error_detail == VR_DETAIL_NONE);
        }
    }
    vr_close(&session);
    vr_close(&session);
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) < 0);
    end_engine(child);
    CHECK(open_descriptors() == before);
}

static void lies_are_found_out(void)
{
    static const struct expectation cases[] = {
        {"hello: tag", TAG_OF_ANOTHER, VR_KIND_HELLO, -EPROTO, 0},
        {"hello: version", VERSION, VR_KIND_HELLO, -EPROTO, 0},
        {"hello: features", FEATURES, VR_KIND_HELLO, -EPROTO, 0},
        {"hello: refused", REFUSED, VR_KIND_HELLO, -EDQUOT, 0},
        {"hello: hang-up", HANGS_UP, VR_KIND_HELLO, -EPIPE, 0},
        {"hello: no pidfd", NO_DESCRIPTORS, VR_KIND_HELLO, -EPROTO, 0},
        {"hello: many descriptors", MANY_DESCRIPTORS_MORE, VR_KIND_HELLO, -EPROTO, 0},
        {"probe: tag", TAG_OF_ANOTHER, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: kind", KIND_OF_ANOTHER, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: kind without reply bit", KIND_WITHOUT_REPLY, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: reserved", RESERVED_SET, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: bytes", BYTES_TOO_MANY, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: status above 0", STATUS_POSITIVE, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: status no errno", STATUS_NO_ERRNO, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: shorter", SHORTER, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: longer", LONGER, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: head alone", HEAD_ALONE, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: less than a head", LESS_THAN_HEAD, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: huge", HUGE_MESSAGE, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: refused", REFUSED, VR_KIND_PROBE, -EDQUOT, 1},
        {"probe: refused at length", REFUSED_AT_LENGTH, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: refused with a gift", REFUSED_WITH_DESCRIPTOR, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: a gift", ONE_DESCRIPTOR_MORE, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: many gifts", MANY_DESCRIPTORS_MORE, VR_KIND_PROBE, -EPROTO, 0},
        {"probe: hang-up", HANGS_UP, VR_KIND_PROBE, -EPIPE, 0},
        {"probe: silence", STAYS_SILENT, VR_KIND_PROBE, -ETIMEDOUT, 0},
        {"ring: a descriptor more", ONE_DESCRIPTOR_MORE, VR_KIND_RING, -EPROTO, 0},
        {"ring: many more", MANY_DESCRIPTORS_MORE, VR_KIND_RING, -EPROTO, 0},
        {"ring: a descriptor less", ONE_DESCRIPTOR_LESS, VR_KIND_RING, -EPROTO, 0},
        {"ring: none", NO_DESCRIPTORS, VR_KIND_RING, -EPROTO, 0},
        {"ring: hang-up", HANGS_UP, VR_KIND_RING, -EPIPE, 0},
        {"ring: hang-up at MAPPED", HANGS_UP, VR_KIND_MAPPED, -EPIPE, 0},
        {"ring: MAPPED with a gift", ONE_DESCRIPTOR_MORE, VR_KIND_MAPPED, -EPROTO, 0},
        {"ring: unsealed", UNSEALED, VR_KIND_RING, -EPROTO, 1},
        {"ring: sealed by half", SEALED_HALF, VR_KIND_RING, -EPROTO, 1},
        {"ring: no memfd", NO_MEMFD, VR_KIND_RING, -EPROTO, 1},
        {"ring: file too small", FILE_TOO_SMALL, VR_KIND_RING, -EPROTO, 1},
        {"ring: size 0", SIZE_ZERO, VR_KIND_RING, -EPROTO, 1},
        {"ring: size 2^64 - 1", SIZE_OVER_ADDRESS_SPACE, VR_KIND_RING, -EPROTO, 1},
        {"ring: magic", MAGIC, VR_KIND_RING, -EPROTO, 1},
        {"ring: version", VERSION, VR_KIND_RING, -EPROTO, 1},
        {"ring: features", FEATURES, VR_KIND_RING, -EPROTO, 1},
        {"ring: header too small", HEADER_TOO_SMALL, VR_KIND_RING, -EPROTO, 1},
        {"ring: header too large", HEADER_TOO_LARGE, VR_KIND_RING, -EPROTO, 1},
        {"ring: other entries", ENTRIES_OF_ANOTHER, VR_KIND_RING, -EPROTO, 1},
        {"ring: three entries", ENTRIES_ODD, VR_KIND_RING, -EPROTO, 1},
        {"ring: stride 0", STRIDE_ZERO, VR_KIND_RING, -EPROTO, 1},
        {"ring: stride short", STRIDE_SHORT, VR_KIND_RING, -EPROTO, 1},
        {"ring: stride unaligned", STRIDE_UNALIGNED, VR_KIND_RING, -EPROTO, 1},
        {"ring: stride huge", STRIDE_HUGE, VR_KIND_RING, -EPROTO, 1},
        {"ring: offset in the header", OFFSET_IN_HEADER, VR_KIND_RING, -EPROTO, 1},
        {"ring: offset unaligned", OFFSET_UNALIGNED, VR_KIND_RING, -EPROTO, 1},
        {"ring: offset beyond", OFFSET_BEYOND, VR_KIND_RING, -EPROTO, 1},
        {"ring: offset wraps", OFFSET_WRAPS, VR_KIND_RING, -EPROTO, 1},
        {"ring: fates beyond", FATE_BEYOND, VR_KIND_RING, -EPROTO, 1},
        {"ring: segment larger", SEGMENT_LARGER_THAN_FILE, VR_KIND_RING, -EPROTO, 1},
        {"ring: another ring", RING_OF_ANOTHER, VR_KIND_RING, -EPROTO, 1},
        {"ring: another boot", BOOT_OF_ANOTHER, VR_KIND_RING, -EPROTO, 1},
        {"ring: another engine", ENGINE_OF_ANOTHER, VR_KIND_RING, -EPROTO, 1},
        {"region: unsealed", UNSEALED, VR_KIND_REGION, -EPROTO, 1},
        {"region: no memfd", NO_MEMFD, VR_KIND_REGION, -EPROTO, 1},
        {"region: file too small", FILE_TOO_SMALL, VR_KIND_REGION, -EPROTO, 1},
        {"region: smaller", SIZE_OF_ANOTHER, VR_KIND_REGION, -EPROTO, 1},
        {"region: size 2^64 - 1", SIZE_OVER_ADDRESS_SPACE, VR_KIND_REGION, -EPROTO, 1},
        {"region: a descriptor more", ONE_DESCRIPTOR_MORE, VR_KIND_REGION, -EPROTO, 0},
        {"region: none", NO_DESCRIPTORS, VR_KIND_REGION, -EPROTO, 0},
        {"recorder: refused", REFUSED, VR_KIND_RECORDER, -EDQUOT, 1},
        {"recorder: none", NO_DESCRIPTORS, VR_KIND_RECORDER, -EPROTO, 0},
        {"recorder: unsealed", UNSEALED, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: no memfd", NO_MEMFD, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: file too small", FILE_TOO_SMALL, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: size 0", SIZE_ZERO, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: magic", MAGIC, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: version", VERSION, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: header too small", HEADER_TOO_SMALL, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: three entries", ENTRIES_ODD, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: entries beyond", ENTRIES_OF_ANOTHER, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: stride short", STRIDE_SHORT, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: stride unaligned", STRIDE_UNALIGNED, VR_KIND_RECORDER, -EPROTO, 1},
        {"recorder: another session", SIZE_OF_ANOTHER, VR_KIND_RECORDER, -EPROTO, 1},
        {"telemetry: refused", REFUSED, VR_KIND_TELEMETRY, -EDQUOT, 1},
        {"telemetry: none", NO_DESCRIPTORS, VR_KIND_TELEMETRY, -EPROTO, 0},
        {"telemetry: unsealed", UNSEALED, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: no memfd", NO_MEMFD, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: file too small", FILE_TOO_SMALL, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: size 0", SIZE_ZERO, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: magic", MAGIC, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: version", VERSION, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: header too small", HEADER_TOO_SMALL, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: other buckets", ENTRIES_ODD, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: blocks beyond", ENTRIES_OF_ANOTHER, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: stride short", STRIDE_SHORT, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: stride unaligned", STRIDE_UNALIGNED, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"telemetry: another boot", BOOT_OF_ANOTHER, VR_KIND_TELEMETRY, -EPROTO, 1},
        {"connect: refused", REFUSED, VR_KIND_CONNECT, -EDQUOT, 1},
        {"connect: a gift", ONE_DESCRIPTOR_MORE, VR_KIND_CONNECT, -EPROTO, 0},
        {"connect: peer 0", PEER_ZERO, VR_KIND_CONNECT, -EPROTO, 1},
        {"connect: another fabric", FABRIC_OF_ANOTHER, VR_KIND_CONNECT, -EPROTO, 1},
        {"connect: fabric 256", FABRIC_HUGE, VR_KIND_CONNECT, -EPROTO, 1},
        {"connect: rail 256", RAIL_HUGE, VR_KIND_CONNECT, -EPROTO, 1},
        {"peers: refused", REFUSED, VR_KIND_PEERS, -EDQUOT, 1},
        {"peers: a gift", ONE_DESCRIPTOR_MORE, VR_KIND_PEERS, -EPROTO, 0},
        {"peers: shorter", SHORTER, VR_KIND_PEERS, -EPROTO, 0},
        {"peers: a place before", PLACE_BEFORE, VR_KIND_PEERS, -EPROTO, 1},
        {"peers: 13 rails", RAILS_TOO_MANY, VR_KIND_PEERS, -EPROTO, 1},
        {"peers: text unpadded", TEXT_UNPADDED, VR_KIND_PEERS, -EPROTO, 1},
        {"cards: refused", REFUSED, VR_KIND_CARDS, -EDQUOT, 1},
        {"cards: a gift", ONE_DESCRIPTOR_MORE, VR_KIND_CARDS, -EPROTO, 0},
        {"cards: shorter", SHORTER, VR_KIND_CARDS, -EPROTO, 0},
        {"cards: another one", PLACE_BEFORE, VR_KIND_CARDS, -EPROTO, 1},
        {"cards: 5 addresses", RAILS_TOO_MANY, VR_KIND_CARDS, -EPROTO, 1},
        {"cards: text unpadded", TEXT_UNPADDED, VR_KIND_CARDS, -EPROTO, 1},
    };
    size_t at;
    for (at = 0; at < sizeof cases / sizeof cases[0]; at++)
        meet(&cases[at]);
}

static void a_refusal_tells_why_and_cannot_paint(void)
{
    struct vr_session session;
    struct vr_probe_reply probe;
    pid_t child = fork_engine(REFUSED, VR_KIND_PROBE);
    trying = "the text of a refusal";
    CHECK(vr_connect(socket_path, &session) == 0);
    CHECK(vr_probe(&session, &probe) == -EDQUOT);
    CHECK(session.error_detail == VR_DETAIL_QUOTA);
    CHECK(strcmp(session.error_text, "quota?[2J rings") == 0);
    vr_close(&session);
    end_engine(child);
}

/* It may be seen to hang up before it is gone, never to live on. */
static void death_ends_calls(void)
{
    struct vr_session session;
    struct vr_probe_reply probe;
    int status;
    pid_t child = fork_engine(DIES, VR_KIND_PROBE);
    trying = "the engine's death";
    CHECK(vr_connect(socket_path, &session) == 0);
    status = vr_probe(&session, &probe);
    CHECK(status == -ESHUTDOWN || status == -EPIPE);
    CHECK(vr_engine_dead(&session, -1) == 1);
    CHECK(vr_probe(&session, &probe) == status);
    vr_close(&session);
    CHECK(vr_engine_dead(&session, 0) == -EBADF);
    end_engine(child);
}

static void nobody_there(void)
{
    struct vr_session session;
    char path[200];
    trying = "a socket that nobody serves";
    memset(path, 'x', sizeof path);
    path[199] = '\0';
    CHECK(vr_connect("/nonexistent/engine.sock", &session) == -ENOENT);
    CHECK(session.fd == -1 && session.error_text[0] != '\0');
    CHECK(vr_connect(path, &session) == -ENAMETOOLONG);
    CHECK(vr_connect("", &session) == -ENAMETOOLONG);
    vr_close(&session);
}

/* What was made at the engine is given back when its descriptors do not fit into this process. */
static void too_many_open_files(void)
{
    struct vr_session session;
    struct vr_ring ring;
    uint64_t counters[VR_COUNTERS];
    struct rlimit old, tight;
    pid_t child = fork_engine(HONEST, VR_KIND_HELLO);
    unsigned before;
    trying = "too many open files";
    CHECK(vr_connect(socket_path, &session) == 0);
    before = open_descriptors();
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    tight = old;
    tight.rlim_cur = (rlim_t)session.engine_pidfd + 3; /* two more, where three are needed */
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    CHECK(vr_ring_create(&session, 64, 64, &ring) == -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(open_descriptors() == before);
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) == 0);
    CHECK(counters[VR_COUNTER_RINGS] == 0);
    CHECK(vr_ring_create(&session, 64, 64, &ring) == 0);
    CHECK(vr_ring_free(&ring) == 0);
    vr_close(&session);
    end_engine(child);
}

static void an_honest_engine_is_understood(void)
{
    unsigned before = open_descriptors();
    uint8_t secret[VR_SECRET_BYTES];
    uint64_t counters[VR_COUNTERS], record = 0;
    char name[VR_NAME_BYTES + 2];
    struct vr_session session;
    struct vr_probe_reply probe;
    char url[VR_URL_BYTES + 2];
    struct vr_region allocated, own, none;
    struct vr_peer peer;
    struct vr_remote remote;
    struct vr_peers_reply told;
    struct vr_cards_reply card;
    struct vr_why_reply why;
    struct vr_ring ring;
    pid_t child = fork_engine(HONEST, VR_KIND_HELLO);
    trying = "an honest engine";
    CHECK(vr_connect(socket_path, &session) == 0);
    CHECK(vr_probe(&session, &probe) == 0 && probe.opcodes == 0xf7f);
    CHECK(vr_ring_create(&session, 32, 64, &ring) == 0);
    CHECK(ring.ring == RING_NUMBER && vr_room(&ring) == 32 && vr_ring_fd(&ring) >= 0);
    CHECK(vr_region_alloc(&session, REGION_BYTES, 0, &allocated) == 0);
    CHECK(allocated.id == REGION_ID && allocated.bytes == REGION_BYTES);
    memset(allocated.data, 1, REGION_BYTES);
    CHECK(vr_region_memfd(&session, REGION_BYTES, &own) == 0);
    memset(own.data, 1, REGION_BYTES);
    CHECK(vr_region_memfd(&session, UINT64_MAX, &none) == -EINVAL && none.data == NULL);
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) == 0);
    CHECK(counters[VR_COUNTER_RINGS] == 1 && counters[VR_COUNTER_REGIONS] == 2);
    CHECK(counters[VR_COUNTERS - 1] == 2); /* a ring and an allocated region were acknowledged */
    memset(name, 'n', sizeof name);
    name[VR_NAME_BYTES + 1] = '\0';
    CHECK(vr_export(&allocated, name, VR_RIGHTS_ALL, secret) == -EINVAL);
    CHECK(session.error_detail == VR_DETAIL_NAME);
    CHECK(vr_export(&allocated, "", VR_RIGHTS_ALL, secret) == -EINVAL);
    name[VR_NAME_BYTES] = '\0';
    CHECK(vr_export(&allocated, name, VR_RIGHTS_ALL, secret) == 0 && secret[31] == 0x5a);
    CHECK(vr_import(&session, 77, name, secret, VR_RIGHT_READ, &remote) == 0);
    CHECK(remote.id == REGION_ID + 1 && remote.rights == VR_RIGHT_READ && remote.bytes == 77);
    memset(url, 'u', sizeof url);
    memcpy(url, "unix:/", 6);
    url[VR_URL_BYTES + 1] = '\0';
    CHECK(vr_connect_peer(&session, url, 0, &peer) == -EINVAL && peer.number == 0);
    CHECK(session.error_detail == VR_DETAIL_URL);
    CHECK(vr_connect_peer(&session, "", 0, &peer) == -EINVAL);
    url[VR_URL_BYTES] = '\0';
    CHECK(vr_connect_peer(&session, url, 0, &peer) == 0 && peer.number == 1);
    CHECK(vr_connect_peer(&session, "unix:/a", VR_FABRIC_VERBS, &peer) == 0 && peer.number == 2);
    CHECK(peer.session == &session && peer.fabric == VR_FABRIC_VERBS && peer.rail == 9);
    CHECK(vr_import_from(&peer, 77, name, secret, VR_RIGHT_READ, &remote) == 0);
    CHECK(remote.id == REGION_ID + 1 && remote.bytes == 2077);
    CHECK(vr_peers(&session, 0, &told) == 0 && told.at == 3 && told.count == 2);
    CHECK(told.phase == VR_PHASE_UP && told.rails[0].rail == 9 && told.rails[1].rail == 0);
    CHECK(told.place[VR_URL_BYTES - 1] == 'p' && strcmp(told.error, "gone") == 0);
    CHECK(vr_peers(&session, told.at + 1, &told) == 0 && told.at == 8);
    CHECK(vr_peers(&session, told.at + 1, &told) == -ENOENT && told.count == 0);
    CHECK(vr_cards(&session, 0, &card) == 0 && card.card == 0 && card.count == 2);
    CHECK(card.window_bytes == UINT64_C(1) << 33 && card.window_ops == 64 && card.window_wrs == 256);
    CHECK(card.addresses_count == 1 && card.addresses[0][15] == 7);
    CHECK(strcmp(card.name, "rxe0 port 1") == 0);
    CHECK(vr_cards(&session, 1, &card) == 0 && card.card == 1);
    CHECK(vr_cards(&session, 2, &card) == -ENOENT && card.count == 0);
    CHECK(vr_cancel(&ring, VR_CANCEL_BY_RECORD, 99, &record) == 0 && record == 99);
    CHECK(vr_cancel(&ring, VR_CANCEL_BY_NUMBER, 1, NULL) == 0);
    CHECK(vr_why(&ring, VR_CANCEL_BY_NUMBER, 5, &why) == 0);
    CHECK(why.number == 5 && why.bytes == RING_NUMBER);
    CHECK(vr_ring_free(&ring) == 0 && vr_ring_free(&ring) == 0);
    CHECK(vr_region_free(&allocated) == 0 && vr_region_free(&allocated) == 0);
    CHECK(vr_release(&session, VR_OBJECT_REGION, remote.id) == 0);
    CHECK(vr_stats(&session, VR_STATS_SESSION, counters) == 0);
    CHECK(counters[VR_COUNTER_RINGS] == 0 && counters[VR_COUNTER_REGIONS] == 1);
    CHECK(vr_ring_create(&session, 32, 64, &ring) == 0);
    /* Freed after the session: unmapped all the same. */
    vr_close(&session);
    CHECK(vr_ring_free(&ring) == -EPIPE && ring.segment == NULL);
    CHECK(vr_region_free(&own) == -EPIPE && own.data == NULL);
    end_engine(child);
    CHECK(open_descriptors() == before);
}

int main(void)
{
    char directory[] = "/tmp/verbring-control-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    listen_somewhere(directory);
    an_honest_engine_is_understood();
    lies_are_found_out();
    a_refusal_tells_why_and_cannot_paint();
    death_ends_calls();
    nobody_there();
    too_many_open_files();
    CHECK(unlink(socket_path) == 0 && rmdir(directory) == 0);
    printf("%u checks of control calls held\n", checks);
    return 0;
}
