/* The readers of a measurement: one thread, one epoll, any number of connections.
 *
 * It is told in a file what to do, a line each, later also on its standard input, and answers on its
 * standard output in lines of JSON. Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
 *
 *   target ADDRESS PORT           where the server is
 *   sources N                     loopback addresses to connect from, so that ports do not run out
 *   request LENGTH CURSOR_AT      the next LENGTH bytes are request number 0, 1, 2 ...; the twelve
 *                                 bytes from CURSOR_AT on are the cursor's (-1: it has none)
 *   group NAME once|loop|hold [stamped] [terminal] [foreign] [plain] [fresh] [until_last] [count=N]
 *   reader GROUP FIRST RESUME AFTER LAST START_US
 *   go                            the readers' starts count from here
 *   measure FROM TO               events stamped within count
 *   cut GROUP AT                  cut every reader of the group at once, and let it come back
 *   stop AT                       begin nothing new; whoever holds a stream lets go of it
 *   limit AT                      give up what has not ended by then
 *
 * A reader checks what it reads: the status, the framing, that seq_id begins behind its cursor and
 * goes up by one, that the stream ends with the terminal group and [DONE], and where it should.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CURSOR_DIGITS = 12, RECEIVE_BYTES = 1 << 18, READY_AT_ONCE = 512, MOST_HEAD_BYTES = 1 << 16 };
static const int64_t CATCH_UP_NS = 100 * 1000 * 1000; /* A lag below this is that of a live reader. */
static const int64_t RETRY_NS = 20 * 1000 * 1000;
static const int64_t NEVER = INT64_MAX;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(2);
}

static void *owned(void *memory) {
    if (memory == NULL) fail("no memory");
    return memory;
}

/* ---- Histograms: 64 cells for each doubling, so a value is known to 1.6 %. ---- */

enum { CELL_BITS = 6, CELLS = (48 - CELL_BITS) << CELL_BITS };

typedef struct {
    uint64_t cells[CELLS];
    uint64_t count;
    int64_t most;
    double sum;
} histogram;

static void record(histogram *h, int64_t value) {
    uint64_t v = value < 0 ? 0 : (uint64_t)value;
    unsigned cell = (unsigned)v;
    if (v >= 1u << CELL_BITS) {
        unsigned shift = 63u - (unsigned)__builtin_clzll(v) - CELL_BITS;
        cell = (shift << CELL_BITS) + (unsigned)(v >> shift);
    }
    h->cells[cell < CELLS ? cell : CELLS - 1]++;
    h->count++;
    h->sum += (double)v;
    if ((int64_t)v > h->most) h->most = (int64_t)v;
}

/* The largest value that its cell may hold, so that nothing is told smaller than it was. */
static int64_t quantile(const histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->count + 0.999999), seen = 0;
    for (unsigned cell = 0; cell < CELLS; cell++) {
        seen += h->cells[cell];
        if (seen >= wanted && seen) {
            if (cell < 1u << CELL_BITS) return cell;
            unsigned shift = (cell >> CELL_BITS) - 1;
            uint64_t low = ((uint64_t)(cell & 63) | 64) << shift;
            int64_t high = (int64_t)(low + (1ull << shift) - 1);
            return high < h->most ? high : h->most;
        }
    }
    return h->most;
}

static void print_histogram(const char *name, const histogram *h) {
    printf(",\"%s\":{\"count\":%" PRIu64, name, h->count);
    if (h->count) {
        printf(",\"mean\":%.0f,\"p50\":%" PRId64 ",\"p90\":%" PRId64 ",\"p99\":%" PRId64
               ",\"p999\":%" PRId64 ",\"max\":%" PRId64,
               h->sum / (double)h->count, quantile(h, 0.5), quantile(h, 0.9), quantile(h, 0.99),
               quantile(h, 0.999), h->most);
    }
    putchar('}');
}

/* ---- What is to be done. ---- */

typedef struct {
    char *bytes;
    size_t length;
    long cursor_at;
} request;

typedef enum { ONCE, LOOP, HOLD } group_mode;

typedef struct {
    char name[32];
    group_mode mode;
    bool stamped, terminal, foreign, plain, fresh, until_last;
    uint64_t most_requests;
    /* Where the last event had what is looked for; the next one most likely has it there too. */
    size_t seq_at, content_after;
    uint64_t readers, requests, responses, events, pings, bytes, errors, reconnects;
    char first_error[400];
    int64_t cut_at;
    uint64_t catching;
    histogram lag, lag_of_yield, lag_in_storm, first_byte, whole, caught_up, ping_gap;
} group;

