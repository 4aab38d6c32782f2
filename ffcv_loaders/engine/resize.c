/* Resizing with Pillow's antialiased filters.
 *
 * The weights are those of Pillow's `Image.resize` (Resample.c, precompute_coeffs): the filter, as wide as the step from
 * one result to the next but never narrower than a pixel, taken at the centres of the pixels, divided by its sum. Where
 * the pixels come from a smaller copy, each is an average over its cell, and the filter is integrated over the cells
 * instead; inside a cell the image is taken to be the parabola that has the averages of the cell and its two neighbours.
 *
 * Pillow goes along x first, and rounds to 8 bits in between. The bilinear filter here goes along y first, which is
 * faster, in integers with six more bits; results differ by at most one level. The cubic filter overshoots, and Pillow
 * cuts values at 0 and 255 in between: there x comes first here too, in floats, as for areas, which are to be exact.
 */

#include "engine.h"

#include <math.h>
#include <string.h>

#ifdef HAS_X86
#include <immintrin.h>
#endif

/* Bits behind the point of the values between the two passes. */
#define FRACTION 6
/* Weights have 16 bits with their sign; more bits behind the point where all are small. */
#define LEAST_BITS 14
#define MOST_BITS_Y 22 /* 255 * 2^22 and an overshoot fit in 32 bits */
#define MOST_BITS_X 16 /* so do 255 * 2^6 * 2^16 */
#define UNROLLED 4     /* taps along x come in fours */

void release_resizer(resizer *r) {
    buffer *all[] = {&r->y.memory, &r->x[0].memory, &r->x[1].memory, &r->rows, &r->row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) release(all[i]);
}

/* ------------------------------------------------------------------------------------------------------- weights */

static double reach_of(int filter) {
    return filter == BICUBIC ? 2.0 : filter == BILINEAR ? 1.0 : 0.5;
}

/* From the centre of a result to where the filter ends, in cells. */
static double support_of(const axis *a, int filter) {
    double step = (a->to - a->from) / (double)a->resized;
    return reach_of(filter) * (step > a->unit ? step : a->unit);
}

static double centre_of(const axis *a, int64_t i) {
    return a->from + ((double)(a->first + i) + 0.5) * (a->to - a->from) / (double)a->resized;
}

static int64_t clamp(int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
}

void cells_of(const axis *a, int64_t length, int filter, int64_t *begin, int64_t *end) {
    double support = support_of(a, filter), low = centre_of(a, 0) - support, high = centre_of(a, a->count - 1) + support;
    if (low < a->least) low = a->least;
    if (high > a->most) high = a->most;
    /* Averages need a neighbour to either side; rounding may move a bound by a cell. */
    int64_t more = a->unit < 1 ? 2 : 1;
    int64_t least = a->unit < 1 ? 0 : (int64_t)a->least, most = a->unit < 1 ? length : (int64_t)a->most;
    *begin = clamp((int64_t)floor(low) - more, least, most - 1);
    *end = clamp((int64_t)ceil(high) + more, *begin + 1, most);
}

