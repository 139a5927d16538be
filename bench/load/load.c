/* Load generator: many WebSockets from one thread, in the dialect of each server that is compared.
 *
 *   load HOST PORTS DIALECT call   CONNECTIONS WINDOW SECONDS WARMUP PIDS [ENGINE]
 *   load HOST PORTS DIALECT fanout CONNECTIONS WINDOW SECONDS WARMUP PIDS [ENGINE]
 *   load HOST PORTS DIALECT pass   CONNECTIONS WINDOW SECONDS WARMUP PIDS [ENGINE [RATE]]
 *   load HOST PORTS DIALECT items  CONNECTIONS WINDOW SECONDS WARMUP PIDS [ENGINE]
 *   load HOST PORTS DIALECT idle   CONNECTIONS MEASURED SETTLE 0 PIDS [ENGINE]
 *   load HOST PORTS DIALECT return CONNECTIONS MEASURED SETTLE 0 PIDS [ENGINE]
 *   load HOST PORTS DIALECT hold   CONNECTIONS MEASURED SETTLE 0 PIDS [ENGINE [FIRST]]
 *
 * call: every connection keeps WINDOW calls of "echo" in flight. fanout: the first connection keeps WINDOW broadcasts in
 * flight; one is done when every connection has it. pass: connections are pairs, of which the first one keeps WINDOW
 * messages to the user of the second in flight; with a RATE, so many messages a second begin, whatever is in flight, and
 * their time runs from when they are due. items: the server sends numbered items to every connection, which has credit for
 * WINDOW at first, and grants half of it again whenever it has got as many; the time of an item runs from the grant.
 * idle: the cost of the first MEASURED connections, then the resident memory of the processes when all are open and SETTLE
 * seconds have passed. return: all connections are cut at once; when the processes have been at rest for SETTLE seconds,
 * the cost of MEASURED that come back, to their sessions where the dialect has any. hold: like idle, then it holds the
 * connections until its standard input ends, and lets servers hang up; users are numbered from FIRST, so that several
 * programs can share them.
 *
 * PORTS are those of one server, or of the nodes of a cluster, which get connections in turn, so that both of a pair are
 * on different nodes; and PIDS theirs: their CPU clocks and their resident memory are read, whatever their threads.
 * ENGINE is the process id of what connects them, which is measured by itself.
 *
 * Every answer is compared with the text that is due, but for white space, on the connection where it is due; a
 * broadcast must reach every connection once and in order, and so must a message its one. Anything else ends the program
 * with status 1 and a line on stderr, as do ten seconds without an event. Frames are masked (RFC 6455, 5.3), and call,
 * fanout and pass end with a closing handshake on every connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define OPENING_AT_ONCE 128
#define STALLED_MS 10000
#define TEXT_MAX 512
#define NODES_MAX 16
#define ACK_EVERY 64

enum state { REQUESTED, OPENING, READY, CLOSED };

typedef struct {
    int fd;
    enum state state;
    int wants_write;
    char *in, *out;
    size_t in_len, in_cap, out_len, out_cap;
    long next_number; /* the least that a broadcast, or a message to its user, can have */
    long got;         /* messages since the welcome */
    double since;
    double granted[4]; /* when the last grants were made */
    char *id, *key;    /* of its session, with their quotes */
} Conn;

/* Processes that are measured together. */
typedef struct {
    int pid[NODES_MAX], count;
    unsigned long user, kernel; /* ticks, at the last look */
} Group;

static Conn *conns;
static int conn_count, ready, epoll_fd, leaving, closed;
static double now_;

static void fail(const char *what, const char *text, size_t n) {
    fprintf(stderr, "%s: %.*s\n", what, (int)(n < 300 ? n : 300), text);
    exit(1);
}

static double clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static Group group(const char *pids) {
    Group g = {.count = 0};
    for (const char *at = pids; at && g.count < NODES_MAX; at = strchr(at, ','), at = at ? at + 1 : at)
        if (atoi(at)) g.pid[g.count++] = atoi(at);
    return g;
}