typedef enum { WAITING, CONNECTING, IN_HEAD, IN_LENGTH, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER,
               UNTIL_CLOSE, BETWEEN, FINISHED } phase;

typedef struct {
    int fd;
    uint32_t number;
    group *of;
    phase phase;
    uint32_t first, resume;
    uint64_t after, last, seq;
    int64_t start_ns, asked_ns, touched_ns;
    uint64_t requests;
    uint64_t remaining; /* of the body or chunk */
    char *carry;        /* an incomplete head or event */
    size_t carried, carry_room;
    char *unsent;
    size_t unsent_bytes, unsent_from;
    bool opened, answered, seen_byte, seen_stop, seen_done, catching, wants_out, reuse;
    bool keeps_alive, streams;
} reader;

static struct sockaddr_in target;
static unsigned sources = 1;
static request *requests;
static size_t request_count;
static group *groups;
static size_t group_count;
static reader *readers;
static size_t reader_count, reader_room, unopened, unfinished;
static uint32_t *by_start;
static size_t started;
static uint32_t *retries;
static int64_t *retry_at;
static size_t retry_count;
static int epoll = -1;
static int64_t begin_ns = 0, measure_from = 0, measure_to = INT64_MAX, stop_at = INT64_MAX,
               limit_at = INT64_MAX;
static bool running, stopped;
static char *received;

static void again(reader *r, bool resumed, int64_t due);

static void close_socket(reader *r, bool abruptly) {
    if (r->fd < 0) return;
    if (abruptly) {
        struct linger now = {1, 0};
        setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    close(r->fd);
    r->fd = -1;
    free(r->unsent);
    r->unsent = NULL;
    r->carried = 0;
    r->wants_out = false;
}

static void finish(reader *r) {
    if (r->phase == FINISHED) return;
    close_socket(r, true);
    free(r->carry);
    r->carry = NULL;
    r->carry_room = 0;
    r->phase = FINISHED;
    if (r->catching) {
        r->catching = false;
        r->of->catching--;
    }
    unfinished--;
    if (!r->opened) {
        r->opened = true;
        unopened--;
    }
}

/* Note what is wrong, and use the reader no more. */
static void wrong(reader *r, const char *format, ...) {
    group *g = r->of;
    if (g->errors++ == 0) {
        va_list values;
        va_start(values, format);
        int length = snprintf(g->first_error, sizeof g->first_error, "reader %u: ", r->number);
        vsnprintf(g->first_error + length, sizeof g->first_error - (size_t)length, format, values);
        va_end(values);
    }
    finish(r);
}

/* ---- Sending. ---- */

static void watch(reader *r, bool out) {
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.u32 = r->number};
    if (epoll_ctl(epoll, r->reuse ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, r->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
    r->reuse = true;
    r->wants_out = out;
}

static void flush(reader *r) {
    while (r->unsent_from < r->unsent_bytes) {
        ssize_t sent = send(r->fd, r->unsent + r->unsent_from, r->unsent_bytes - r->unsent_from,
                            MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!r->wants_out) watch(r, true);
            return;
        }
        if (sent < 0) return; /* Reading tells why. */
        r->unsent_from += (size_t)sent;
    }
    free(r->unsent);
    r->unsent = NULL;
    if (r->wants_out) watch(r, false);
}

static void ask(reader *r, bool resumed) {
    const request *q = &requests[resumed ? r->resume : r->first];
    r->unsent = owned(malloc(q->length));
    memcpy(r->unsent, q->bytes, q->length);
    if (q->cursor_at >= 0) {
        char digits[24];
        bool in_url = q->bytes[q->cursor_at] == '0'; /* JSON allows spaces there, and no zeros. */
        snprintf(digits, sizeof digits, in_url ? "%0*" PRIu64 : "%*" PRIu64, CURSOR_DIGITS, r->seq);
        memcpy(r->unsent + q->cursor_at, digits, CURSOR_DIGITS);
    }
    r->unsent_bytes = q->length;
    r->unsent_from = 0;
    r->phase = IN_HEAD;
    r->carried = 0;
    r->seen_byte = r->seen_stop = r->seen_done = r->answered = false;
    r->requests++;
    r->of->requests++;
    flush(r);
}

static void retry(reader *r, int64_t due) {
    r->phase = WAITING;
    retries[retry_count] = r->number;
    retry_at[retry_count++] = due;
}

static void connect_to_target(reader *r) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("no more sockets (%s); raise the limit of open files", strerror(errno));
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (sources > 1) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + r->number % sources);
#ifdef IP_BIND_ADDRESS_NO_PORT
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
#endif
        if (bind(fd, (struct sockaddr *)&from, sizeof from)) fail("bind: %s", strerror(errno));
    }
    r->fd = fd;
    r->reuse = false;
    if (connect(fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS) {
        close_socket(r, false);
        retry(r, now_ns() + RETRY_NS);
        return;
    }
    r->phase = CONNECTING;
    watch(r, true);
}

