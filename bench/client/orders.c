/* The orders of the plan, and those that come later. */
#include "client.h"
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

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
    *r = (reader){.fd = -1, .number = (uint32_t)reader_count++, .group_number = of,
                  .first = first, .resume = resume, .after = after, .last = last, .seq = after,
                  .start_ns = start_us * 1000};
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
        readers[i].of = &groups[readers[i].group_number];
        readers[i].of->readers++;
        readers[i].start_ns += begin_ns;
    }
    qsort(by_start, reader_count, sizeof *by_start, earlier);
    unopened = unfinished = reader_count;
    running = true;
}

void cut(group *g, int64_t now) {
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

void obey(char *line, FILE *from) {
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
    } else if (cut_count < MOST_CUTS &&
               sscanf(line, "cut %31s %" SCNd64, name, &cuts[cut_count].at) == 2) {
        cuts[cut_count++].of = named(name);
    } else {
        fail("what is this? %s", line);
    }
}

/* Later orders come while it runs: whole lines, without waiting for them. */
void listen_to_orders(void) {
    static char line[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got == 0) epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    if (got <= 0) return;
    length += (size_t)got;
    char *end;
    while ((end = memchr(line, '\n', length)) != NULL) {
        *end = '\0';
        obey(line, NULL);
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length);
    }
}