static double cpu_of(const Group *g) {
    clockid_t clock;
    struct timespec t;
    double sum = 0;
    for (int i = 0; i < g->count; i++)
        if (!clock_getcpuclockid(g->pid[i], &clock) && !clock_gettime(clock, &t)) sum += t.tv_sec + t.tv_nsec * 1e-9;
    return sum;
}

static double own_cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* The part of their time that processes have spent in the kernel, since the last look. */
static double kernel_part(Group *g) {
    unsigned long users = 0, kernels = 0;
    for (int i = 0; i < g->count; i++) {
        char path[64], text[1024];
        unsigned long user = 0, kernel = 0;
        snprintf(path, sizeof path, "/proc/%d/stat", g->pid[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        fclose(file);
        char *rest = strrchr(text, ')'); /* the name before it may hold anything */
        if (rest) sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
        users += user;
        kernels += kernel;
    }
    unsigned long user = users - g->user, kernel = kernels - g->kernel;
    g->user = users;
    g->kernel = kernels;
    return user + kernel ? (double)kernel / (user + kernel) : 0;
}

static double rss_kib(const Group *g) {
    double sum = 0;
    for (int i = 0; i < g->count; i++) {
        char path[64];
        long all, resident = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", g->pid[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fscanf(file, "%ld %ld", &all, &resident) == 2) sum += resident * (sysconf(_SC_PAGESIZE) / 1024.0);
        fclose(file);
    }
    return sum;
}

/* Latencies, and what is in flight. */

typedef struct {
    float *items;
    size_t count, cap;
} Samples;

static Samples samples;
static int sampling;

static void sample(double seconds) {
    if (!sampling) return;
    if (samples.count == samples.cap) {
        samples.cap = samples.cap ? samples.cap * 2 : 65536;
        samples.items = realloc(samples.items, samples.cap * sizeof *samples.items);
    }
    samples.items[samples.count++] = seconds;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

typedef struct {
    double since; /* 0 when it is done */
    int conn, arrived;
} Flight;

static Flight *flights;
static long flight_count, flight_cap, operations, in_flight;

static long begin(int conn) {
    if (flight_count == flight_cap) {
        flight_cap = flight_cap ? flight_cap * 2 : 65536;
        flights = realloc(flights, flight_cap * sizeof *flights);
    }
    flights[flight_count] = (Flight){clock_now(), conn, 0};
    in_flight++;
    return flight_count++;
}

/* Bytes out. */

static void put(Conn *c, const void *data, size_t n) {
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, data, n);
    c->out_len += n;
}

static void put_frame(Conn *c, int opcode, const char *data, size_t n) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char head[8] = {0x80 | opcode}, body[TEXT_MAX];
    size_t size = 2;
    if (n > sizeof body) fail("a message is too long for this program", data, n);
    if (n < 126) {
        head[1] = 0x80 | n;
    } else {
        head[1] = 0x80 | 126;
        head[2] = n >> 8;
        head[3] = n & 255;
        size = 4;
    }
    memcpy(head + size, mask, 4);
    for (size_t i = 0; i < n; i++) body[i] = data[i] ^ mask[i & 3];
    put(c, head, size + 4);
    put(c, body, n);
}

static void put_text(Conn *c, const char *text) { put_frame(c, 1, text, strlen(text)); }

static void watch(Conn *c, int op, int wants_write) {
    struct epoll_event event = {EPOLLIN | (wants_write ? EPOLLOUT : 0), {.ptr = c}};
    c->wants_write = wants_write;
    epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void flush(Conn *c) {
    size_t done = 0;
    while (done < c->out_len) {
        ssize_t n = write(c->fd, c->out + done, c->out_len - done);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) fail("write", strerror(errno), 100);
        done += n;
    }
    memmove(c->out, c->out + done, c->out_len - done);
    c->out_len -= done;
    if (c->wants_write != (c->out_len > 0)) watch(c, EPOLL_CTL_MOD, c->out_len > 0);
}

/* The dialects. */

#define PAYLOAD "{\"a\":5,\"b\":3,\"n\":%ld}"
#define TO "{\"to\":\"u%2$ld\",\"a\":5,\"b\":3,\"n\":%1$ld}"

typedef struct {
    const char *name, *path, *subprotocol;
    const char *first;   /* sent when the socket is open, with the user behind the secret; NULL to wait for the server */
    const char *greeted; /* how a message begins that `answer` follows; NULL for none */
    const char *answer;  /* to that greeting, with the user; NULL for none */
    const char *welcome; /* how the message begins that makes the connection ready; NULL: an open socket is ready */
    const char *ping, *pong;
    const char *back; /* sent instead of `first` to go on with a session: with the user, its id and its key */
    const char *acks, *ask, *ack; /* how messages begin that confirm others or ask for that, and how to confirm */
    const char *call, *result, *publish, *broadcast; /* with the number once or twice */
    const char *pass, *passed;                       /* with the number and the index of the connection that gets it */
    const char *open, *more, *item; /* with the credit; with more of it, which may also open; with the number */
} Dialect;

static const Dialect dialects[] = {
    {.name = "wse", .path = "/", .subprotocol = "wse-default-json",
     .first = "[\"~wse:hi\",{\"identity\":\"secret%s\",\"meta\":{}},null]", .welcome = "[\"~wse:welcome\"",
     .call = "[\"echo\"," PAYLOAD ",\"%ld\"]", .result = "[\"~wse:response\"," PAYLOAD ",\"%ld\"]",
     .publish = "[\"fan\"," PAYLOAD ",null]", .broadcast = "[\"fan\"," PAYLOAD ",null]",
     .pass = "[\"pass\"," TO ",null]", .passed = "[\"passed\"," TO ",null]",
     .more = "[\"more\",%ld,null]", .item = "[\"item\"," PAYLOAD ",null]"},
    /* The same with the extension "calls". */
    {.name = "wse-stream", .path = "/", .subprotocol = "wse-default-json",
     .first = "[\"~wse:hi\",{\"identity\":\"secret%s\",\"meta\":{},\"ext\":{\"calls\":{\"timeout\":20}}},null]",
     .greeted = "[\"~wse:ext\"", .welcome = "[\"~wse:welcome\"",
     .open = "[\"~wse:call\",[\"items\",null,{\"t\":0,\"n\":%ld}],1]", .more = "[\"~wse:more\",%ld,1]",
     .item = "[\"~wse:item\"," PAYLOAD ",1]"},
    /* The same with the extension "resume": both sides count messages, and confirm them after 64. */
    {.name = "wse-resume", .path = "/", .subprotocol = "wse-default-json",
     .first = "[\"~wse:hi\",{\"identity\":\"secret%s\",\"meta\":{},\"ext\":{\"resume\":{}}},null]",
     .greeted = "[\"~wse:ext\"", .welcome = "[\"~wse:welcome\"",
     .back = "[\"~wse:hi\",{\"identity\":\"secret%s\",\"meta\":{},"
             "\"ext\":{\"resume\":{\"id\":%s,\"key\":%s,\"got\":0,\"sent\":[1,0]}}},null]",
     .acks = "[\"~wse:ack\"", .ask = "[\"~wse:ask\"", .ack = "[\"~wse:ack\",%ld,null]",
     .call = "[\"echo\"," PAYLOAD ",\"%ld\"]", .result = "[\"~wse:response\"," PAYLOAD ",\"%ld\"]",
     .publish = "[\"fan\"," PAYLOAD ",null]", .broadcast = "[\"fan\"," PAYLOAD ",null]",
     .more = "[\"more\",%ld,null]", .item = "[\"item\"," PAYLOAD ",null]"},
    {.name = "json", .path = "/",
     .call = "[\"echo\"," PAYLOAD ",\"%ld\"]", .result = "[\"echo\"," PAYLOAD ",\"%ld\"]",
     .publish = "[\"fan\"," PAYLOAD ",null]", .broadcast = "[\"fan\"," PAYLOAD ",null]",
     .more = "[\"more\",%ld,null]", .item = "[\"item\"," PAYLOAD ",null]"},
    /* Engine.IO 4 and Socket.IO 5, on the websocket transport from the start. */
    {.name = "socketio", .path = "/socket.io/?EIO=4&transport=websocket",
     .greeted = "0{", .answer = "40{\"token\":\"secret%s\"}", .welcome = "40{\"sid\"", .ping = "2", .pong = "3",
     .call = "42%2$ld[\"echo\",{\"a\":5,\"b\":3,\"n\":%1$ld}]", .result = "43%2$ld[{\"a\":5,\"b\":3,\"n\":%1$ld}]",
     .publish = "42[\"fan\"," PAYLOAD "]", .broadcast = "42[\"fan\"," PAYLOAD "]",
     .pass = "42[\"pass\"," TO "]", .passed = "42[\"passed\"," TO "]",
     .more = "42[\"more\",%ld]", .item = "42[\"item\"," PAYLOAD "]"},
    {.name = "fastapi-rpc", .path = "/ws",
     .call = "{\"request\":{\"method\":\"echo\",\"arguments\":{\"p\":" PAYLOAD "},\"call_id\":\"%ld\"}}",
     .result = "{\"request\":null,\"response\":{\"result\":" PAYLOAD ",\"result_type\":\"dict\",\"call_id\":\"%ld\"}}",
     .publish = "{\"request\":{\"method\":\"fan\",\"arguments\":{\"p\":" PAYLOAD "}}}",
     .broadcast = "{\"request\":{\"method\":\"fan\",\"arguments\":{\"p\":" PAYLOAD "},\"call_id\":null},\"response\":null}"},
    /* Its messages have no calls, but a reply to one with a "ref" has that, too. */
    {.name = "chanx", .path = "/ws",
     .call = "{\"action\":\"echo\",\"payload\":" PAYLOAD ",\"ref\":\"%ld\"}",
     .result = "{\"action\":\"echoed\",\"payload\":" PAYLOAD ",\"version\":1,\"ref\":\"%ld\"}"},
};

static const Dialect *dialect;
static const char *const modes[] = {"call", "fanout", "pass", "items", "idle", "return", "hold"};
static enum { CALL, FANOUT, PASS, ITEMS, IDLE, RETURN, HOLD, MODES } mode;
static int window, first_user, ports[NODES_MAX], port_count;
static double rate;

/* Users have names that others can know where messages are sent to them, or where more than one node has them. */
static void put_hello(Conn *c, const char *format) {
    char text[TEXT_MAX], user[32] = "";
    if (mode == PASS || mode == RETURN || port_count > 1)
        snprintf(user, sizeof user, ":u%d", first_user + (int)(c - conns));
    if (c->id) snprintf(text, sizeof text, dialect->back, user, c->id, c->key);
    else snprintf(text, sizeof text, format, user);
    put_text(c, text);
}

/* Whether a message is the text that is due, but for white space outside strings. */
static int is_due(const char *s, size_t n, const char *due) {
    int quoted = 0;
    const char *end = s + n;
    for (; s < end; s++) {
        if (!quoted && (*s == ' ' || *s == '\n')) continue;
        if (*s != *due++) return 0;
        if (*s == '"') quoted = !quoted;
    }
    return *due == 0;
}

/* A copy of the string that a member has, with its quotes. */
static char *member(const char *s, size_t n, const char *name) {
    const char *at = memmem(s, n, name, strlen(name)), *end;
    if (!at) fail("an answer that lacks a member", s, n);
    at = memchr(at + strlen(name), '"', s + n - at - strlen(name));
    end = at ? memchr(at + 1, '"', s + n - at - 1) : NULL;
    if (!end) fail("an answer that lacks a string", s, n);
    return strndup(at, end + 1 - at);
}

static int starts_with(const char *s, size_t n, const char *prefix) {
    size_t size = strlen(prefix);
    return n >= size && !memcmp(s, prefix, size);
}

static long number_in(const char *s, size_t n) {
    const char *at = memmem(s, n, "\"n\":", 4);
    if (!at) fail("an answer without a number", s, n);
    long number = 0;
    int digits = 0;
    for (at += 4; at < s + n && *at == ' '; at++) {}
    for (; at < s + n && *at >= '0' && *at <= '9'; at++, digits++) number = number * 10 + (*at - '0');
    if (!digits) fail("an answer with a wrong number", s, n);
    return number;
}

static long begin_from(Conn *c) {
    char text[TEXT_MAX];
    long receiver = c - conns + (mode == PASS), number = begin(receiver);
    snprintf(text, sizeof text, mode == CALL ? dialect->call : mode == PASS ? dialect->pass : dialect->publish, number,
             mode == PASS ? receiver : number);
    put_text(c, text);
    return number;
}

static int stopping;

static void on_answer(Conn *c, const char *s, size_t n) {
    char due[TEXT_MAX];
    long number = number_in(s, n);
    if (number >= flight_count) fail("an answer with a wrong number", s, n);
    Flight *flight = &flights[number];
    long index = c - conns;
    snprintf(due, sizeof due, mode == CALL ? dialect->result : mode == PASS ? dialect->passed : dialect->broadcast,
             number, mode == PASS ? index : number);
    if (!is_due(s, n, due)) fail("not the answer that is due", s, n);
    if (mode != FANOUT && (flight->conn != index || !flight->since)) fail("an answer that nobody waits for", s, n);
    if (mode == FANOUT && c->next_number != number) fail("a broadcast out of order", s, n);
    if (mode == PASS && c->next_number > number) fail("a message out of order", s, n);
    c->next_number = number + 1;
    sample(now_ - flight->since);
    operations++;
    if (mode == FANOUT && ++flight->arrived < conn_count) return;
    if (mode != FANOUT) flight->since = 0;
    in_flight--;
    if (!stopping && !rate) begin_from(mode == CALL ? c : mode == PASS ? c - 1 : &conns[0]);
}

/* Items, of which a connection grants half a window again whenever it has got as many. */

static void grant(Conn *c, long count, const char *format) {
    char text[TEXT_MAX];
    long half = window / 2, grants = c->next_number ? c->next_number / half : 0;
    c->granted[grants & 3] = clock_now();
    snprintf(text, sizeof text, format, count);
    put_text(c, text);
    in_flight += count;
}

static void on_item(Conn *c, const char *s, size_t n) {
    char due[TEXT_MAX];
    long number = c->next_number++, half = window / 2;
    snprintf(due, sizeof due, dialect->item, number);
    if (!is_due(s, n, due)) fail("not the item that is due", s, n);
    sample(now_ - c->granted[(number < window ? 0 : 1 + (number - window) / half) & 3]);
    operations++;
    in_flight--;
    if (!stopping && c->next_number % half == 0) grant(c, half, dialect->more);
}

static void become_ready(Conn *c) {
    c->state = READY;
    ready++;
    sample(now_ - c->since);
}

static void put_ack(Conn *c) {
    char text[TEXT_MAX];
    snprintf(text, sizeof text, dialect->ack, c->got);
    put_text(c, text);
}

static void on_message(Conn *c, const char *s, size_t n) {
    if (leaving) return;
    if (dialect->ping && is_due(s, n, dialect->ping)) {
        put_text(c, dialect->pong);
    } else if (c->state == READY && dialect->acks && starts_with(s, n, dialect->acks)) {
        return;
    } else if (c->state == READY && dialect->ask && starts_with(s, n, dialect->ask)) {
        put_ack(c);
    } else if (c->state == READY) {
        if (mode >= IDLE) fail("an unexpected message", s, n);
        if (dialect->ack && ++c->got % ACK_EVERY == 0) put_ack(c);
        if (mode == ITEMS) on_item(c, s, n);
        else on_answer(c, s, n);
    } else if (dialect->greeted && starts_with(s, n, dialect->greeted)) {
        if (dialect->answer) put_hello(c, dialect->answer);
        if (c->id && memmem(s, n, "\"lost\"", 6)) fail("the session is lost", s, n);
        if (dialect->back && !c->id) {
            c->id = member(s, n, "\"id\":");
            c->key = member(s, n, "\"key\":");
        }
    } else if (starts_with(s, n, dialect->welcome)) {
        become_ready(c);
    } else {
        fail("not a welcome", s, n);
    }
}

static size_t on_response(Conn *c) {
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t size = end - c->in + 4;
    if (!starts_with(c->in, size, "HTTP/1.1 101") || !memmem(c->in, size, ACCEPT, strlen(ACCEPT)))
        fail("not upgraded", c->in, size);
    if (dialect->subprotocol && !memmem(c->in, size, dialect->subprotocol, strlen(dialect->subprotocol)))
        fail("no subprotocol", c->in, size);
    c->state = OPENING;
    if (dialect->first) put_hello(c, dialect->first);
    if (!dialect->welcome) become_ready(c);
    return size;
}

static void gone(Conn *c) {
    if (c->fd < 0) return;
    close(c->fd); /* epoll forgets it, too */
    c->fd = -1;
    closed++;
}

static void on_bytes(Conn *c) {
    size_t at = c->state == REQUESTED ? on_response(c) : 0;
    while (c->state != REQUESTED && c->in_len - at >= 2) {
        unsigned char *head = (unsigned char *)c->in + at;
        size_t n = head[1] & 127, size = 2;
        if (n == 127) fail("a message that is too long", c->in + at, 20);
        if (n == 126) {
            if (c->in_len - at < 4) break;
            n = head[2] << 8 | head[3];
            size = 4;
        }
        if (c->in_len - at < size + n) break;
        char *data = c->in + at + size;
        if (head[0] == 0x81 || head[0] == 0x82) on_message(c, data, n);
        else if (head[0] == 0x89) put_frame(c, 10, data, n);
        else if (head[0] == 0x88 && leaving) c->state = CLOSED;
        else if (head[0] == 0x88) fail("closed", n > 2 ? data + 2 : "", n > 2 ? n - 2 : 0);
        else fail("an unexpected frame", data, n);
        at += size + n;
    }
    memmove(c->in, c->in + at, c->in_len - at);
    c->in_len -= at;
}

static void on_readable(Conn *c) {
    for (;;) {
        if (c->in_cap - c->in_len < 4096) {
            c->in_cap = c->in_cap ? c->in_cap * 2 : 8192;
            c->in = realloc(c->in, c->in_cap);
        }
        size_t space = c->in_cap - c->in_len;
        ssize_t n = read(c->fd, c->in + c->in_len, space);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0 && leaving) {
            gone(c);
            return;
        }
        if (n <= 0) fail("the server hung up", "", 0);
        c->in_len += n;
        on_bytes(c);
        if (c->state == CLOSED) {
            gone(c);
            return;
        }
        if ((size_t)n < space) return;
    }
}

