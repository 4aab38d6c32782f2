/* Cropped, scaled JPEG decoding and area resizing, for compiled code that holds no interpreter lock.
 *
 * Three functions, called by address (jpegcrop.py documents them for Python):
 *
 *   mixsize_jpeg_crop  decodes part of a JPEG, at 1/1, 1/2, 1/4 or 1/8 of its size;
 *   mixsize_area       resizes as OpenCV's INTER_AREA does, bit for bit, and only the part that is asked for;
 *   mixsize_resample   resizes a fractional window of an image that is itself a reduced copy.
 *
 * They keep no state between calls, so a result depends on the call's arguments alone: a decompressor that is used again
 * would hand one file's tables to the next, and setting one up takes 5 microseconds. They write only to the buffers that
 * they are given.
 */

#ifndef MIXSIZE_WITHOUT_PYTHON
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#endif

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo 1.5 or newer is needed: other libjpegs have no jpeg_crop_scanline"
#endif

#define EXPORT __attribute__((visibility("default")))

/* One source, compiled for wide vectors too and chosen when it is loaded. The arithmetic is the same in both: the build
 * forbids fused multiply-adds. Sanitizers cannot instrument what runs before they do, as the choice does. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(MIXSIZE_SANITIZED)
#define WIDE __attribute__((target_clones("avx2", "default"))) /* GCC 11 cannot choose by x86-64-v3. */
#else
#define WIDE
#endif

enum {
    DONE = 0,
    BROKEN = 1,      /* libjpeg gave an error or a warning */
    OTHER_SIZE = 2,  /* the file's header contradicts the expected height and width */
    UNSUPPORTED = 3, /* not 8 bit, or neither grey, YCbCr nor RGB */
    NO_ROOM = 4,     /* the buffer is too small, or no memory is left */
    BAD_CALL = 5,    /* arguments out of range */
    NOT_HERE = 6,    /* mixsize_area: a case that OpenCV treats in another way */
};

/* The limits that a JPEG or .beton file can declare; libjpeg itself refuses a little less. */
#define MAX_SIDE 65535

/* ------------------------------------------------------------------------------------------------------ decoding */

/* TurboJPEG's own limit: a progressive file can make a decoder pass over the whole image once for every few bytes. */
#define MAX_SCANS 500
/* For a progressive file's coefficients, 2 bytes a sample: enough for 178 million pixels. */
#define MAX_COEFFICIENT_BYTES (1L << 30)
#define ROWS_AT_ONCE 16

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf leave;
    char *message;
} errors;

static void leave(j_common_ptr info) {
    errors *self = (errors *)info->err;
    if (self->message) (*info->err->format_message)(info, self->message);
    longjmp(self->leave, 1);
}

/* A warning means corrupt data, which libjpeg would fill with grey. */
static void leave_on_warning(j_common_ptr info, int level) {
    if (level < 0) leave(info);
}

static void limit_scans(j_common_ptr info) {
    errors *self = (errors *)info->err;
    if (((j_decompress_ptr)info)->input_scan_number > MAX_SCANS) {
        if (self->message) snprintf(self->message, JMSG_LENGTH_MAX, "more than %d scans", MAX_SCANS);
        longjmp(self->leave, 1);
    }
}

/* Whether libjpeg gives part of the image the pixels it gives the whole. Not in two rare cases:
 * a component scaled up by its transform that must be upsampled besides (4:1:0 and its like, reduced), as
 * jpeg_crop_scanline mistakes its width; and a progressive file without its last scans, where neighbouring blocks are
 * smoothed and the first of those decoded counts as having none. */
static int crops_exactly(const struct jpeg_decompress_struct *info) {
    for (int c = 0; c < info->num_components; c++) {
        const jpeg_component_info *component = &info->comp_info[c];
        JDIMENSION h = (JDIMENSION)component->h_samp_factor, max_h = (JDIMENSION)info->max_h_samp_factor;
        int full = component->downsampled_width == info->output_width &&
                   component->downsampled_height == info->output_height;
        if (!full && component->downsampled_width != (info->output_width * h + max_h - 1) / max_h) return 0;
        if (info->progressive_mode && info->coef_bits)
            for (int k = 0; k < DCTSIZE2; k++)
                if (info->coef_bits[c][k] != 0) return 0;
    }
    return 1;
}

