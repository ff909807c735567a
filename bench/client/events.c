/* Events: their order, their stamps, and the end of a stream. */
#include "client.h"
#include <string.h>

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

/* One event whose number is at `seq`; behind what was looked at, or NULL if it is wrong. */
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

/* Behind the comments between two frames, which are keepalives. */
static const char *comments(reader *r, const char *p, const char *e, int64_t now) {
    const char *n;
    while (p < e && *p == ':' && (n = memchr(p, '\n', (size_t)(e - p))) != NULL) {
        r->of->pings++;
        record(&r->of->ping_gap, now - r->touched_ns);
        p = n + 1;
    }
    return p;
}

bool body(reader *r, const char *p, const char *e, int64_t now) {
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
    while ((next = frame_end(p = comments(r, p, e, now), e, &end)) != NULL) {
        if (!frame(r, p, end, now)) return false;
        p = next;
    }
    if (p < e) keep(r, p, (size_t)(e - p));
    return true;
}