static double filter_at(double t, int filter) {
    double x = fabs(t);
    if (filter == BILINEAR) return x < 1 ? 1 - x : 0;
    /* Keys' cubic with a = -0.5. */
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Weights of pixels by their centres; returns how many there are. */
static int64_t weigh_pixels(const axis *a, int64_t i, int filter, double support, int64_t *begin, float *out) {
    double centre = centre_of(a, i), narrow = reach_of(filter) / support, sum = 0;
    int64_t least = (int64_t)a->least, most = (int64_t)a->most;
    *begin = clamp((int64_t)floor(centre - support + 0.5), least, most - 1);
    int64_t end = clamp((int64_t)floor(centre + support + 0.5), *begin + 1, most);
    for (int64_t k = *begin; k < end; k++) {
        double w = filter_at(((double)k + 0.5 - centre) * narrow, filter);
        out[k - *begin] = (float)w;
        sum += w;
    }
    for (int64_t k = 0; k < end - *begin; k++) out[k] = (float)(out[k] / sum);
    return end - *begin;
}

/* Integrals of f(u), u f(u) and u^2 f(u) from `low` to `high`, which both lie within the filter's reach. */
static void integrate(double low, double high, int filter, double sums[3]) {
    if (filter == BILINEAR) {
        double l2 = low * low, h2 = high * high, la = fabs(low), ha = fabs(high);
        sums[0] = high - high * ha / 2 - (low - low * la / 2);
        sums[1] = h2 / 2 - h2 * ha / 3 - (l2 / 2 - l2 * la / 3);
        sums[2] = h2 * high / 3 - h2 * high * ha / 4 - (l2 * low / 3 - l2 * low * la / 4);
    } else {
        /* Gauss's rule with three points: exact between the whole numbers, where the pieces of the cubic meet. */
        static const double at[3] = {-0.7745966692414834, 0, 0.7745966692414834};
        static const double by[3] = {5.0 / 9, 8.0 / 9, 5.0 / 9};
        sums[0] = sums[1] = sums[2] = 0;
        while (low < high) {
            double until = floor(low) + 1 < high ? floor(low) + 1 : high, half = (until - low) / 2;
            for (int g = 0; g < 3; g++) {
                double u = low + half * (1 + at[g]), w = half * by[g] * filter_at(u, filter);
                sums[0] += w;
                sums[1] += w * u;
                sums[2] += w * u * u;
            }
            low = until;
        }
    }
}

/* Weights of cells that hold averages. */
static int64_t weigh_cells(
    const axis *a, int64_t length, int64_t i, int filter, double support, int64_t *begin, float *out
) {
    double reach = reach_of(filter), narrow = reach / support, centre = centre_of(a, i), total = 0;
    double low = centre - support > a->least ? centre - support : a->least;
    double high = centre + support < a->most ? centre + support : a->most;
    int64_t from = clamp((int64_t)floor(low), 0, length - 1), to = clamp((int64_t)ceil(high), from + 1, length);
    *begin = from > 0 ? from - 1 : 0;
    int64_t end = to < length ? to + 1 : length;
    memset(out, 0, (size_t)(end - *begin) * sizeof *out);
    for (int64_t k = from; k < to; k++) {
        double left = (double)k > low ? (double)k : low, right = (double)(k + 1) < high ? (double)(k + 1) : high;
        if (left >= right) continue;
        if (filter == AREA) {
            out[k - *begin] += (float)(right - left);
            total += right - left;
            continue;
        }
        double sums[3], middle = ((double)k + 0.5 - centre) * narrow;
        double begins = (left - centre) * narrow, ends = (right - centre) * narrow;
        integrate(begins > -reach ? begins : -reach, ends < reach ? ends : reach, filter, sums);
        /* Moments about the cell's middle, in cells. Its parabola is m + (n - p) / 2 u + (n - 2 m + p) / 2 (u^2 - 1/12),
         * with the averages p, m and n of the cell before, this one and the next. */
        double slope = (sums[1] - middle * sums[0]) / narrow;
        double second = sums[2] - 2 * middle * sums[1] + middle * middle * sums[0];
        double bend = second / (narrow * narrow) - sums[0] / 12;
        int64_t before = (k > 0 ? k - 1 : 0) - *begin, after = (k + 1 < length ? k + 1 : k) - *begin;
        out[k - *begin] += (float)(sums[0] - bend);
        out[before] += (float)((bend - slope) / 2);
        out[after] += (float)((bend + slope) / 2);
        total += sums[0];
    }
    for (int64_t k = 0; k < end - *begin; k++) out[k] = (float)(out[k] / total);
    return end - *begin;
}

/* Fills `w` for the cells low .. high - 1 that are at hand. */
static int32_t weigh(
    weights *w, const axis *a, int64_t length, int64_t low, int64_t high, int filter, int most_bits, int mirror
) {
    if (w->length == length && w->low == low && w->high == high && w->filter == filter &&
        !memcmp(&w->axis, a, sizeof *a))
        return DONE;
    w->length = 0; /* Until they are made. */
    double support = support_of(a, filter);
    int averages = a->unit < 1 || filter == AREA;
    int64_t taps = (int64_t)ceil(2 * support) + 4, count = a->count;
    taps = (taps + UNROLLED - 1) / UNROLLED * UNROLLED;
    size_t each = (size_t)(taps + 1) * sizeof(float) + (size_t)taps * sizeof(int16_t) + sizeof(int32_t);
    char *bytes = reserve(&w->memory, (size_t)count * each);
    if (!bytes) return NO_ROOM;
    w->room = taps;
    w->exact = (float *)bytes;
    w->first = (int32_t *)(bytes + (size_t)(count * taps) * sizeof(float));
    w->weights = (int16_t *)(w->first + count);

    float greatest = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t begin, place = mirror ? count - 1 - i : i;
        float *exact = w->exact + place * taps;
        int64_t n = averages ? weigh_cells(a, length, i, filter, support, &begin, exact)
                             : weigh_pixels(a, i, filter, support, &begin, exact);
        /* Cells without weight at either end need not be at hand. */
        int64_t skipped = 0;
        while (n > 1 && exact[n - 1] == 0) n--;
        while (skipped < n - 1 && exact[skipped] == 0) skipped++;
        if (skipped) memmove(exact, exact + skipped, (size_t)(n - skipped) * sizeof *exact);
        n -= skipped;
        begin += skipped;
        if (begin < low || begin + n > high) return BAD_CALL;
        memset(exact + n, 0, (size_t)(taps - n) * sizeof *exact);
        w->first[place] = (int32_t)(begin - low);
        if (n > used) used = n;
        for (int64_t k = 0; k < n; k++) greatest = fabsf(exact[k]) > greatest ? fabsf(exact[k]) : greatest;
    }
    w->bits = LEAST_BITS;
    while (w->bits < most_bits && greatest * (float)(2 << w->bits) < 32767) w->bits++;
    /* Rows of weights are written no longer than they need to be. */
    w->taps = (used + UNROLLED - 1) / UNROLLED * UNROLLED;
    if (w->taps == UNROLLED && used <= 2) w->taps = 2;
    float one = (float)(1 << w->bits);
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < w->taps; k++)
            w->weights[i * w->taps + k] = (int16_t)lrintf(w->exact[i * taps + k] * one);
    w->axis = *a;
    w->length = length;
    w->low = low;
    w->high = high;
    w->filter = filter;
    return DONE;
}