/* Columns to ask libjpeg for, so that those of the crop come out as in a decode of the whole image: upsampling of
 * chroma looks one sample to either side, and treats the first and last column it is given as the image's border. */
static void widen(const struct jpeg_decompress_struct *info, JDIMENSION *first, JDIMENSION *last) {
    JDIMENSION sample = (JDIMENSION)info->max_h_samp_factor;
    *first = *first > sample ? *first - sample : 0;
    *last = info->output_width - *last > 2 * sample ? *last + 2 * sample : info->output_width;
    if (*last - *first < 4 * sample) *first = *last > 4 * sample ? *last - 4 * sample : 0;
}

/* Decode `rows` x `cols` pixels at (`top`, `left`), counted in the image reduced by `denom`, as 8-bit RGB.
 *
 * jpeg, size: the file. height, width: what its header must say. denom: 1, 2, 4 or 8.
 * dst, capacity: where rows are written one after the other, each `placed[1]` pixels long and starting at column
 * `placed[0]` of the reduced image: more columns than asked for, as whole blocks are decoded. capacity is in bytes;
 * rows * reduced width * 3 always suffice.
 * message: JMSG_LENGTH_MAX bytes for libjpeg's own words on what is wrong, or NULL. */
EXPORT int32_t mixsize_jpeg_crop(
    const uint8_t *jpeg, uint64_t size, int64_t height, int64_t width, int64_t denom, int64_t top, int64_t left,
    int64_t rows, int64_t cols, uint8_t *dst, uint64_t capacity, int64_t *placed, char *message
) {
    struct jpeg_decompress_struct info;
    struct jpeg_progress_mgr progress;
    errors err;

    if (message) message[0] = 0;
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE) return BAD_CALL;
    if (denom != 1 && denom != 2 && denom != 4 && denom != 8) return BAD_CALL;
    int64_t reduced_height = (height + denom - 1) / denom, reduced_width = (width + denom - 1) / denom;
    if (top < 0 || left < 0 || rows < 1 || cols < 1) return BAD_CALL;
    if (rows > reduced_height - top || cols > reduced_width - left) return BAD_CALL;

    memset(&info, 0, sizeof info);
    memset(&progress, 0, sizeof progress);
    info.err = jpeg_std_error(&err.base);
    err.base.error_exit = leave;
    err.base.emit_message = leave_on_warning;
    err.message = message;
    if (setjmp(err.leave)) {
        jpeg_destroy_decompress(&info);
        return BROKEN;
    }
    jpeg_create_decompress(&info);
    info.mem->max_memory_to_use = MAX_COEFFICIENT_BYTES;
    progress.progress_monitor = limit_scans;
    info.progress = &progress;

    int32_t outcome = DONE;
    jpeg_mem_src(&info, jpeg, size);
    jpeg_read_header(&info, TRUE);
    if ((int64_t)info.image_height != height || (int64_t)info.image_width != width) {
        outcome = OTHER_SIZE;
        if (message)
            snprintf(message, JMSG_LENGTH_MAX, "the file says %u x %u", info.image_height, info.image_width);
        goto end;
    }
    if (info.data_precision != 8 || (info.jpeg_color_space != JCS_GRAYSCALE && info.jpeg_color_space != JCS_YCbCr &&
                                     info.jpeg_color_space != JCS_RGB)) {
        outcome = UNSUPPORTED;
        goto end;
    }
    /* As FFCV asks TurboJPEG: TJPF_RGB and TJFLAG_FASTDCT, all else libjpeg's defaults. */
    info.out_color_space = JCS_EXT_RGB;
    info.dct_method = JDCT_FASTEST;
    info.scale_num = 1;
    info.scale_denom = (unsigned int)denom;
    jpeg_start_decompress(&info);
    if ((int64_t)info.output_height != reduced_height || (int64_t)info.output_width != reduced_width) {
        outcome = UNSUPPORTED;
        goto end;
    }

    int exactly = crops_exactly(&info);
    JDIMENSION first = 0, stride = info.output_width;
    if (exactly) {
        JDIMENSION last = (JDIMENSION)(left + cols);
        first = (JDIMENSION)left;
        widen(&info, &first, &last);
        stride = last - first;
        jpeg_crop_scanline(&info, &first, &stride);
    }
    if ((uint64_t)rows * stride * 3 > capacity) {
        outcome = NO_ROOM;
        goto end;
    }
    if (exactly && top > 0) jpeg_skip_scanlines(&info, (JDIMENSION)top);
    while (info.output_scanline < (JDIMENSION)top) jpeg_read_scanlines(&info, &dst, 1);
    int64_t done = 0;
    while (done < rows) {
        JSAMPROW row[ROWS_AT_ONCE];
        int n = 0;
        for (; n < ROWS_AT_ONCE && done + n < rows; n++) row[n] = dst + (uint64_t)(done + n) * stride * 3;
        done += jpeg_read_scanlines(&info, row, (JDIMENSION)n);
    }
    /* Some damage shows only at the end marker, and the converter decodes whole images to find it. */
    if (rows == reduced_height && cols == reduced_width) jpeg_finish_decompress(&info);
    placed[0] = first;
    placed[1] = stride;
