/* The floor: as little as a server of the WSE wire can do, to tell what the machine itself takes.
 *
 *   floor PORT
 *
 * One thread, epoll, no JSON: frames are unmasked, a call of "echo" is answered by moving its bytes, anything else that
 * is not the hello goes to every connection. The answers to one read leave in one write, and so do the broadcasts of
 * one turn, as in the servers that it is compared with. It listens on 127.0.0.1 and runs until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_MAX 65535

typedef struct {
    int fd, index, dirty, wants_write, gone;
    enum { REQUEST, HELLO, OPEN } state;
    char *in, *out; /* what is incomplete, and what waits for the socket */
    size_t in_len, out_len, out_cap;
} Conn;

static Conn **conns, **dirty;
static int conn_count, dirty_count, cap, epoll_fd;

/* SHA-1 of a short text (RFC 3174), for Sec-WebSocket-Accept. */
static uint32_t rol(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1(const char *text, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    unsigned char data[128] = {0};
    size_t n = strlen(text), blocks = n < 56 ? 1 : 2;
    memcpy(data, text, n);
    data[n] = 0x80;
    for (int i = 0; i < 4; i++) data[blocks * 64 - 1 - i] = (n * 8) >> (8 * i);
    for (size_t b = 0; b < blocks; b++) {
        uint32_t w[80], a = h[0], bb = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            unsigned char *p = data + b * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rol(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20) f = (bb & c) | (~bb & d), k = 0x5a827999;
            else if (i < 40) f = bb ^ c ^ d, k = 0x6ed9eba1;
            else if (i < 60) f = (bb & c) | (bb & d) | (c & d), k = 0x8f1bbcdc;
            else f = bb ^ c ^ d, k = 0xca62c1d6;
            uint32_t t = rol(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rol(bb, 30), bb = a, a = t;
        }
        h[0] += a, h[1] += bb, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
}

static void accept_for(const char *key, size_t n, char out[29]) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[120];
    unsigned char digest[21] = {0};
    snprintf(text, sizeof text, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)(n < 64 ? n : 64), key);
    sha1(text, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t v = digest[i * 3] << 16 | digest[i * 3 + 1] << 8 | digest[i * 3 + 2];
        for (int j = 0; j < 4; j++) out[i * 4 + j] = digits[v >> (18 - 6 * j) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void mark_dirty(Conn *c) {
    if (!c->dirty) {
        c->dirty = 1;
        dirty[dirty_count++] = c;
    }
}

static void put(Conn *c, const void *data, size_t n) {
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, data, n);
    c->out_len += n;
    mark_dirty(c);
}

static size_t head_for(unsigned char *head, int first, size_t n) {
    head[0] = first;
    if (n < 126) {
        head[1] = n;
        return 2;
    }
    head[1] = 126;
    head[2] = n >> 8;
    head[3] = n & 255;
    return 4;
}

static void on_message(Conn *c, const char *s, size_t n) {
    static const char welcome[] = "[\"~wse:welcome\",null,null]", response[] = "[\"~wse:response\"";
    unsigned char head[4];
    if (c->state == HELLO) {
        c->state = OPEN;
        put(c, head, head_for(head, 0x81, sizeof welcome - 1));
        put(c, welcome, sizeof welcome - 1);
    } else if (n > 8 && !memcmp(s, "[\"echo\",", 8)) {
        put(c, head, head_for(head, 0x81, sizeof response - 1 + n - 7));
        put(c, response, sizeof response - 1);
        put(c, s + 7, n - 7);
    } else {
        char frame[FRAME_MAX + 4];
        size_t size = head_for((unsigned char *)frame, 0x81, n);
        memcpy(frame + size, s, n);
        for (int i = 0; i < conn_count; i++)
            if (conns[i]->state == OPEN) put(conns[i], frame, size + n);
    }
}

static void upgrade(Conn *c, const char *s, size_t n) {
    static const char name[] = "\r\nsec-websocket-key:";
    char answer[300], accept[29];
    for (size_t i = 0; i + sizeof name < n; i++) {
        if (strncasecmp(s + i, name, sizeof name - 1)) continue;
        const char *key = s + i + sizeof name - 1, *end = memchr(key, '\r', s + n - key);
        while (*key == ' ') key++;
        accept_for(key, end - key, accept);
        put(c, answer, snprintf(answer, sizeof answer,
                                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                "Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: wse-default-json\r\n\r\n", accept));
        c->state = HELLO;
        return;
    }
    c->gone = 1;
}

/* Handles what is complete and returns how many bytes that was. */
static size_t on_bytes(Conn *c, char *s, size_t n) {
    size_t at = 0;
    if (c->state == REQUEST) {
        char *end = memmem(s, n, "\r\n\r\n", 4);
        if (!end) return 0;
        at = end - s + 4;
        upgrade(c, s, at);
    }
    while (!c->gone && n - at >= 6) {
        unsigned char *head = (unsigned char *)s + at, reply[4];
        size_t size = head[1] & 127, start = 6;
        if (size == 127) {
            c->gone = 1;
            break;
        }
        if (size == 126) {
            if (n - at < 8) break;
            size = head[2] << 8 | head[3];
            start = 8;
        }
        if (n - at < start + size) break;
        uint32_t mask;
        memcpy(&mask, head + start - 4, 4);
        char *data = s + at + start;
        size_t i = 0;
        for (uint32_t word; i + 4 <= size; i += 4) {
            memcpy(&word, data + i, 4);
            word ^= mask;
            memcpy(data + i, &word, 4);
        }
        for (; i < size; i++) data[i] ^= ((unsigned char *)&mask)[i & 3];
        int opcode = head[0] & 15;
        if (opcode == 1 || opcode == 2) {
            on_message(c, data, size);
        } else if (opcode == 8 || opcode == 9) {
            put(c, reply, head_for(reply, opcode == 8 ? 0x88 : 0x8a, size));
            put(c, data, size);
            c->gone = opcode == 8;
        }
        at += start + size;
    }
    return at;
}

static void flush(Conn *c) {
    size_t done = 0;
    while (done < c->out_len) {
        ssize_t n = write(c->fd, c->out + done, c->out_len - done);
        if (n <= 0) {
            if (errno != EAGAIN) c->gone = 1;
            break;
        }
        done += n;
    }
    memmove(c->out, c->out + done, c->out_len - done);
    c->out_len -= done;
    if (c->wants_write != (c->out_len > 0)) {
        c->wants_write = c->out_len > 0;
        struct epoll_event event = {EPOLLIN | (c->wants_write ? EPOLLOUT : 0), {.ptr = c}};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    }
}

static void forget(Conn *c) {
    close(c->fd);
    conns[c->index] = conns[--conn_count];
    conns[c->index]->index = c->index;
    free(c->in);
    free(c->out);
    free(c);
}

static void on_readable(Conn *c) {
    static char buffer[2 * (FRAME_MAX + 16)];
    if (c->in_len) memcpy(buffer, c->in, c->in_len);
    ssize_t n = read(c->fd, buffer + c->in_len, sizeof buffer - c->in_len);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        c->gone = 1;
        mark_dirty(c);
        return;
    }
    size_t have = c->in_len + n, used = on_bytes(c, buffer, have);
    if (have - used || c->in_len) {
        c->in_len = have - used;
        c->in = realloc(c->in, c->in_len + 1);
        memcpy(c->in, buffer + used, c->in_len);
    }
    if (c->gone) mark_dirty(c);
}

static void on_connection(int listener) {
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (conn_count == cap) {
        cap = cap ? cap * 2 : 1024;
        conns = realloc(conns, cap * sizeof *conns);
        dirty = realloc(dirty, cap * sizeof *dirty);
    }
    Conn *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->index = conn_count;
    conns[conn_count++] = c;
    struct epoll_event event = {EPOLLIN, {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0),
                                  .sin_addr.s_addr = htonl(0x7f000001)};
    if (argc != 2 || bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) {
        perror("floor PORT");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}}, events[1024];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 1024, -1);
        for (int i = 0; i < n; i++) {
            Conn *c = events[i].data.ptr;
            if (!c) {
                on_connection(listener);
                continue;
            }
            if (events[i].events & ~EPOLLOUT) on_readable(c);
            else mark_dirty(c);
        }
        for (int i = 0; i < dirty_count; i++) {
            Conn *c = dirty[i];
            c->dirty = 0;
            flush(c);
            if (c->gone) forget(c);
        }
        dirty_count = 0;
    }
}
