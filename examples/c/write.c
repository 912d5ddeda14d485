/* Writes a line of text from one region into another, through the engine at a socket.
 *
 *     cc -Iinclude examples/c/write.c -o write
 *     ./write /run/verbring.sock
 *     ./write /run/verbring.sock --peer unix:/run/other.sock --require verbs
 *
 * Both regions are this process's own, so that one program shows both sides: what it exports
 * under a name it imports again with the secret, as another process would. With --peer it exports
 * at that engine, and imports through its own, which reaches the other by queue pairs; --require
 * verbs fails if anything else has carried the bytes. */
#include "verbring.h"

#include <inttypes.h>

#define REGION_BYTES 4096

static int fail(const struct vr_session *session, const char *step, int status)
{
    fprintf(stderr, "%s: %s\n", step, strerror(-status));
    if (session->error_text[0] != '\0')
        fprintf(stderr, "    %s\n", session->error_text);
    return 1;
}

/* Imports from our own engine, or from the one at the URL. */
static int take_up(struct vr_session *session, const char *url, uint32_t require, const char *name,
                   const uint8_t secret[VR_SECRET_BYTES], struct vr_remote *remote)
{
    struct vr_peer peer;
    int status;
    if (url == NULL)
        return vr_import(session, VR_UID_OWN, name, secret, 0, remote);
    status = vr_connect_peer(session, url, require, &peer);
    return status < 0 ? status : vr_import_from(&peer, VR_UID_OWN, name, secret, 0, remote);
}

/* The target is made at `home`, which is `session` too if there is no URL. */
static int write_once(struct vr_session *session, struct vr_session *home, const char *url,
                      uint32_t require)
{
    static const char text[] = "hello through the ring";
    struct vr_region source, target;
    struct vr_remote remote;
    struct vr_ring ring;
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    uint8_t secret[VR_SECRET_BYTES];
    char name[VR_NAME_BYTES];
    int status;

    /* Memory for both sides: one made by the engine, one a memfd of our own. The engine sees
     * nothing else of this process. */
    status = vr_region_alloc(session, REGION_BYTES, 0, &source);
    if (status < 0)
        return fail(session, "region", status);
    status = vr_region_memfd(home, REGION_BYTES, &target);
    if (status < 0)
        return fail(home, "memfd region", status);

    /* Who knows the name and the secret may write, and do nothing else. */
    snprintf(name, sizeof name, "example-%ld", (long)getpid());
    status = vr_export(&target, name, VR_RIGHT_WRITE, secret);
    if (status < 0)
        return fail(home, "export", status);
    status = take_up(session, url, require, name, secret, &remote);
    if (status < 0)
        return fail(session, "import", status);

    status = vr_ring_create(session, 8, 16, &ring);
    if (status < 0)
        return fail(session, "ring", status);

    /* The op: local offset 0 to remote offset 100. From vr_submit until its CQE is here, the
     * bytes belong to the op and must not be changed. */
    memcpy(source.data, text, sizeof text);
    vr_prep_write(&sqe, &source, 0, &remote, 100, (uint32_t)sizeof text);
    sqe.user_data = 42;
    sqe.class_ = VR_CLASS_HIGH;
    if (vr_push(&ring, &sqe) < 0) {
        fprintf(stderr, "push: the SQ is full\n");
        return 1;
    }
    status = vr_submit_and_wait(&ring, 1, -1);
    if (status < 0)
        return fail(session, "wait", status);
    status = vr_reap(&ring, &cqe, 1);
    if (status < 1)
        return fail(session, "reap", status);
    if (cqe.res < 0) {
        fprintf(stderr, "write: %s (%s)\n", strerror(-cqe.res), vr_detail_name(cqe.detail));
        return 1;
    }

    if (require != 0 && vr_cqe_fabric(&cqe) != require) {
        fprintf(stderr, "write: carried by fabric %u\n", vr_cqe_fabric(&cqe));
        return 1;
    }

    printf("record %016" PRIx64 ": %d bytes, queued %" PRIu64 " ns, moved in %" PRIu64 " ns\n",
           cqe.record, cqe.res, vr_cqe_queued_ns(&cqe), vr_cqe_service_ns(&cqe));
    printf("the target holds: %s\n", (const char *)target.data + 100);

    /* The import goes before what it refers to. Ending the session would release all of it too. */
    status = vr_ring_free(&ring);
    if (status == 0)
        status = vr_release(session, VR_OBJECT_REGION, remote.id);
    if (status == 0)
        status = vr_region_free(&target);
    if (status == 0)
        status = vr_region_free(&source);
    return status < 0 ? fail(session, "release", status) : 0;
}

int main(int count, char **words)
{
    struct vr_session session, other;
    const char *url = NULL;
    uint32_t require = 0;
    int status;
    if (count >= 4 && strcmp(words[2], "--peer") == 0 && strncmp(words[3], "unix:", 5) == 0)
        url = words[3];
    if (count == 6 && strcmp(words[4], "--require") == 0 && strcmp(words[5], "verbs") == 0)
        require = VR_FABRIC_VERBS;
    if (count != 2 + (url != NULL ? 2 : 0) + (require != 0 ? 2 : 0)) {
        fprintf(stderr, "usage: write SOCKET [--peer unix:OTHER [--require verbs]]\n");
        return 2;
    }
    status = vr_connect(words[1], &session);
    if (status < 0)
        return fail(&session, "connect", status);
    if (url == NULL) {
        status = write_once(&session, &session, NULL, 0);
    } else {
        status = vr_connect(url + 5, &other);
        status = status < 0 ? fail(&other, "connect to the peer", status)
                            : write_once(&session, &other, url, require);
        vr_close(&other);
    }
    vr_close(&session);
    return status;
}