/* Ask again, from the cursor if `resumed`; `due` is when that should have happened. */
static void again(reader *r, bool resumed, int64_t due) {
    r->asked_ns = due;
    if (!resumed) r->seq = r->after;
    if (r->fd >= 0 && r->keeps_alive && !r->of->fresh) {
        ask(r, resumed);
        return;
    }
    close_socket(r, true);
    connect_to_target(r);
}

/* ---- Reading events. ---- */

static const char *found(const char *p, const char *e, const char *what, size_t length) {
    return memmem(p, (size_t)(e - p), what, length);
}
#define FOUND(p, e, literal) found(p, e, literal, sizeof literal - 1)

static const char *digits(const char *p, const char *e, uint64_t *value) {
    uint64_t v = 0;
    while (p < e && (unsigned)(*p - '0') < 10) v = v * 10 + (uint64_t)(*p++ - '0');
    *value = v;
    return p;
}

static void caught_up(reader *r, int64_t now) {
    group *g = r->of;
    r->catching = false;
    record(&g->caught_up, now - g->cut_at);
    if (--g->catching == 0) {
        printf("{\"event\":\"caught_up\",\"group\":\"%s\",\"ns\":%" PRId64 "}\n", g->name,
               now - g->cut_at);
        fflush(stdout);
    }
}

static void stamps(reader *r, const char *p, const char *e, int64_t now) {
    group *g = r->of;
    uint64_t due, yielded;
    const char *q = digits(p, e, &due);
    if (q == p || q == e || *q != ' ') return;
    digits(q + 1, e, &yielded);
    int64_t lag = now - (int64_t)due;
    if ((int64_t)due >= measure_from && (int64_t)due < measure_to) {
        record(&g->lag, lag);
        if (yielded) record(&g->lag_of_yield, now - (int64_t)yielded);
        for (size_t i = 0; i < group_count; i++)
            if (groups[i].catching && &groups[i] != g) {
                record(&g->lag_in_storm, lag);
                break;
            }
    }
    if (r->catching && lag <= CATCH_UP_NS) caught_up(r, now);
}

/* One event that carries a seq, at `seq`; returns behind what was looked at, NULL if it is wrong. */
static const char *numbered(reader *r, const char *p, const char *seq, const char *e, int64_t now) {
    group *g = r->of;
    uint64_t number;
    const char *q = digits(seq, e, &number);
    if (q == seq || number != r->seq + 1) {
        if (FOUND(p, e, "\"message_type\":\"ping\"") && (q == seq || number == r->seq)) {
            g->pings++;
            record(&g->ping_gap, now - r->touched_ns);
            return e;
        }
        wrong(r, "seq_id %.*s after %" PRIu64, (int)(q - seq), seq, r->seq);
        return NULL;
    }
    r->seq = number;
    g->events++;
    static const char content[] = "\"content\":\"";
    const size_t length = sizeof content - 1;
    const char *c = q + g->content_after;
    if (c + length > e || memcmp(c, content, length) != 0) {
        c = found(q, e, content, length);
        if (c != NULL) {
            g->content_after = (size_t)(c - q);
        } else if (FOUND(p, e, "\"message_type\":\"stop_reason\"")) {
            r->seen_stop = true;
        } else if (FOUND(p, e, "\"message_type\":\"error_message\"")) {
            wrong(r, "the run failed: %.*s", (int)(e - p < 200 ? e - p : 200), p);
            return NULL;
        }
    }
    if (c == NULL) return q;
    if (g->stamped) stamps(r, c + length, e, now);
    return c;
}