/* -------------------------------------------------------------------------------------------------------- passes */

static int16_t narrow16(int32_t value) {
    return (int16_t)(value > 32767 ? 32767 : value < -32768 ? -32768 : value);
}

/* Along y: `count` sums of bytes of `taps` rows, with FRACTION bits. */
static void combine_rows(
    const uint8_t *const *rows, const int16_t *w, int64_t taps, int bits, int64_t count, int16_t *out
) {
    int32_t half = 1 << (bits - FRACTION - 1);
    for (int64_t i = 0; i < count; i++) {
        int32_t sum = half;
        for (int64_t t = 0; t < taps; t++) sum += rows[t][i] * w[t];
        out[i] = narrow16(sum >> (bits - FRACTION));
    }
}

/* Along x: `side` pixels of three sums each. */
static void combine_cells(const int16_t *row, const weights *x, int64_t side, uint8_t *out) {
    int shift = x->bits + FRACTION;
    for (int64_t i = 0; i < side; i++) {
        const int16_t *w = x->weights + i * x->taps, *cells = row + (int64_t)x->first[i] * 3;
        for (int c = 0; c < 3; c++) {
            int32_t sum = 1 << (shift - 1);
            for (int64_t t = 0; t < x->taps; t++) sum += cells[3 * t + c] * w[t];
            sum >>= shift;
            out[3 * i + c] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
    }
}

/* Along x, then along y, in floats, cut at 0 and 255 in between. */
static int32_t resize_exactly(
    resizer *memory, const part *from, const weights *y, const weights *x, int64_t height, int64_t width, uint8_t *dst
) {
    float *values = reserve(&memory->row, (size_t)(from->rows * width * 3) * sizeof *values);
    if (!values) return NO_ROOM;
    for (int64_t r = 0; r < from->rows; r++)
        for (int64_t i = 0; i < width; i++) {
            const float *w = x->exact + i * x->room;
            const uint8_t *cells = from->pixels + (r * from->stride + x->first[i]) * 3;
            float sums[3] = {0};
            for (int64_t t = 0; t < x->taps && x->first[i] + t < from->cols; t++)
                for (int c = 0; c < 3; c++) sums[c] += w[t] * cells[3 * t + c];
            for (int c = 0; c < 3; c++)
                values[(r * width + i) * 3 + c] = sums[c] < 0 ? 0 : sums[c] > 255 ? 255 : sums[c];
        }
    float *sums = reserve(&memory->rows, (size_t)(width * 3) * sizeof *sums);
    if (!sums) return NO_ROOM;
    for (int64_t i = 0; i < height; i++) {
        const float *w = y->exact + i * y->room;
        memset(sums, 0, (size_t)(width * 3) * sizeof *sums);
        for (int64_t t = 0; t < y->taps && y->first[i] + t < from->rows; t++) {
            const float *row = values + (y->first[i] + t) * width * 3;
            for (int64_t k = 0; k < width * 3; k++) sums[k] += w[t] * row[k];
        }
        uint8_t *out = dst + i * width * 3;
        for (int64_t k = 0; k < width * 3; k++)
            out[k] = (uint8_t)lrintf(sums[k] < 0 ? 0 : sums[k] > 255 ? 255 : sums[k]);
    }
    return DONE;
}

#ifdef HAS_X86
AVX2 static void combine_rows_wide(
    const uint8_t *const *rows, const int16_t *w, int64_t taps, int bits, int64_t count, int16_t *out
) {
    const __m256i half = _mm256_set1_epi32(1 << (bits - FRACTION - 1));
    const __m128i shift = _mm_cvtsi32_si128(bits - FRACTION);
    /* Reads and writes up to 15 values behind the last, in the slack. */
    for (int64_t i = 0; i < count; i += 16) {
        __m256i low = half, high = half;
        for (int64_t t = 0; t < taps; t += 2) {
            int32_t pair;
            memcpy(&pair, w + t, sizeof pair);
            __m256i both = _mm256_set1_epi32(pair);
            __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(rows[t] + i)));
            __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(rows[t + 1] + i)));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), both));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), both));
        }
        __m256i sums = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        _mm256_storeu_si256((__m256i *)(out + i), sums);
    }
}