/* Messages at a rate. */

static int timer_fd;
static double due_at; /* when the next one begins */

static void start_timer(void) {
    long every = 1e9 / rate;
    struct itimerspec spec = {{every / 1000000000, every % 1000000000}, {0, 1}};
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}};
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    due_at = clock_now();
    timerfd_settime(timer_fd, 0, &spec, NULL);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
}

static void on_timer(void) {
    static int pair;
    unsigned long long ticks;
    if (read(timer_fd, &ticks, sizeof ticks) < 0 || stopping) return;
    for (; due_at <= now_; due_at += 1 / rate, pair = (pair + 1) % (conn_count / 2)) {
        long number = begin_from(&conns[2 * pair]); /* which may move the flights */
        flights[number].since = due_at;
        flush(&conns[2 * pair]);
    }
}

/* One wait, and all that came. Ends early, without waiting longer than `ms`, when nothing came. */
static void turn(int ms) {
    struct epoll_event events[1024];
    int n = epoll_wait(epoll_fd, events, 1024, ms);
    now_ = clock_now();
    if (n == 0 && ms == STALLED_MS) {
        fprintf(stderr, "stalled: %d of %d connections ready, %ld in flight\n", ready, conn_count, in_flight);
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        Conn *c = events[i].data.ptr;
        if (!c) {
            on_timer();
            continue;
        }
        if (events[i].events & ~EPOLLOUT) on_readable(c);
        if (c->fd >= 0) flush(c);
        if (mode == PASS && (c - conns) % 2 && c[-1].fd >= 0) flush(c - 1); /* which may send the next one now */
    }
    if (conns[0].fd > 0) flush(&conns[0]); /* any connection may have opened the way for the next broadcast */
}

