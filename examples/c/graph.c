/* Publishes a page in three parts, as a graph: the number that says "complete" goes out once all
 * parts are there; a part that fails keeps it from going.
 *
 *     cc -Iinclude examples/c/graph.c -o graph
 *     ./graph /run/verbring.sock
 */
#include "verbring.h"

#include <inttypes.h>

#define PART 1024u
#define COMPLETE (3 * PART) /* where the number lies, behind the parts */

static int fail(const struct vr_session *session, const char *step, int status)
{
    fprintf(stderr, "%s: %s\n", step, strerror(-status));
    if (session->error_text[0] != '\0')
        fprintf(stderr, "    %s\n", session->error_text);
    return 1;
}

/* Pushes the graph of one version: three parts, a join of them, and the number after that. Returns
 * the number of the last op, or a negative errno. Its third part goes to `third`. */
static int64_t push_version(struct vr_ring *ring, const struct vr_region *source,
                            const struct vr_remote *page, uint32_t third)
{
    struct vr_sqe sqe;
    int64_t parts[3], whole;
    int part, status;
    for (part = 0; part < 3; part++) {
        vr_prep_write(&sqe, source, (uint64_t)part * PART, page,
                      part == 2 ? third : (uint64_t)part * PART, PART);
        sqe.user_data = ring->pushed;
        parts[part] = vr_push(ring, &sqe);
    }
    whole = vr_join(ring, parts, 3, ring->pushed, 0);
    vr_prep_write(&sqe, source, COMPLETE, page, COMPLETE, 8);
    status = vr_after(ring, &sqe, whole);
    if (status < 0)
        return status;
    sqe.user_data = ring->pushed;
    return vr_push(ring, &sqe);
}

static int publish(struct vr_session *session, struct vr_ring *ring, struct vr_region *source,
                   const struct vr_region *target, const struct vr_remote *page)
{
    uint64_t version, *number = (uint64_t *)source->data + COMPLETE / 8;
    const uint64_t *complete = (const uint64_t *)target->data + COMPLETE / 8;
    for (version = 1; version <= 3; version++) {
        int64_t last;
        int left;
        *number = version;
        /* Of the last version, the third part would end beyond the region and is refused. */
        last = push_version(ring, source, page, version < 3 ? 2 * PART : COMPLETE);
        if (last < 0)
            return fail(session, "push", (int)last);
        for (left = 5; left > 0; left--) {
            struct vr_cqe cqe;
            int status = vr_submit_and_wait(ring, 1, -1);
            if (status < 0)
                return fail(session, "wait", status);
            if (vr_reap(ring, &cqe, 1) != 1)
                return fail(session, "reap", -EPROTO);
            if (cqe.user_data != (uint64_t)last)
                continue;
            if (cqe.res >= 0)
                printf("version %" PRIu64 " is complete\n", version);
            else if ((cqe.flags & VR_CQE_DEP_FAILED) != 0)
                printf("version %" PRIu64 " is not, since an op before it failed: %s\n", version,
                       vr_detail_name(cqe.detail));
        }
        if (*complete != (version < 3 ? version : 2)) {
            fprintf(stderr, "the number does not tell what is complete\n");
            return 1;
        }
    }
    return 0;
}

int main(int count, char **words)
{
    struct vr_session session;
    struct vr_region source, target;
    struct vr_remote page;
    struct vr_ring ring;
    uint8_t secret[VR_SECRET_BYTES];
    char name[VR_NAME_BYTES];
    int status;
    if (count != 2) {
        fprintf(stderr, "usage: graph SOCKET\n");
        return 2;
    }
    status = vr_connect(words[1], &session);
    if (status < 0)
        return fail(&session, "connect", status);
    snprintf(name, sizeof name, "example-graph-%ld", (long)getpid());
    status = vr_region_alloc(&session, COMPLETE + 8, 0, &source);
    if (status == 0)
        status = vr_region_alloc(&session, COMPLETE + 8, 0, &target);
    if (status == 0)
        status = vr_export(&target, name, VR_RIGHT_WRITE, secret);
    if (status == 0)
        status = vr_import(&session, VR_UID_OWN, name, secret, 0, &page);
    if (status == 0)
        status = vr_ring_create(&session, 8, 16, &ring);
    status = status < 0 ? fail(&session, "setup", status)
                        : publish(&session, &ring, &source, &target, &page);
    vr_close(&session);
    return status;
}