static void complete(reader *r, int64_t now);

/* One frame, without its empty line. False if the reader was given up or let go. */
static bool frame(reader *r, const char *p, const char *e, int64_t now) {
    static const char key[] = "\"seq_id\":";
    const size_t length = sizeof key - 1;
    group *g = r->of;
    if (e - p <= 48 && FOUND(p, e, "[DONE]")) {
        if (r->seen_done) return wrong(r, "a second [DONE]"), false;
        if (g->terminal && !r->seen_stop) return wrong(r, "[DONE] without a stop_reason"), false;
        if (r->last && r->seq != r->last)
            return wrong(r, "[DONE] at %" PRIu64 " of %" PRIu64, r->seq, r->last), false;
        r->seen_done = true;
        if (r->catching) caught_up(r, now);
        return true;
    }
    const char *s = p + g->seq_at;
    if (s + length > e || memcmp(s, key, length) != 0) {
        s = found(p, e, key, length);
        if (s == NULL) {
            if (g->foreign || e == p || *p == ':') return true;
            return wrong(r, "a frame without seq_id: %.*s", (int)(e - p < 200 ? e - p : 200), p),
                   false;
        }
        g->seq_at = (size_t)(s - p);
    }
    if (r->seen_done) return wrong(r, "an event after [DONE]"), false;
    while (s != NULL) {
        const char *behind = numbered(r, p, s + length, e, now);
        if (behind == NULL) return false;
        s = g->foreign ? found(behind, e, key, length) : NULL;
    }
    if (g->until_last && r->seq == r->last) {
        r->keeps_alive = false;
        complete(r, now);
        return false;
    }
    return true;
}

/* Behind the empty line that ends the first frame, NULL if there is none yet; *end: its end. */
static const char *frame_end(const char *p, const char *e, const char **end) {
    const char *n = p;
    while ((n = memchr(n, '\n', (size_t)(e - n))) != NULL) {
        const char *line = ++n;
        if (n == e) return NULL;
        if (*n == '\r' && ++n == e) return NULL;
        if (*n == '\n') {
            *end = line - 1;
            return n + 1;
        }
        n = line;
    }
    return NULL;
}

static void keep(reader *r, const char *p, size_t length) {
    if (r->carried + length > r->carry_room) {
        r->carry_room = (r->carried + length) * 2;
        r->carry = owned(realloc(r->carry, r->carry_room));
    }
    memcpy(r->carry + r->carried, p, length);
    r->carried += length;
}

static bool body(reader *r, const char *p, const char *e, int64_t now) {
    group *g = r->of;
    g->bytes += (uint64_t)(e - p);
    if (!r->seen_byte) {
        r->seen_byte = true;
        record(&g->first_byte, now - r->asked_ns);
    }
    if (g->plain) return true;
    const char *end, *next;
    if (r->carried) { /* An event that began earlier: take a little more until it is whole. */
        while (p < e) {
            const char *n = memchr(p, '\n', (size_t)(e - p));
            const char *upto = n ? n + 1 : e;
            keep(r, p, (size_t)(upto - p));
            p = upto;
            if (frame_end(r->carry, r->carry + r->carried, &end)) {
                r->carried = 0;
                if (!frame(r, r->carry, end, now)) return false;
                break;
            }
        }
        if (r->carried) return true;
    }
    while ((next = frame_end(p, e, &end)) != NULL) {
        if (!frame(r, p, end, now)) return false;
        p = next;
    }
    if (p < e) keep(r, p, (size_t)(e - p));
    return true;
}

/* ---- Reading HTTP. ---- */

/* The response is there wholly. */
static void complete(reader *r, int64_t now) {
    group *g = r->of;
    if (!g->plain && !g->until_last && !r->seen_done) {
        wrong(r, "the body ended without [DONE] at %" PRIu64, r->seq);
        return;
    }
    if (r->carried && !g->until_last) {
        wrong(r, "the body ended in the middle of an event");
        return;
    }
    if (!r->seen_byte) record(&g->first_byte, now - r->asked_ns);
    record(&g->whole, now - r->asked_ns);
    g->responses++;
    r->phase = BETWEEN;
    if (g->mode != LOOP || now >= stop_at || (g->most_requests && r->requests >= g->most_requests)) {
        finish(r);
        return;
    }
    again(r, false, now_ns());
}