static void dial(Conn *c, int index, const char *host) {
    int port = ports[(index / 2 + index % 2) % port_count]; /* so every node has as many of the senders */
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, from = {.sin_family = AF_INET};
    char request[TEXT_MAX];
    int one = 1;
    inet_pton(AF_INET, host, &to.sin_addr);
    from.sin_addr.s_addr = htonl(0x7f000001 + index / 20000); /* each address has about 28,000 ports */
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) fail("socket", strerror(errno), 100);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(c->fd, (void *)&from, sizeof from)) fail("bind", strerror(errno), 100);
    c->since = clock_now();
    if (connect(c->fd, (void *)&to, sizeof to)) fail("connect", strerror(errno), 100);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    snprintf(request, sizeof request,
             "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " KEY
             "\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
             dialect->path, host, port, dialect->subprotocol ? "Sec-WebSocket-Protocol: " : "",
             dialect->subprotocol ? dialect->subprotocol : "", dialect->subprotocol ? "\r\n" : "");
    put(c, request, strlen(request));
    watch(c, EPOLL_CTL_ADD, 0);
    flush(c);
}

static int opened;

static void connect_all(int count, const char *host) {
    while (ready < count) {
        for (; opened < count && opened - ready < OPENING_AT_ONCE; opened++) dial(&conns[opened], opened, host);
        turn(STALLED_MS);
    }
}

