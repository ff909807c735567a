/* The readers of a measurement: one thread, one epoll, any number of connections.
 *
 * It reads orders from a file, one a line, later also from its standard input, and answers on
 * its standard output in lines of JSON. Times are nanoseconds of CLOCK_MONOTONIC, which all
 * processes of a machine share.
 *
 *   target ADDRESS PORT           where the server is
 *   sources N                     loopback addresses to connect from, so that ports do not run out
 *   request LENGTH CURSOR_AT      the next LENGTH bytes are request number 0, 1, 2 ...; the twelve
 *                                 bytes from CURSOR_AT on are the cursor's (-1: it has none)
 *   group NAME once|loop|hold [stamped] [terminal] [foreign] [plain] [fresh] [until_last] [count=N]
 *                                 once: to the end; loop: again and again; hold: until it stops.
 *                                 stamped: events say when they were due, and yielded; terminal:
 *                                 [DONE] stands behind a stop_reason; foreign: frames without a
 *                                 seq_id stand between, and one may hold several events; plain: no
 *                                 events at all; fresh: a connection for each request; until_last:
 *                                 LAST is the end, and no other comes
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
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#define _GNU_SOURCE
#include <inttypes.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
    CURSOR_DIGITS = 12,
    RECEIVE_BYTES = 1 << 18,
    READY_AT_ONCE = 512,
    MOST_HEAD_BYTES = 1 << 16
};
/* A lag below this is that of a live reader. */
static const int64_t CATCH_UP_NS = 100 * 1000 * 1000;
static const int64_t RETRY_NS = 20 * 1000 * 1000;
static const int64_t NEVER = INT64_MAX;

/* Nanoseconds; a cell for what differs by less than 1.6 %. */
enum { CELL_BITS = 6, CELLS = (48 - CELL_BITS) << CELL_BITS };

typedef struct {
    uint64_t cells[CELLS];
    uint64_t count;
    int64_t most;
    double sum;
} histogram;

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
    uint32_t number, group_number;
    group *of; /* once all groups are there */
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
    bool opened, answered, seen_byte, seen_stop, seen_done, catching, wants_out, watched;
    bool keeps_alive, sized; /* a digit of the chunk's size was seen */
} reader;

typedef struct {
    group *of;
    int64_t at;
} planned_cut;

enum { MOST_CUTS = 16 };

extern struct sockaddr_in target;
extern unsigned sources;
extern request *requests;
extern size_t request_count;
extern group *groups;
extern size_t group_count;
extern reader *readers;
extern size_t reader_count, reader_room, unopened, unfinished;
extern uint32_t *by_start;
extern size_t started;
extern uint32_t *retries;
extern int64_t *retry_at;
extern size_t retry_count;
extern int epoll;
extern int64_t begin_ns, measure_from, measure_to, stop_at, limit_at;
extern bool running, stopped;
extern char *received;
extern planned_cut cuts[MOST_CUTS];
extern size_t cut_count;

static inline const char *found(const char *p, const char *e, const char *what, size_t length) {
    return memmem(p, (size_t)(e - p), what, length);
}
#define FOUND(p, e, literal) found(p, e, literal, sizeof literal - 1)

/* main.c */
int64_t now_ns(void);
_Noreturn void fail(const char *format, ...);
void *owned(void *memory);

/* histogram.c */
void record(histogram *h, int64_t value);
void print_histogram(const char *name, const histogram *h);

/* connections.c */
void close_socket(reader *r, bool abruptly);
void finish(reader *r);
void wrong(reader *r, const char *format, ...);
void flush_request(reader *r);
void ask(reader *r, bool resumed);
void retry(reader *r, int64_t due);
void connect_to_target(reader *r);
void again(reader *r, bool resumed, int64_t due);
void keep(reader *r, const char *p, size_t length);

/* events.c */
bool body(reader *r, const char *p, const char *e, int64_t now);

/* http.c */
void complete(reader *r, int64_t now);
void ready(reader *r, uint32_t events);

/* orders.c */
void obey(char *line, FILE *from);
void listen_to_orders(void);
void cut(group *g, int64_t now);

#endif