end:
    jpeg_destroy_decompress(&info);
    return outcome;
}

/* ------------------------------------------------------------------------------------------------------ resizing */

/* Cells first .. last - 1 of an axis of `length` cells: those whose pixels are at hand. */
typedef struct {
    int64_t length, first, last;
} extent;

/* How one axis is resized: each destination cell is a weighted sum of `taps` neighbouring source cells. */
typedef struct {
    int64_t taps;
    int64_t *first; /* of each destination cell, counted from the first source cell at hand */
    float *weights; /* `taps` for each destination cell, unused ones 0 */
} axis;

static int alloc_axis(axis *a, int64_t side, int64_t taps, const extent *e) {
    a->taps = taps < e->last - e->first ? taps : e->last - e->first;
    a->first = malloc((size_t)side * sizeof *a->first);
    a->weights = calloc((size_t)(side * a->taps), sizeof *a->weights);
    return a->first && a->weights ? DONE : NO_ROOM;
}

static void free_axis(axis *a) {
    free(a->first);
    free(a->weights);
}

/* Places the taps of destination cell i, which needs source cells begin .. end - 1: the first of them falls on source
 * cell *origin. Returns their weights, or NULL where a cell is not at hand. Unused taps are read too, and count 0. */
static float *place_taps(axis *a, int64_t i, int64_t begin, int64_t end, const extent *e, int64_t *origin) {
    if (begin < e->first || end > e->last || end - begin > a->taps) return NULL;
    *origin = begin < e->last - a->taps ? begin : e->last - a->taps;
    a->first[i] = *origin - e->first;
    return a->weights + i * a->taps;
}

/* Cells start .. start + side - 1 of an axis that OpenCV resizes from e->length to `resized` cells. The expressions are
 * those of computeResizeAreaTab in its resize.cpp, on whose rounding the bits depend. */