static void run_until(double end) {
    while (now_ < end) turn(STALLED_MS);
}

static void leave(void) {
    leaving = 1;
    for (int i = 0; i < conn_count; i++) {
        put_frame(&conns[i], 8, "\x03\xe8", 2);
        flush(&conns[i]);
    }
    for (double end = clock_now() + 5; closed < conn_count && clock_now() < end;) turn(100);
}

/* What was used from one look to the next. */
typedef struct {
    double wall, cpu, kernel, engine, own;
} Used;

static Group nodes, engine;

static Used look(void) {
    static Used before;
    Used now = {clock_now(), cpu_of(&nodes), kernel_part(&nodes), cpu_of(&engine), own_cpu()};
    Used used = {now.wall - before.wall, now.cpu - before.cpu, now.kernel, now.engine - before.engine,
                 now.own - before.own};
    before = now;
    return used;
}

static void report(Used used, long count) {
    printf("\"ops\":%ld,\"wall_s\":%.4f,\"ops_per_s\":%.1f,\"cpu_us\":%.4f,\"kernel_us\":%.4f,\"client_cpu_us\":%.4f",
           count, used.wall, count / used.wall, used.cpu / count * 1e6, used.cpu * used.kernel / count * 1e6,
           used.own / count * 1e6);
    if (engine.count) printf(",\"engine_us\":%.4f", used.engine / count * 1e6);
    qsort(samples.items, samples.count, sizeof *samples.items, by_size);
    if (samples.count)
        printf(",\"p50_ms\":%.4f,\"p99_ms\":%.4f", samples.items[samples.count / 2] * 1e3,
               samples.items[samples.count * 99 / 100] * 1e3);
}