static const char *header(const char *p, const char *e, const char *name) {
    size_t length = strlen(name);
    for (; p != NULL && p + length < e; p = FOUND(p, e, "\r\n") ? FOUND(p, e, "\r\n") + 2 : NULL)
        if (strncasecmp(p, name, length) == 0 && p[length] == ':') {
            p += length + 1;
            while (*p == ' ') p++;
            return p;
        }
    return NULL;
}

static bool head(reader *r, const char *p, const char *e) {
    if (e - p < 12 || memcmp(p, "HTTP/1.", 7) != 0) return wrong(r, "this is no HTTP"), false;
    int status = atoi(p + 9);
    if (status < 200 || status > 299) {
        wrong(r, "status %d: %.*s", status, (int)(e - p < 250 ? e - p : 250), p);
        return false;
    }
    const char *h = header(p, e, "connection");
    r->keeps_alive = h == NULL || strncasecmp(h, "close", 5) != 0;
    h = header(p, e, "transfer-encoding");
    if (h != NULL && strncasecmp(h, "chunked", 7) == 0) {
        r->phase = IN_SIZE;
        r->remaining = 0;
        r->streams = false; /* No digit of the size was seen. */
    } else if ((h = header(p, e, "content-length")) != NULL || status == 204) {
        r->remaining = h == NULL ? 0 : strtoull(h, NULL, 10);
        r->phase = IN_LENGTH;
    } else {
        r->phase = UNTIL_CLOSE;
        r->keeps_alive = false;
    }
    r->answered = true;
    return true;
}

/* An answer has begun: tell when every reader has one. */
static void opened(reader *r, int64_t now) {
    r->touched_ns = now;
    if (r->opened) return;
    r->opened = true;
    if (--unopened == 0) {
        printf("{\"event\":\"open\",\"ns\":%" PRId64 "}\n", now - begin_ns);
        fflush(stdout);
    }
}

static const char *in_head(reader *r, const char *p, const char *e, int64_t now) {
    const char *begin = p, *limit = e, *end;
    if (r->carried) {
        size_t before = r->carried;
        keep(r, p, (size_t)(e - p));
        begin = r->carry;
        limit = r->carry + r->carried;
        end = FOUND(begin, limit, "\r\n\r\n");
        if (end == NULL) {
            if (r->carried > MOST_HEAD_BYTES) return wrong(r, "the head does not end"), NULL;
            return e;
        }
        p += (size_t)(end + 4 - begin) - before;
    } else {
        end = FOUND(begin, limit, "\r\n\r\n");
        if (end == NULL) {
            keep(r, p, (size_t)(e - p));
            return e;
        }
        p = end + 4;
    }
    if (!head(r, begin, end + 2)) return NULL;
    r->carried = 0;
    opened(r, now);
    return p;
}

static const char *in_size(reader *r, const char *p, const char *e) {
    for (; p < e; p++) {
        int c = *p | 32, digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 87 : -1;
        if (digit >= 0) {
            r->remaining = r->remaining << 4 | (unsigned)digit;
            r->streams = true;
        } else if (*p == '\n') {
            if (!r->streams) return wrong(r, "a chunk without a size"), NULL;
            r->phase = r->remaining ? IN_CHUNK : IN_TRAILER;
            return p + 1;
        } else if (*p != '\r') {
            return wrong(r, "a broken chunk size"), NULL;
        }
    }
    return p;
}

/* All that came in; the reader may be another's, finished or asking again afterwards. */
static void parse(reader *r, const char *p, const char *e, int64_t now) {
    while (p < e) {
        switch (r->phase) {
        case IN_HEAD:
            p = in_head(r, p, e, now);
            break;
        case IN_SIZE:
            p = in_size(r, p, e);
            break;
        case IN_LENGTH:
        case IN_CHUNK: {
            const char *upto = (uint64_t)(e - p) < r->remaining ? e : p + r->remaining;
            r->remaining -= (uint64_t)(upto - p);
            if (upto > p && !body(r, p, upto, now)) return;
            p = upto;
            if (r->remaining == 0 && r->phase == IN_CHUNK) r->phase = AFTER_CHUNK;
            else if (r->remaining == 0 && p < e) return wrong(r, "bytes behind the response");
            break;
        }
        case AFTER_CHUNK:
            if (*p++ == '\n') {
                r->phase = IN_SIZE;
                r->streams = false;
            }
            break;
        case IN_TRAILER: /* None of the servers sends a trailer: only the empty line is left. */
            if (*p++ == '\n') {
                if (p < e) return wrong(r, "bytes behind the response");
                complete(r, now);
                return;
            }
            break;
        case UNTIL_CLOSE:
            if (!body(r, p, e, now)) return;
            p = e;
            break;
        default:
            return wrong(r, "bytes that nobody asked for");
        }
        if (p == NULL) return;
    }
    if (r->phase == IN_LENGTH && r->remaining == 0) complete(r, now);
}