static int area_axis(axis *a, const extent *e, int64_t resized, int64_t start, int64_t side) {
    double length = (double)e->length, scale = 1. / ((double)resized / length);
    int failed = alloc_axis(a, side, (int64_t)scale + 2, e);
    for (int64_t i = 0; i < side && !failed; i++) {
        double from = (double)(start + i) * scale, to = from + scale;
        double cell = scale < length - from ? scale : length - from;
        int64_t first = (int64_t)ceil(from), last = (int64_t)floor(to);
        if (last > e->length - 1) last = e->length - 1;
        if (first > last) first = last;
        int before = (double)first - from > 1e-3, after = to - (double)last > 1e-3;
        int64_t origin;
        float *weight = place_taps(a, i, first - before, last + after, e, &origin);
        if (!weight) return BAD_CALL;
        if (before) weight[first - 1 - origin] = (float)(((double)first - from) / cell);
        for (int64_t s = first; s < last; s++) weight[s - origin] = (float)(1.0 / cell);
        if (after) {
            double part = to - (double)last < 1. ? to - (double)last : 1.;
            weight[last - origin] = (float)((part < cell ? part : cell) / cell);
        }
    }
    return failed;
}

/* The integral of an image row from its start to `edge`: the sum of all cells before *cell, and weight[0], [1] and [2]
 * times the cells before, at and after *cell.
 *
 * Pixels are averages over their cells, so the integral is known at whole edges. In between it is interpolated by the
 * cubic through the four nearest ones: exact where the image is a parabola, and every cell keeps its average. */
static void integrate_to(double edge, int64_t length, int64_t *cell, double weight[3]) {
    double whole = floor(edge);
    if (whole > (double)(length - 1)) whole = (double)(length - 1);
    double u = edge - whole;
    *cell = (int64_t)whole;
    weight[0] = u * (u - 1) * (u - 2) / 6;
    weight[1] = u * (u + 1) * (5 - 2 * u) / 6;
    weight[2] = u * (u + 1) * (u - 1) / 6;
}

static int64_t clamp(int64_t value, int64_t length) {
    return value < 0 ? 0 : value > length - 1 ? length - 1 : value;
}

/* Average of the image over each of `side` equal parts of [from, to); beyond its border the outermost cell goes on. */
static int window_axis(axis *a, const extent *e, double from, double to, int64_t side) {
    double step = (to - from) / (double)side;
    /* A little more than the step, as rounding may move both ends of a part apart. */
    int failed = alloc_axis(a, side, (int64_t)ceil(step + 1e-6) + 3, e);
    for (int64_t i = 0; i < side && !failed; i++) {
        int64_t low, high, origin;
        double begin[3], end[3];
        integrate_to(from + step * (double)i, e->length, &low, begin);
        integrate_to(from + step * (double)(i + 1), e->length, &high, end);
        float *weight = place_taps(a, i, clamp(low - 1, e->length), clamp(high + 1, e->length) + 1, e, &origin);
        if (!weight) return BAD_CALL;
        for (int64_t s = low; s < high; s++) weight[s - origin] += (float)(1 / step);
        for (int64_t t = -1; t <= 1; t++) {
            weight[clamp(high + t, e->length) - origin] += (float)(end[t + 1] / step);
            weight[clamp(low + t, e->length) - origin] -= (float)(begin[t + 1] / step);
        }
    }
    return failed;
}

static void mirror_axis(axis *a, int64_t side) {
    for (int64_t i = 0, j = side - 1; i < j; i++, j--) {
        int64_t first = a->first[i];
        a->first[i] = a->first[j];
        a->first[j] = first;
        for (int64_t t = 0; t < a->taps; t++) {
            float weight = a->weights[i * a->taps + t];
            a->weights[i * a->taps + t] = a->weights[j * a->taps + t];
            a->weights[j * a->taps + t] = weight;
        }
    }
}

/* Rows resized along x at a time: they share the loading of weights. */
#define LANES 4
/* Red, green, blue, and one more: its sum is overwritten by the next pixel's, or has room after the last. */
typedef float quad __attribute__((vector_size(16)));
#define ROOM 1

static inline __attribute__((always_inline)) void resize_rows_by(
    float *const from[LANES], const axis *x, int64_t side, int64_t taps, float *const to[LANES]
) {
    for (int64_t i = 0; i < side; i++) {
        const float *weights = x->weights + i * taps;
        int64_t at = x->first[i] * 3;
        quad sums[LANES] = {{0}};
        for (int64_t t = 0; t < taps; t++, at += 3)
            for (int lane = 0; lane < LANES; lane++) {
                quad pixel;
                memcpy(&pixel, from[lane] + at, sizeof pixel);
                sums[lane] += pixel * weights[t];
            }
        for (int lane = 0; lane < LANES; lane++) memcpy(to[lane] + i * 3, &sums[lane], sizeof(quad));
    }
}