AVX2 static void combine_cells_wide(const int16_t *row, const weights *x, int64_t side, uint8_t *out) {
    const __m128i order = _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1);
    const __m256i twice = _mm256_broadcastsi128_si256(order);
    const __m128i half = _mm_set1_epi32(1 << (x->bits + FRACTION - 1)), shift = _mm_cvtsi32_si128(x->bits + FRACTION);
    int64_t taps = x->taps;
    for (int64_t i = 0; i < side; i++) {
        const int16_t *w = x->weights + i * taps, *cells = row + (int64_t)x->first[i] * 3;
        __m128i sum = half;
        if (taps == 2) {
            int32_t pair;
            memcpy(&pair, w, sizeof pair);
            __m128i pixels = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)cells), order);
            sum = _mm_add_epi32(sum, _mm_madd_epi16(pixels, _mm_set1_epi32(pair)));
        } else {
            __m256i sums = _mm256_setzero_si256();
            for (int64_t t = 0; t < taps; t += 4, cells += 12) {
                __m128i first = _mm_loadu_si128((const __m128i *)cells);
                __m128i second = _mm_loadu_si128((const __m128i *)(cells + 6));
                __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
                int32_t a, b;
                memcpy(&a, w + t, sizeof a);
                memcpy(&b, w + t + 2, sizeof b);
                __m256i pairs = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi32(a)), _mm_set1_epi32(b), 1);
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, twice), pairs));
            }
            sum = _mm_add_epi32(sum, _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
        }
        __m128i bytes = _mm_sra_epi32(sum, shift);
        bytes = _mm_packus_epi16(_mm_packs_epi32(bytes, bytes), bytes);
        int32_t pixel = _mm_cvtsi128_si32(bytes);
        /* The fourth byte is the next pixel's, which comes after; behind the last pixel there may be another view. */
        if (i + 1 < side)
            memcpy(out + 3 * i, &pixel, 4);
        else
            memcpy(out + 3 * i, &pixel, 3);
    }
}
#endif

