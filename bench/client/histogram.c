/* Histograms: 64 cells for each doubling, so a value is known to 1.6 %. */
#include "client.h"

void record(histogram *h, int64_t value) {
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

/* The largest value that its cell may hold, so that no value is reported smaller than it was. */
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

void print_histogram(const char *name, const histogram *h) {
    printf(",\"%s\":{\"count\":%" PRIu64, name, h->count);
    if (h->count) {
        printf(",\"mean\":%.0f,\"p50\":%" PRId64 ",\"p90\":%" PRId64 ",\"p99\":%" PRId64
               ",\"p999\":%" PRId64 ",\"max\":%" PRId64,
               h->sum / (double)h->count, quantile(h, 0.5), quantile(h, 0.9), quantile(h, 0.99),
               quantile(h, 0.999), h->most);
    }
    putchar('}');
}