/* Along x: LANES rows of `cols` pixels to as many rows of 3 * side sums. */
WIDE static void resize_rows(
    const uint8_t *const rows[LANES], int64_t cols, const axis *x, int64_t side, float *const from[LANES],
    float *const to[LANES]
) {
    for (int lane = 0; lane < LANES; lane++) {
        const uint8_t *row = rows[lane];
        float *values = from[lane];
        for (int64_t i = 0; i < cols * 3; i++) values[i] = row[i];
    }
    switch (x->taps) {
        case 2: resize_rows_by(from, x, side, 2, to); break;
        case 3: resize_rows_by(from, x, side, 3, to); break;
        case 4: resize_rows_by(from, x, side, 4, to); break;
        case 5: resize_rows_by(from, x, side, 5, to); break;
        case 6: resize_rows_by(from, x, side, 6, to); break;
        default: resize_rows_by(from, x, side, x->taps, to);
    }
}

/* Adding it to a number of 0 to 2^22 and taking it off again rounds to a whole number, halves to even as OpenCV does. */
#define ROUNDER 12582912.f

/* Sums along y are held in registers, BLOCK at a time; rows of sums are multiples of it long. */
#define QUADS 8
#define BLOCK (4 * QUADS)

/* Along y: one row of `count` bytes from `taps` rows of sums. */
WIDE static void combine_rows(
    const float *const *rows, const float *weights, int64_t taps, int64_t count, float *restrict sums,
    uint8_t *restrict dst
) {
    for (int64_t i = 0; i < count; i += BLOCK) {
        quad sum[QUADS] = {{0}};
        for (int64_t t = 0; t < taps; t++)
            for (int q = 0; q < QUADS; q++) {
                quad part;
                memcpy(&part, rows[t] + i + 4 * q, sizeof part);
                sum[q] += part * weights[t];
            }
        memcpy(sums + i, sum, sizeof sum);
    }
    for (int64_t i = 0; i < count; i++) {
        float value = sums[i] > 0 ? sums[i] : 0;
        value = value < 255 ? value : 255;
        dst[i] = (uint8_t)(int32_t)(value + ROUNDER - ROUNDER);
    }
}

/* src holds the pixels of the two extents, in rows `stride` pixels apart. */
static int resize(
    const uint8_t *src, int64_t stride, const extent *ye, const extent *xe, const axis *y, const axis *x, uint8_t *dst,
    int64_t side
) {
    int64_t rows = ye->last - ye->first, cols = xe->last - xe->first;
    int64_t kept = y->taps + LANES - 1, long_row = cols * 3 + ROOM, short_row = (side * 3 + ROOM + BLOCK - 1) / BLOCK * BLOCK;
    float *memory = calloc((size_t)(LANES * long_row + (kept + 1) * short_row), sizeof *memory);
    const float **window = malloc((size_t)y->taps * sizeof *window);
    int failed = memory && window ? DONE : NO_ROOM;
    float *from[LANES], *reduced = memory + LANES * long_row, *sums = reduced + kept * short_row;
    for (int64_t lane = 0; lane < LANES && !failed; lane++) from[lane] = memory + lane * long_row;
    int64_t next = failed ? 0 : y->first[0];
    for (int64_t i = 0; i < side && !failed; i++) {
        for (; next < y->first[i] + y->taps; next += LANES) {
            const uint8_t *pixels[LANES];
            float *to[LANES];
            for (int64_t lane = 0; lane < LANES; lane++) {
                pixels[lane] = src + (next + lane < rows ? next + lane : rows - 1) * stride * 3;
                to[lane] = reduced + (next + lane) % kept * short_row;
            }
            resize_rows(pixels, cols, x, side, from, to);
        }
        for (int64_t t = 0; t < y->taps; t++) window[t] = reduced + (y->first[i] + t) % kept * short_row;
        combine_rows(window, y->weights + i * y->taps, y->taps, 3 * side, sums, dst + i * 3 * side);
    }
    free(memory);
    free(window);
    return failed;
}