static void lost(reader *r, int64_t now) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (r->phase == UNTIL_CLOSE) {
        complete(r, now);
    } else if (r->phase == CONNECTING) {
        close_socket(r, false);
        retry(r, now + RETRY_NS);
    } else if (r->phase == IN_HEAD && r->requests > 1 && r->carried == 0 && r->of->mode == LOOP) {
        r->keeps_alive = false; /* An idle connection may be closed just when it is used again. */
        r->of->reconnects++;
        again(r, true, r->asked_ns);
    } else {
        wrong(r, "cut by the server at %" PRIu64 " (%s)", r->seq, error ? strerror(error) : "closed");
    }
}

static void readable(reader *r) {
    for (int turn = 0; turn < 4; turn++) {
        ssize_t length = recv(r->fd, received, RECEIVE_BYTES, 0);
        int64_t now = now_ns();
        if (length < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (length <= 0) {
            lost(r, now);
            return;
        }
        int fd = r->fd;
        parse(r, received, received + length, now);
        if (r->answered) r->touched_ns = now;
        if (length < RECEIVE_BYTES || r->fd != fd) return;
    }
}

static void ready(reader *r, uint32_t events) {
    if (r->phase == CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            close_socket(r, false);
            retry(r, now_ns() + RETRY_NS);
            return;
        }
        bool resumed = r->requests > 0 && r->seq > r->after;
        ask(r, resumed || r->catching);
        return;
    }
    if (events & EPOLLOUT && r->unsent != NULL) flush(r);
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP) && r->fd >= 0) readable(r);
}

/* ---- Being told. ---- */

static group *named(const char *name) {
    for (size_t i = 0; i < group_count; i++)
        if (strcmp(groups[i].name, name) == 0) return &groups[i];
    fail("there is no group %s", name);
    return NULL;
}

static void add_group(char *line) {
    char *rest = line, *word = strsep(&rest, " ");
    groups = owned(realloc(groups, (group_count + 1) * sizeof *groups));
    group *g = memset(&groups[group_count++], 0, sizeof *g);
    snprintf(g->name, sizeof g->name, "%s", word);
    while ((word = strsep(&rest, " ")) != NULL) {
        if (!strcmp(word, "once")) g->mode = ONCE;
        else if (!strcmp(word, "loop")) g->mode = LOOP;
        else if (!strcmp(word, "hold")) g->mode = HOLD;
        else if (!strcmp(word, "stamped")) g->stamped = true;
        else if (!strcmp(word, "terminal")) g->terminal = true;
        else if (!strcmp(word, "foreign")) g->foreign = true;
        else if (!strcmp(word, "plain")) g->plain = true;
        else if (!strcmp(word, "fresh")) g->fresh = true;
        else if (!strcmp(word, "until_last")) g->until_last = true;
        else if (sscanf(word, "count=%" SCNu64, &g->most_requests) != 1) fail("what is %s?", word);
    }
}

static void add_reader(const char *line) {
    unsigned of, first, resume;
    uint64_t after, last;
    int64_t start_us;
    if (sscanf(line, "%u %u %u %" SCNu64 " %" SCNu64 " %" SCNd64, &of, &first, &resume, &after,
               &last, &start_us) != 6 || of >= group_count || first >= request_count ||
        resume >= request_count)
        fail("a reader that makes no sense: %s", line);
    if (reader_count == reader_room) {
        reader_room = reader_room ? reader_room * 2 : 1024;
        readers = owned(realloc(readers, reader_room * sizeof *readers));
    }
    reader *r = memset(&readers[reader_count], 0, sizeof *r);
    *r = (reader){.fd = -1, .number = (uint32_t)reader_count++, .first = first, .resume = resume,
                  .after = after, .last = last, .seq = after, .start_ns = start_us * 1000};
    r->requests = 0;
    r->remaining = of; /* Groups still move while they are added. */
}

