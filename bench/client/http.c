/* Responses of HTTP/1.1, with a length, in chunks, or until the connection closes. */
#include "client.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* The response is there wholly. */
void complete(reader *r, int64_t now) {
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
    bool enough = g->most_requests && r->requests >= g->most_requests;
    if (g->mode != LOOP || now >= stop_at || enough) {
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
        r->sized = false; /* No digit of the size was seen. */
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
        int c = *p | 32;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit >= 0) {
            r->remaining = r->remaining << 4 | (unsigned)digit;
            r->sized = true;
        } else if (*p == '\n') {
            if (!r->sized) return wrong(r, "a chunk without a size"), NULL;
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
                r->sized = false;
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
        const char *why = error ? strerror(error) : "closed";
        wrong(r, "cut by the server at %" PRIu64 " (%s)", r->seq, why);
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

void ready(reader *r, uint32_t events) {
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
    if (events & EPOLLOUT && r->unsent != NULL) flush_request(r);
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP) && r->fd >= 0) readable(r);
}