int32_t resize(
    resizer *memory, const part *from, int64_t height, int64_t width, const axis *y, const axis *x, int filter,
    int mirror, uint8_t *dst
) {
    weights *wy = &memory->y, *wx = &memory->x[mirror != 0];
    int64_t bottom = from->row + from->rows, right = from->col + from->cols;
    int32_t code = weigh(wy, y, height, from->row, bottom, filter, MOST_BITS_Y, 0);
    if (!code) code = weigh(wx, x, width, from->col, right, filter, MOST_BITS_X, mirror);
    if (code) return code;
    if (filter != BILINEAR) return resize_exactly(memory, from, wy, wx, y->count, x->count, dst);
    int64_t count = from->cols * 3;
    /* Taps that do not count may lie behind the last cell. */
    size_t row_size = (size_t)(count + 3 * (wx->taps + UNROLLED)) * sizeof(int16_t);
    int16_t *row = reserve(&memory->row, row_size);
    const uint8_t **rows = reserve(&memory->rows, (size_t)wy->taps * sizeof *rows);
    if (!row || !rows) return NO_ROOM;
    memset(row + count, 0, row_size - (size_t)count * sizeof *row);
    for (int64_t i = 0; i < y->count; i++) {
        for (int64_t t = 0; t < wy->taps; t++) {
            int64_t r = wy->first[i] + t;
            rows[t] = from->pixels + (r < from->rows ? r : from->rows - 1) * from->stride * 3;
        }
        const int16_t *w = wy->weights + i * wy->taps;
        uint8_t *out = dst + i * x->count * 3;
#ifdef HAS_X86
        if (has_avx2) {
            combine_rows_wide(rows, w, wy->taps, wy->bits, count, row);
            combine_cells_wide(row, wx, x->count, out);
            continue;
        }
#endif
        combine_rows(rows, w, wy->taps, wy->bits, count, row);
        combine_cells(row, wx, x->count, out);
    }
    return DONE;
}

int32_t mixsize_resize(
    const uint8_t *pixels, int64_t height, int64_t width, double top, double bottom, double left, double right,
    double unit, int64_t rows, int64_t cols, int64_t filter, int64_t mirror, uint8_t *dst
) {
    resizer memory = {0};
    buffer copy = {0};
    /* The pixels of others have no slack behind them. */
    uint8_t *held = reserve(&copy, (size_t)(height * width * 3));
    int32_t code = NO_ROOM;
    if (held) {
        memcpy(held, pixels, (size_t)(height * width * 3));
        part whole = {held, width, 0, 0, height, width};
        axis y = {top, bottom, top, bottom, unit, rows, 0, rows}, x = {left, right, left, right, unit, cols, 0, cols};
        code = resize(&memory, &whole, height, width, &y, &x, (int)filter, mirror != 0, dst);
    }
    release_resizer(&memory);
    release(&copy);
    return code;
}