static void add_request(const char *line, FILE *from) {
    request q;
    if (sscanf(line, "%zu %ld", &q.length, &q.cursor_at) != 2) fail("a request without a length");
    if (q.cursor_at + CURSOR_DIGITS > (long)q.length) fail("a cursor outside of its request");
    q.bytes = owned(malloc(q.length));
    if (fread(q.bytes, 1, q.length, from) != q.length || getc(from) != '\n') fail("a cut request");
    requests = owned(realloc(requests, (request_count + 1) * sizeof *requests));
    requests[request_count++] = q;
}

static int earlier(const void *a, const void *b) {
    int64_t x = readers[*(const uint32_t *)a].start_ns, y = readers[*(const uint32_t *)b].start_ns;
    return x < y ? -1 : x > y;
}

static void go(void) {
    begin_ns = now_ns();
    by_start = owned(malloc((reader_count + 1) * sizeof *by_start));
    retries = owned(malloc((reader_count + 1) * sizeof *retries));
    retry_at = owned(malloc((reader_count + 1) * sizeof *retry_at));
    for (size_t i = 0; i < reader_count; i++) {
        by_start[i] = (uint32_t)i;
        readers[i].of = &groups[readers[i].remaining];
        readers[i].of->readers++;
        readers[i].start_ns += begin_ns;
    }
    qsort(by_start, reader_count, sizeof *by_start, earlier);
    unopened = unfinished = reader_count;
    running = true;
}

static void cut(group *g, int64_t now) {
    g->cut_at = now;
    for (size_t i = 0; i < reader_count; i++) {
        reader *r = &readers[i];
        if (r->of != g || !r->answered || r->phase == FINISHED || r->fd < 0) continue;
        close_socket(r, true);
        r->catching = true;
        g->catching++;
    }
    for (size_t i = 0; i < reader_count; i++)
        if (readers[i].catching && readers[i].of == g) {
            g->reconnects++;
            readers[i].answered = false;
            again(&readers[i], true, g->cut_at);
        }
}

typedef struct {
    group *of;
    int64_t at;
} planned_cut;
static planned_cut cuts[16];
static size_t cut_count;

static void told(char *line, FILE *from) {
    char name[32], address[64];
    unsigned port;
    if (!strncmp(line, "request ", 8)) add_request(line + 8, from);
    else if (!strncmp(line, "group ", 6)) add_group(line + 6);
    else if (!strncmp(line, "reader ", 7)) add_reader(line + 7);
    else if (!strcmp(line, "go")) go();
    else if (sscanf(line, "target %63s %u", address, &port) == 2) {
        target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        if (inet_pton(AF_INET, address, &target.sin_addr) != 1) fail("no address: %s", address);
    } else if (sscanf(line, "measure %" SCNd64 " %" SCNd64, &measure_from, &measure_to) == 2 ||
               sscanf(line, "sources %u", &sources) == 1 ||
               sscanf(line, "stop %" SCNd64, &stop_at) == 1 ||
               sscanf(line, "limit %" SCNd64, &limit_at) == 1) {
        return;
    } else if (cut_count < 16 && sscanf(line, "cut %31s %" SCNd64, name, &cuts[cut_count].at) == 2) {
        cuts[cut_count++].of = named(name);
    } else {
        fail("what is this? %s", line);
    }
}

/* Later orders come while it runs: whole lines, without waiting for them. */
static void listen_to_orders(void) {
    static char line[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got == 0) epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    if (got <= 0) return;
    length += (size_t)got;
    char *end;
    while ((end = memchr(line, '\n', length)) != NULL) {
        *end = '\0';
        told(line, NULL);
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length);
    }
}

/* ---- Running. ---- */

static void stop(void) {
    stopped = true;
    for (size_t i = 0; i < reader_count; i++) {
        reader *r = &readers[i];
        if (r->phase == FINISHED) continue;
        if (r->of->mode == HOLD && r->opened) {
            r->of->responses++;
            finish(r);
        } else if (r->phase == WAITING && r->requests == 0 && r->start_ns > stop_at) {
            finish(r);
        }
    }
}