/* Keep what is open, until standard input ends. */
static void hold(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;
    leaving = 1;
    fflush(stdout);
    for (;;) {
        turn(100);
        if (poll(&input, 1, 0) > 0 && read(0, &byte, 1) <= 0) return;
    }
}

static void measure_idle(const char *host, double seconds) {
    int measured = window < conn_count ? window : conn_count;
    double memory = rss_kib(&nodes), engine_memory = rss_kib(&engine);
    look();
    sampling = 1;
    connect_all(measured, host);
    Used used = look();
    sampling = 0;
    connect_all(conn_count, host);
    for (double end = clock_now() + seconds; clock_now() < end;) turn(100);
    printf("{");
    report(used, measured);
    if (engine.count) printf(",\"engine_rss_kib\":%.4f", (rss_kib(&engine) - engine_memory) / conn_count);
    printf(",\"rss_kib\":%.4f}\n", (rss_kib(&nodes) - memory) / conn_count);
}

/* Cut all connections at once, and wait until the processes have been at rest for so many seconds. */
static void cut_all(double seconds) {
    for (int i = 0; i < conn_count; i++) {
        gone(&conns[i]);
        conns[i].state = REQUESTED;
        conns[i].in_len = conns[i].out_len = 0;
        conns[i].wants_write = 0;
    }
    opened = ready = closed = 0;
    for (double used = cpu_of(&nodes), rest = clock_now() + seconds; clock_now() < rest;) {
        turn(100);
        if (cpu_of(&nodes) - used > 0.005) rest = clock_now() + seconds;
        used = cpu_of(&nodes);
    }
}

