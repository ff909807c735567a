/* The loop, and the report. */
#include "client.h"
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct sockaddr_in target;
unsigned sources = 1;
request *requests;
size_t request_count;
group *groups;
size_t group_count;
reader *readers;
size_t reader_count, reader_room, unopened, unfinished;
uint32_t *by_start;
size_t started;
uint32_t *retries;
int64_t *retry_at;
size_t retry_count;
int epoll = -1;
int64_t begin_ns = 0, measure_from = 0, measure_to = INT64_MAX, stop_at = INT64_MAX,
               limit_at = INT64_MAX;
bool running, stopped;
char *received;
planned_cut cuts[MOST_CUTS];
size_t cut_count;

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(2);
}

void *owned(void *memory) {
    if (memory == NULL) fail("no memory");
    return memory;
}

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

/* Wait to the nanosecond where the kernel can: a request that is sent up to a millisecond after it
   is due would count that time as the server's. */
static int wait_for_events(struct epoll_event *events, int64_t wait_ns) {
#ifdef SYS_epoll_pwait2
    static bool missing = false;
    if (!missing) {
        struct timespec t = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};
        int count = (int)syscall(SYS_epoll_pwait2, epoll, events, READY_AT_ONCE, &t, NULL, 0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) return count;
        missing = true;
    }
#endif
    return epoll_wait(epoll, events, READY_AT_ONCE, (int)((wait_ns + 999999) / 1000000));
}

static void run(void) {
    struct epoll_event events[READY_AT_ONCE];
    while (unfinished > 0) {
        int64_t now = now_ns(), next = do_what_is_due(now);
        if (now >= limit_at) break;
        if (unfinished == 0) break;
        int64_t wait_ns = next - now;
        int count = wait_for_events(
            events, wait_ns > 1000000000 ? 1000000000 : wait_ns < 0 ? 0 : wait_ns);
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
        obey(line, plan);
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
