/* Connections: opening, asking, asking again, and giving up. */
#include "client.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

void close_socket(reader *r, bool abruptly) {
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

void finish(reader *r) {
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
void wrong(reader *r, const char *format, ...) {
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
    if (epoll_ctl(epoll, r->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, r->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
    r->watched = true;
    r->wants_out = out;
}

void flush_request(reader *r) {
    while (r->unsent_from < r->unsent_bytes) {
        ssize_t sent = send(r->fd, r->unsent + r->unsent_from, r->unsent_bytes - r->unsent_from,
                            MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!r->wants_out) watch(r, true);
            return;
        }
        if (sent < 0) return; /* Reading reports the error. */
        r->unsent_from += (size_t)sent;
    }
    free(r->unsent);
    r->unsent = NULL;
    if (r->wants_out) watch(r, false);
}

void ask(reader *r, bool resumed) {
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
    flush_request(r);
}

void retry(reader *r, int64_t due) {
    r->phase = WAITING;
    retries[retry_count] = r->number;
    retry_at[retry_count++] = due;
}

void connect_to_target(reader *r) {
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
    r->watched = false;
    if (connect(fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS) {
        close_socket(r, false);
        retry(r, now_ns() + RETRY_NS);
        return;
    }
    r->phase = CONNECTING;
    watch(r, true);
}

/* Ask again, from the cursor if `resumed`; `due` is when that should have happened. */
void again(reader *r, bool resumed, int64_t due) {
    r->asked_ns = due;
    if (!resumed) r->seq = r->after;
    if (r->fd >= 0 && r->keeps_alive && !r->of->fresh) {
        ask(r, resumed);
        return;
    }
    close_socket(r, true);
    connect_to_target(r);
}

void keep(reader *r, const char *p, size_t length) {
    if (r->carried + length > r->carry_room) {
        r->carry_room = (r->carried + length) * 2;
        r->carry = owned(realloc(r->carry, r->carry_room));
    }
    memcpy(r->carry + r->carried, p, length);
    r->carried += length;
}