static void measure_return(const char *host, double seconds) {
    int measured = window < conn_count ? window : conn_count;
    connect_all(conn_count, host);
    cut_all(seconds);
    look();
    sampling = 1;
    connect_all(measured, host);
    Used used = look();
    printf("{");
    report(used, measured);
    printf("}\n");
}

static void measure_steady(const char *host, double seconds, double warmup) {
    connect_all(conn_count, host);
    int senders = mode == FANOUT ? 1 : conn_count, step = mode == PASS ? 2 : 1;
    for (int i = 0; i < senders && !rate; i += step) {
        if (mode == ITEMS) grant(&conns[i], window, dialect->open ? dialect->open : dialect->more);
        for (int w = 0; w < window && mode != ITEMS; w++) begin_from(&conns[i]);
        flush(&conns[i]);
    }
    if (rate) start_timer();
    run_until(clock_now() + warmup);
    sampling = 1;
    operations = 0;
    look();
    run_until(clock_now() + seconds);
    Used used = look();
    long count = operations;
    sampling = 0;
    stopping = 1;
    while (in_flight) turn(STALLED_MS);
    if (!count) fail("nothing was answered in time", "", 0);
    printf("{");
    report(used, count);
    printf("}\n");
    leave();
}

int main(int argc, char **argv) {
    if (argc < 10 || argc > 12) {
        fprintf(stderr, "usage: load HOST PORTS DIALECT MODE CONNECTIONS WINDOW SECONDS WARMUP PIDS [ENGINE [RATE|FIRST]]\n");
        return 2;
    }
    for (const char *at = argv[2]; at && port_count < NODES_MAX; at = strchr(at, ','), at = at ? at + 1 : at)
        ports[port_count++] = atoi(at);
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; i++)
        if (!strcmp(dialects[i].name, argv[3])) dialect = &dialects[i];
    while (mode < MODES && strcmp(modes[mode], argv[4])) mode++;
    conn_count = atoi(argv[5]);
    window = atoi(argv[6]);
    nodes = group(argv[9]);
    engine = group(argc > 10 ? argv[10] : NULL);
    if (argc > 11 && mode == HOLD) first_user = atoi(argv[11]);
    else if (argc > 11) rate = atof(argv[11]);
    if (!dialect || mode == MODES || conn_count < 1 || window < 1 || (rate && mode != PASS)) {
        fprintf(stderr, "unknown dialect or mode, a number below 1, or a rate where there is none\n");
        return 2;
    }
    if (mode == PASS && (!dialect->pass || conn_count % 2)) {
        fprintf(stderr, "pass needs pairs of connections, and a dialect that has users\n");
        return 2;
    }
    if (mode == ITEMS && (!dialect->item || window < 2 || window % 2)) {
        fprintf(stderr, "items need an even window, and a dialect that has them\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    conns = calloc(conn_count, sizeof *conns);
    epoll_fd = epoll_create1(0);
    if (mode < IDLE) measure_steady(argv[1], atof(argv[7]), atof(argv[8]));
    else if (mode == RETURN) measure_return(argv[1], atof(argv[7]));
    else measure_idle(argv[1], atof(argv[7]));
    if (mode == HOLD) hold();
    return 0;
}
