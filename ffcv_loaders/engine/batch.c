/* A batch: read, decode, cut, resize, mirror and change its views, straight in their places. */

#include "engine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

workspace *mixsize_new_workspace(void) {
    return calloc(1, sizeof(workspace));
}

void mixsize_free_workspace(workspace *w) {
    buffer *all[] = {&w->stored, &w->decoded, &w->padded, &w->canvas, &w->groups};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) release(all[i]);
    release_resizer(&w->resizer);
    free(w);
}

/* One image's row of every level. */
static image image_at(const batch *b, int64_t sample) {
    image im = {.levels = b->levels < MAX_LEVELS ? b->levels : MAX_LEVELS};
    for (int64_t level = 0; level < im.levels; level++) {
        int64_t at = level * b->images + sample;
        im.height[level] = b->heights[at];
        im.width[level] = b->widths[at];
        im.is_jpeg[level] = b->is_jpeg[at];
        im.ptr[level] = b->ptr[at];
        im.size[level] = b->size[at];
    }
    return im;
}

/* A copy's bytes; NULL where the file ends before, or fails (UNREADABLE), or memory ran out (NO_ROOM). */
static const uint8_t *read_copy(const batch *b, const image *im, int level, workspace *w, int32_t *code) {
    uint8_t *bytes = reserve(&w->stored, im->size[level]);
    *code = bytes ? DONE : NO_ROOM;
    for (uint64_t done = 0; bytes && done < im->size[level];) {
        ssize_t count = pread((int)b->file, bytes + done, im->size[level] - done, (off_t)(im->ptr[level] + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            *code = UNREADABLE;
            return NULL;
        }
        done += (uint64_t)count;
    }
    return bytes;
}

static void copy_row(const uint8_t *from, int64_t count, int mirror, uint8_t *to) {
    if (!mirror) {
        memcpy(to, from, (size_t)(3 * count));
        return;
    }
    to += 3 * (count - 1);
    for (int64_t i = 0; i < count; i++, from += 3, to -= 3) memcpy(to, from, 3);
}

/* height x width pixels at (top, left) of the image, mirrored or not; black where the part does not hold them. */
static void copy_window(
    const part *p, int64_t top, int64_t left, int64_t height, int64_t width, int mirror, uint8_t *to
) {
    int64_t first = left > p->col ? left : p->col;
    int64_t end = left + width < p->col + p->cols ? left + width : p->col + p->cols;
    for (int64_t y = top; y < top + height; y++, to += 3 * width) {
        int there = p->row <= y && y < p->row + p->rows && first < end;
        if (!there || end - first < width) memset(to, 0, (size_t)(3 * width));
        if (!there) continue;
        int64_t before = mirror ? left + width - end : first - left;
        const uint8_t *from = p->pixels + ((y - p->row) * p->stride + first - p->col) * 3;
        copy_row(from, end - first, mirror, to + 3 * before);
    }
}

/* A view out of the pixels of the full image, or of the part of it that counts. */
static int32_t cut_full(
    workspace *w, const part *p, int64_t height, int64_t width, const int64_t *window, int64_t side, int filter,
    uint8_t *out
) {
    int mirror = window[FLIP] != 0;
    axis y, x;
    axes_of(window, height, width, side, &y, &x);
    if (window[FRAME_HEIGHT] > 0) return resize(&w->resizer, p, height, width, &y, &x, filter, mirror, out);
    int64_t top = window[TOP], left = window[LEFT], rows = window[HEIGHT], cols = window[WIDTH];
    if (rows == side && cols == side) {
        copy_window(p, top, left, side, side, mirror, out);
        return DONE;
    }
    if (top >= 0 && left >= 0 && top + rows <= height && left + cols <= width)
        return resize(&w->resizer, p, height, width, &y, &x, filter, mirror, out);
    /* A window that reaches over the border is padded before it is resized. */
    uint8_t *padded = reserve(&w->padded, (size_t)(rows * cols * 3));
    if (!padded) return NO_ROOM;
    copy_window(p, top, left, rows, cols, 0, padded);
    part whole = {padded, cols, 0, 0, rows, cols};
    int64_t moved[WINDOW] = {[HEIGHT] = rows, [WIDTH] = cols};
    axes_of(moved, rows, cols, side, &y, &x);
    return resize(&w->resizer, &whole, rows, cols, &y, &x, filter, mirror, out);
}

/* A view that a policy changes: cut at the stored size, changed, then resized. */
static int32_t cut_changed(
    workspace *w, const batch *b, const part *p, int64_t sample, int64_t duplicate, const int64_t *window, uint8_t *out
) {
    int64_t height = window[HEIGHT], width = window[WIDTH];
    size_t bytes = (size_t)(height * width * 3);
    uint8_t *view = reserve(&w->canvas, 2 * bytes + SLACK);
    if (!view) return NO_ROOM;
    copy_window(p, window[TOP], window[LEFT], height, width, window[FLIP] != 0, view);
    mixsize_apply_policy(b->policy, (uint64_t)sample, (uint64_t)duplicate, height, width, view, view + bytes + SLACK);
    part whole = {view, width, 0, 0, height, width};
    int64_t all[WINDOW] = {[HEIGHT] = height, [WIDTH] = width};
    return cut_full(w, &whole, height, width, all, b->side, (int)b->filter, out);
}

static int32_t cut_view(
    workspace *w, const batch *b, const part *p, const image *im, int64_t i, int64_t d, uint8_t *out
) {
    const int64_t *window = b->windows + (i * b->duplicates + d) * WINDOW;
    if (b->policy) return cut_changed(w, b, p, b->samples[i], d, window, out);
    return cut_full(w, p, im->height[0], im->width[0], window, b->side, (int)b->filter, out);
}

/* A view out of a smaller copy. */
static int32_t cut_reduced(
    workspace *w, const batch *b, const part *p, const image *im, int source, const int64_t *window, uint8_t *out
) {
    int64_t height, width;
    int level = source / RATIOS, ratio = source % RATIOS;
    axis y, x;
    source_size(im, source, &height, &width);
    axes_of(window, im->height[0], im->width[0], b->side, &y, &x);
    y = axis_in(&y, im->height[0], im->height[level], ratio);
    x = axis_in(&x, im->width[0], im->width[level], ratio);
    return resize(&w->resizer, p, height, width, &y, &x, (int)b->filter, window[FLIP] != 0, out);
}

static int32_t fill_jpeg(workspace *w, batch *b, const image *im, int64_t i, uint8_t *out, char *message) {
    groups g;
    const int64_t *windows = b->windows + i * b->duplicates * WINDOW;
    /* A policy takes its views at the stored size. */
    double least = b->policy ? INFINITY : b->min_oversampling;
    int32_t code = group_views(&w->groups, im, windows, b->duplicates, b->side, least, (int)b->filter, &g);
    const uint8_t *jpeg = NULL;
    int held = -1;
    for (int64_t n = 0; !code && n < g.count; n++) {
        int64_t top, rows, left, cols, height, width, placed[2];
        int source = cheapest(im, &g.joint[n]), level = source / RATIOS;
        if (level != held) jpeg = read_copy(b, im, level, w, &code);
        if (code) break;
        held = level;
        crop_in(im, source, &g.joint[n], &top, &rows, &left, &cols);
        source_size(im, source, &height, &width);
        size_t room = (size_t)(rows * width * 3);
        uint8_t *pixels = reserve(&w->decoded, room);
        if (!pixels) return NO_ROOM;
        code = mixsize_jpeg_crop(
            jpeg, im->size[level], im->height[level], im->width[level], 1 << source % RATIOS, top, left, rows, cols,
            pixels, room, placed, message
        );
        part p = {pixels, placed[1], top, placed[0], rows, placed[1]};
        for (int64_t d = 0; !code && d < b->duplicates; d++) {
            if (g.group[d] != n) continue;
            uint8_t *view = out + d * b->side * b->side * 3;
            code = source == 0 ? cut_view(w, b, &p, im, i, d, view)
                               : cut_reduced(w, b, &p, im, source, windows + d * WINDOW, view);
        }
    }
    return code;
}

static int32_t fill_raw(workspace *w, const batch *b, const image *im, int64_t i, uint8_t *out) {
    int32_t code;
    const uint8_t *pixels = read_copy(b, im, 0, w, &code);
    part p = {pixels, im->width[0], 0, 0, im->height[0], im->width[0]};
    for (int64_t d = 0; !code && d < b->duplicates; d++)
        code = cut_view(w, b, &p, im, i, d, out + d * b->side * b->side * 3);
    return code;
}

/* Whether a view can be cut out of an image by this window. */
static int is_window(const int64_t *window, int64_t side) {
    const int64_t most = 4 * MAX_SIDE;
    for (int k = TOP; k <= WIDTH; k++)
        if (window[k] < -most || window[k] > most) return 0;
    if (window[FRAME_HEIGHT] > 0)
        return window[TOP] >= 0 && window[LEFT] >= 0 && window[FRAME_HEIGHT] <= most && window[FRAME_WIDTH] <= most &&
               window[TOP] + side <= window[FRAME_HEIGHT] && window[LEFT] + side <= window[FRAME_WIDTH];
    return 1 <= window[HEIGHT] && window[HEIGHT] <= MAX_SIDE && 1 <= window[WIDTH] && window[WIDTH] <= MAX_SIDE;
}

static int32_t change_views(workspace *w, const batch *b, int64_t i, uint8_t *out) {
    int64_t bytes = b->side * b->side * 3;
    uint8_t *scratch = reserve(&w->canvas, (size_t)bytes);
    if (!scratch) return NO_ROOM;
    for (int64_t d = 0; d < b->duplicates; d++)
        mixsize_change_view(b->changes, (uint64_t)b->samples[i], (uint64_t)d, b->side, out + d * bytes, scratch);
    return DONE;
}

static int32_t fill_image(workspace *w, batch *b, int64_t i, char *message) {
    image im = image_at(b, b->samples[i]);
    uint8_t *out = b->out + i * b->duplicates * b->side * b->side * 3;
    for (int64_t level = 0; level < im.levels; level++)
        if (im.height[level] < 1 || im.height[level] > MAX_SIDE || im.width[level] < 1 || im.width[level] > MAX_SIDE)
            return BAD_CALL;
    for (int64_t d = 0; d < b->duplicates; d++)
        if (!is_window(b->windows + (i * b->duplicates + d) * WINDOW, b->side)) return BAD_CALL;
    int32_t code = im.is_jpeg[0] ? fill_jpeg(w, b, &im, i, out, message) : fill_raw(w, b, &im, i, out);
    return code || !b->changes ? code : change_views(w, b, i, out);
}

void mixsize_fill(batch *b, workspace *w) {
    while (__atomic_load_n(&b->failed, __ATOMIC_RELAXED) < 0) {
        int64_t i = __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED);
        if (i >= b->count) return;
        char message[MESSAGE_BYTES] = {0};
        int32_t code = fill_image(w, b, i, message);
        int64_t none = -1;
        if (code && __atomic_compare_exchange_n(&b->failed, &none, i, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            b->code = code;
            memcpy(b->message, message, sizeof message);
        }
    }
}

int64_t mixsize_copies_to_read(const batch *b, workspace *w, int64_t *copies) {
    int64_t found = 0;
    for (int64_t i = 0; i < b->count; i++) {
        image im = image_at(b, b->samples[i]);
        groups g = {.count = 1};
        const int64_t *windows = b->windows + i * b->duplicates * WINDOW;
        double least = b->policy ? INFINITY : b->min_oversampling;
        if (im.is_jpeg[0] &&
            group_views(&w->groups, &im, windows, b->duplicates, b->side, least, (int)b->filter, &g) != DONE)
            return -1;
        for (int64_t n = 0; n < g.count; n++, found++) {
            int level = im.is_jpeg[0] ? cheapest(&im, &g.joint[n]) / RATIOS : 0;
            copies[2 * found] = (int64_t)im.ptr[level];
            copies[2 * found + 1] = (int64_t)im.size[level];
        }
    }
    return found;
}