static int bad_part(int64_t first, int64_t count, int64_t length) {
    return length < 1 || length > MAX_SIDE || first < 0 || first >= length || count < 1 || count > length - first;
}

/* OpenCV's resize with INTER_AREA of an image of height x width to resized_height x resized_width, of which `side` rows
 * and columns from (top, left) on are wanted, mirrored left to right where mirror is not 0.
 *
 * src: rows x cols RGB pixels, the part of the image at (row, col), in rows `stride` pixels apart; with it must be every
 * pixel that counts. dst: side x side RGB pixels.
 * Returns NOT_HERE where OpenCV does not take areas or takes whole ones: where the image grows, or shrinks by whole
 * numbers along both axes. */
EXPORT int32_t mixsize_area(
    const uint8_t *src, int64_t stride, int64_t row, int64_t col, int64_t rows, int64_t cols, int64_t height,
    int64_t width, int64_t resized_height, int64_t resized_width, int64_t top, int64_t left, int64_t mirror,
    uint8_t *dst, int64_t side
) {
    if (bad_part(row, rows, height) || bad_part(col, cols, width) || stride < cols) return BAD_CALL;
    if (bad_part(top, side, resized_height) || bad_part(left, side, resized_width)) return BAD_CALL;
    if (resized_height > height || resized_width > width) return NOT_HERE;
    if (height % resized_height == 0 && width % resized_width == 0) return NOT_HERE;
    extent ye = {height, row, row + rows}, xe = {width, col, col + cols};
    axis y = {0}, x = {0};
    int outcome = area_axis(&y, &ye, resized_height, top, side);
    if (!outcome) outcome = area_axis(&x, &xe, resized_width, left, side);
    if (!outcome && mirror) mirror_axis(&x, side);
    if (!outcome) outcome = resize(src, stride, &ye, &xe, &y, &x, dst, side);
    free_axis(&y);
    free_axis(&x);
    return outcome;
}

/* The window [top, bottom) x [left, right) of an image of height x width, averaged over side x side equal parts; its
 * edges may fall within pixels.
 *
 * src, stride, row, col, rows, cols, dst, mirror: as for mixsize_area. The pixels that count are those that the window
 * touches, and one more to each side where the image has it. */
EXPORT int32_t mixsize_resample(
    const uint8_t *src, int64_t stride, int64_t row, int64_t col, int64_t rows, int64_t cols, int64_t height,
    int64_t width, double top, double bottom, double left, double right, int64_t mirror, uint8_t *dst, int64_t side
) {
    if (bad_part(row, rows, height) || bad_part(col, cols, width) || stride < cols) return BAD_CALL;
    if (bad_part(0, side, MAX_SIDE)) return BAD_CALL;
    if (!(0 <= top && top < bottom && bottom <= (double)height)) return BAD_CALL;
    if (!(0 <= left && left < right && right <= (double)width)) return BAD_CALL;
    extent ye = {height, row, row + rows}, xe = {width, col, col + cols};
    axis y = {0}, x = {0};
    int outcome = window_axis(&y, &ye, top, bottom, side);
    if (!outcome) outcome = window_axis(&x, &xe, left, right, side);
    if (!outcome && mirror) mirror_axis(&x, side);
    if (!outcome) outcome = resize(src, stride, &ye, &xe, &y, &x, dst, side);
    free_axis(&y);
    free_axis(&x);
    return outcome;
}

#ifndef MIXSIZE_WITHOUT_PYTHON
/* Python only has to find and load the library. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpegcrop", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpegcrop(void) {
    return PyModule_Create(&module);
}
#endif
