/* Copies a file into another process's memory and back, through the ring.
 *
 *     cc -Iinclude examples/c/copy.c -o copy
 *     ./copy SOCKET hold NAME BYTES OUT             holds memory, prints `ready SECRET`
 *     ./copy SOCKET send NAME SECRET FILE BACK      fills it with a file, and fetches that back
 *
 * With `--peer URL` the memory is that of another engine's session, and with `--fabric N` every op
 * must have gone by that fabric. Whatever was sent is in OUT and BACK afterwards. The same program
 * exists in Rust and Python, and each of them can hold what another one sends. */
#include "verbring.h"

#include <inttypes.h>
#include <stdlib.h>

#define CHUNK (UINT32_C(1) << 20)
#define PATIENCE_NS (INT64_C(120) * 1000000000)

static struct vr_session session;

static void must(const char *step, int status)
{
    if (status >= 0)
        return;
    fprintf(stderr, "copy: %s: %s\n", step, strerror(-status));
    if (session.error_text[0] != '\0')
        fprintf(stderr, "    %s\n", session.error_text);
    exit(1);
}

/* Reads all of `path` into `into`, of `bytes`, or writes it there. */
static void file(const char *path, const char *mode, void *memory, uint64_t bytes)
{
    FILE *stream = fopen(path, mode);
    size_t moved = 0;
    if (stream != NULL)
        moved = mode[0] == 'r' ? fread(memory, 1, (size_t)bytes, stream)
                               : fwrite(memory, 1, (size_t)bytes, stream);
    if (stream == NULL || moved != bytes || fclose(stream) != 0) {
        fprintf(stderr, "copy: %s cannot be moved whole\n", path);
        exit(1);
    }
}

static uint64_t bytes_of(const char *path)
{
    FILE *stream = fopen(path, "r");
    long bytes = -1;
    if (stream != NULL && fseek(stream, 0, SEEK_END) == 0)
        bytes = ftell(stream);
    if (bytes <= 0) {
        fprintf(stderr, "copy: %s is empty or not there\n", path);
        exit(1);
    }
    fclose(stream);
    return (uint64_t)bytes;
}

/* Offers memory, and keeps what is there once it is told that it is whole. */
static void hold(const char *name, uint64_t bytes, const char *out)
{
    struct vr_region region;
    struct vr_ring ring;
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    uint8_t secret[VR_SECRET_BYTES];
    unsigned at;

    must("region", vr_region_alloc(&session, bytes, 0, &region));
    must("export", vr_export(&region, name, VR_RIGHTS_ALL, secret));
    must("ring", vr_ring_create(&session, 8, 16, &ring));
    vr_prep_arm(&sqe, &region, 1);
    must("arm", (int)vr_push(&ring, &sqe));
    must("submit", vr_submit(&ring));
    printf("ready ");
    for (at = 0; at < VR_SECRET_BYTES; at++)
        printf("%02x", secret[at]);
    printf("\n");
    fflush(stdout);

    must("being filled", vr_wait(&ring, 1, PATIENCE_NS));
    must("reap", vr_reap(&ring, &cqe, 1));
    must("the notification", cqe.res);
    file(out, "w", region.data, bytes);
}

/* Moves all bytes in chunks, and waits until they are moved. */
static void move(struct vr_ring *ring, int back, struct vr_region *region,
                 struct vr_remote *remote, uint64_t bytes, int fabric)
{
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    uint64_t at, moved = 0;
    for (at = 0; at < bytes; at += CHUNK) {
        uint32_t count = bytes - at < CHUNK ? (uint32_t)(bytes - at) : CHUNK;
        if (back)
            vr_prep_read(&sqe, region, at, remote, at, count);
        else
            vr_prep_write(&sqe, region, at, remote, at, count);
        must("push", (int)vr_push(ring, &sqe));
    }
    must("submit", vr_submit(ring));
    while (moved < bytes) {
        must("wait", vr_wait(ring, 1, PATIENCE_NS));
        while (vr_reap(ring, &cqe, 1) == 1) {
            must(back ? "read" : "write", cqe.res);
            moved += (uint64_t)cqe.res;
            if (fabric >= 0 && cqe.detail >> 8 != fabric) {
                fprintf(stderr, "copy: an op went by fabric %d\n", cqe.detail >> 8);
                exit(1);
            }
        }
    }
}

/* Writes a file there, reads it back, and tells the holder. */
static void send_file(struct vr_remote *remote, const char *path, const char *back, int fabric)
{
    struct vr_region region;
    struct vr_ring ring;
    struct vr_sqe sqe;
    struct vr_cqe cqe;
    uint64_t bytes = bytes_of(path);

    must("region", vr_region_alloc(&session, bytes, 0, &region));
    must("ring", vr_ring_create(&session, 64, 128, &ring));
    file(path, "r", region.data, bytes);
    move(&ring, 0, &region, remote, bytes, fabric);
    memset(region.data, 0, (size_t)bytes);
    move(&ring, 1, &region, remote, bytes, fabric);
    file(back, "w", region.data, bytes);

    vr_prep_write(&sqe, &region, 0, remote, 0, 0);
    vr_set_notify(&sqe, 1);
    must("push", (int)vr_push(&ring, &sqe));
    must("wait", vr_submit_and_wait(&ring, 1, PATIENCE_NS));
    must("reap", vr_reap(&ring, &cqe, 1));
    must("notify", cqe.res);
}

static const char *option(int count, char **words, const char *flag)
{
    int at;
    for (at = 7; at + 1 < count; at++)
        if (strcmp(words[at], flag) == 0)
            return words[at + 1];
    return NULL;
}

int main(int count, char **words)
{
    if (count == 6 && strcmp(words[2], "hold") == 0) {
        must("connect", vr_connect(words[1], &session));
        hold(words[3], strtoull(words[4], NULL, 10), words[5]);
    } else if (count >= 7 && strcmp(words[2], "send") == 0) {
        const char *url = option(count, words, "--peer");
        const char *fabric = option(count, words, "--fabric");
        uint8_t secret[VR_SECRET_BYTES];
        struct vr_remote remote;
        unsigned at;
        for (at = 0; at < VR_SECRET_BYTES; at++) {
            unsigned byte = 0;
            if (sscanf(words[4] + 2 * at, "%2x", &byte) != 1)
                must("secret", -EINVAL);
            secret[at] = (uint8_t)byte;
        }
        must("connect", vr_connect(words[1], &session));
        if (url != NULL) {
            struct vr_peer peer;
            must("peer", vr_connect_peer(&session, url, 0, &peer));
            must("import", vr_import_from(&peer, VR_UID_OWN, words[3], secret, 0, &remote));
        } else {
            must("import", vr_import(&session, VR_UID_OWN, words[3], secret, 0, &remote));
        }
        send_file(&remote, words[5], words[6], fabric == NULL ? -1 : atoi(fabric));
    } else {
        fprintf(stderr, "usage: copy SOCKET hold NAME BYTES OUT\n"
                        "       copy SOCKET send NAME SECRET FILE BACK [--peer URL] "
                        "[--fabric N]\n");
        return 2;
    }
    vr_close(&session);
    printf("ok\n");
    return 0;
}