static int64_t do_what_is_due(int64_t now) {
    int64_t next = limit_at;
    while (started < reader_count && readers[by_start[started]].start_ns <= now) {
        reader *r = &readers[by_start[started++]];
        if (r->phase == WAITING) again(r, false, r->start_ns);
    }
    if (started < reader_count) next = readers[by_start[started]].start_ns;
    for (size_t i = 0; i < retry_count;) {
        if (retry_at[i] > now) {
            if (retry_at[i] < next) next = retry_at[i];
            i++;
            continue;
        }
        reader *r = &readers[retries[i]];
        retries[i] = retries[--retry_count];
        retry_at[i] = retry_at[retry_count];
        if (r->phase == WAITING) connect_to_target(r);
    }
    for (size_t i = 0; i < cut_count; i++) {
        if (cuts[i].at <= now) {
            cuts[i].at = NEVER;
            cut(cuts[i].of, now);
        } else if (cuts[i].at < next) {
            next = cuts[i].at;
        }
    }
    if (!stopped && now >= stop_at) stop();
    if (!stopped && stop_at < next) next = stop_at;
    if (limit_at < next) next = limit_at;
    return next;
}

static void run(void) {
    struct epoll_event events[READY_AT_ONCE];
    while (unfinished > 0) {
        int64_t now = now_ns(), next = do_what_is_due(now);
        if (now >= limit_at) break;
        if (unfinished == 0) break;
        int64_t wait_ms = (next - now + 999999) / 1000000;
        int count = epoll_wait(epoll, events, READY_AT_ONCE,
                               wait_ms > 1000 ? 1000 : wait_ms < 0 ? 0 : (int)wait_ms);
        if (count < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == UINT32_MAX) listen_to_orders();
            else if (readers[events[i].data.u32].fd >= 0)
                ready(&readers[events[i].data.u32], events[i].events);
        }
    }
    for (size_t i = 0; i < reader_count; i++)
        if (readers[i].phase != FINISHED)
            wrong(&readers[i], "had not ended when time was up, at %" PRIu64 " of %" PRIu64 "%s",
                  readers[i].seq, readers[i].last,
                  readers[i].opened ? "" : ", and had no answer yet");
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"event\":\"done\",\"wall_ns\":%" PRId64 ",\"cpu_seconds\":%.6f,\"groups\":{",
           now_ns() - begin_ns, cpu);
    for (size_t i = 0; i < group_count; i++) {
        group *g = &groups[i];
        printf("%s\"%s\":{\"readers\":%" PRIu64 ",\"requests\":%" PRIu64 ",\"responses\":%" PRIu64
               ",\"events\":%" PRIu64 ",\"pings\":%" PRIu64 ",\"bytes\":%" PRIu64
               ",\"reconnects\":%" PRIu64 ",\"not_caught_up\":%" PRIu64 ",\"errors\":%" PRIu64
               ",\"first_error\":\"",
               i ? "," : "", g->name, g->readers, g->requests, g->responses, g->events, g->pings,
               g->bytes, g->reconnects, g->catching, g->errors);
        for (const unsigned char *c = (unsigned char *)g->first_error; *c; c++) {
            if (*c == '"' || *c == '\\') printf("\\%c", *c);
            else if (*c < 32 || *c > 126) printf("\\u%04x", *c);
            else putchar(*c);
        }
        putchar('"');
        print_histogram("lag", &g->lag);
        print_histogram("lag_of_yield", &g->lag_of_yield);
        print_histogram("lag_in_storm", &g->lag_in_storm);
        print_histogram("first_byte", &g->first_byte);
        print_histogram("whole", &g->whole);
        print_histogram("caught_up", &g->caught_up);
        print_histogram("ping_gap", &g->ping_gap);
        putchar('}');
    }
    puts("}}");
    fflush(stdout);
}

int main(int count, char **words) {
    if (count != 2) fail("name the file that says what to do");
    FILE *plan = fopen(words[1], "r");
    if (plan == NULL) fail("%s: %s", words[1], strerror(errno));
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    received = owned(malloc(RECEIVE_BYTES));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while (!running && (length = getline(&line, &room, plan)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = '\0';
        told(line, plan);
    }
    free(line);
    fclose(plan);
    if (!running) fail("nothing said go");
    struct epoll_event orders = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &orders);
    run();
    report();
    return 0;
}
