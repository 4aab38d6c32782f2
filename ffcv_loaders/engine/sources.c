/* Which copy of an image each view is read from: a stored level, perhaps reduced while it is decoded, chosen by cost.
 *
 * A source is a level of the file at 1/1, 1/2, 1/4 or 1/8 of its size, the ratios that libjpeg-turbo has fast transforms
 * for. A view may be read from any source in which its window still measures `min_oversampling` times the view's side,
 * along both axes; source 0, the full image, always serves. The cheapest one is taken, and views of one image share a
 * decode where that costs less than decoding twice. The choice depends only on the image's stored sizes, the windows of
 * its views and their side.
 */

#include "engine.h"

#include <math.h>
#include <string.h>

/* Nanoseconds, by least squares over 10,000 crops of 300 ImageNet images and their copies on one core at 2.3 GHz
 * (standard deviation 12 %); only their proportions matter. To set up a decode; for each byte of entropy-coded data down
 * to the crop's last row; for each pixel transformed, counted before the reduction; for each pixel resized. */
static const double OPEN = 5000, BYTE = 9.3, PIXEL[RATIOS] = {2.7, 1.6, 1.0, 0.1}, RESIZE = 0.8;

/* Views that are compared in pairs at once. Later ones join the groups that these form, as the time to compare all views
 * of an image grows with their number cubed. */
enum { TOGETHER = 32 };

void axes_of(const int64_t *window, int64_t height, int64_t width, int64_t side, axis *y, axis *x) {
    if (window[FRAME_HEIGHT] > 0) {
        /* The whole frame is resized, so the filter sees beyond the window. */
        *y = (axis){0, (double)height, 0, (double)height, 1, window[FRAME_HEIGHT], window[TOP], side};
        *x = (axis){0, (double)width, 0, (double)width, 1, window[FRAME_WIDTH], window[LEFT], side};
        return;
    }
    double top = (double)window[TOP], left = (double)window[LEFT];
    double bottom = top + (double)window[HEIGHT], right = left + (double)window[WIDTH];
    *y = (axis){top, bottom, top, bottom, 1, side, 0, side};
    *x = (axis){left, right, left, right, 1, side, 0, side};
}

axis axis_in(const axis *a, int64_t full, int64_t level_side, int ratio) {
    double scale = (double)level_side / ((double)full * (double)(1 << ratio));
    axis b = *a;
    b.from *= scale;
    b.to *= scale;
    b.least *= scale;
    b.most *= scale;
    b.unit = scale;
    return b;
}

void source_size(const image *im, int source, int64_t *height, int64_t *width) {
    int level = source / RATIOS, ratio = source % RATIOS;
    *height = (im->height[level] + (1 << ratio) - 1) >> ratio;
    *width = (im->width[level] + (1 << ratio) - 1) >> ratio;
}

/* Cells of a source that are needed for `low` to `high` of the full image. */
static void cells_in(
    double low, double high, int64_t full, int64_t level_side, int ratio, int64_t length, int64_t *first, int64_t *count
) {
    double scale = (double)level_side / ((double)full * (double)(1 << ratio));
    /* A neighbour to either side, as averages need it; one more, as rounding may move a bound by a cell. */
    int64_t more = scale < 1 ? 2 : 0;
    int64_t begin = (int64_t)floor(low * scale) - more, end = (int64_t)ceil(high * scale) + more;
    begin = begin < 0 ? 0 : begin < length ? begin : length - 1;
    end = end > length ? length : end > begin ? end : begin + 1;
    *first = begin;
    *count = end - begin;
}

void crop_in(const image *im, int source, const need *n, int64_t *top, int64_t *rows, int64_t *left, int64_t *cols) {
    int64_t height, width;
    int level = source / RATIOS, ratio = source % RATIOS;
    source_size(im, source, &height, &width);
    cells_in(n->top, n->bottom, im->height[0], im->height[level], ratio, height, top, rows);
    cells_in(n->left, n->right, im->width[0], im->width[level], ratio, width, left, cols);
}

static double cost_of(const image *im, int source, const need *n) {
    int64_t top, rows, left, cols, height, width;
    int level = source / RATIOS, ratio = source % RATIOS;
    crop_in(im, source, n, &top, &rows, &left, &cols);
    source_size(im, source, &height, &width);
    double coded = (double)im->size[level] * ((double)(top + rows) / (double)height);
    double shrunk = ((double)height / (double)im->height[0]) * ((double)width / (double)im->width[0]);
    return OPEN + BYTE * coded + PIXEL[ratio] * (double)(rows * cols << 2 * ratio) + RESIZE * n->area * shrunk;
}

/* The cheapest source that serves; the first of those that cost the same. */
static int cheapest_at(const image *im, const need *n, double *cost) {
    int best = 0;
    *cost = cost_of(im, 0, n);
    for (int source = 1; source < im->levels * RATIOS; source++)
        if (n->serves >> source & 1) {
            double other = cost_of(im, source, n);
            if (other < *cost) {
                best = source;
                *cost = other;
            }
        }
    return best;
}

int cheapest(const image *im, const need *n) {
    double cost;
    return cheapest_at(im, n, &cost);
}

static void need_of(
    const image *im, const int64_t *window, int64_t side, double min_oversampling, int filter, need *n
) {
    int64_t height = im->height[0], width = im->width[0], begin, end;
    axis y, x;
    axes_of(window, height, width, side, &y, &x);
    double step_y = (y.to - y.from) / (double)y.resized, step_x = (x.to - x.from) / (double)x.resized;
    double tall = step_y * (double)side, wide = step_x * (double)side;
    n->area = tall * wide;
    n->serves = 1;
    if (window[FRAME_HEIGHT] > 0) {
        cells_of(&y, height, filter, &begin, &end);
        n->top = (double)begin;
        n->bottom = (double)end;
        cells_of(&x, width, filter, &begin, &end);
        n->left = (double)begin;
        n->right = (double)end;
    } else {
        n->top = y.from;
        n->bottom = y.to;
        n->left = x.from;
        n->right = x.to;
        if (n->top < 0 || n->left < 0 || n->bottom > (double)height || n->right > (double)width) return;
    }
    for (int level = 0; level < im->levels; level++) {
        if (level > 0 && (im->ptr[level] == im->ptr[level - 1] || !im->is_jpeg[level])) continue;
        for (int ratio = 0; ratio < RATIOS; ratio++) {
            double rows = tall * (double)im->height[level] / (double)(height << ratio);
            double cols = wide * (double)im->width[level] / (double)(width << ratio);
            if (rows >= min_oversampling * (double)side && cols >= min_oversampling * (double)side)
                n->serves |= (uint64_t)1 << (level * RATIOS + ratio);
        }
    }
}

static need join(const need *a, const need *b) {
    return (need){
        a->top < b->top ? a->top : b->top,       a->bottom > b->bottom ? a->bottom : b->bottom,
        a->left < b->left ? a->left : b->left,   a->right > b->right ? a->right : b->right,
        a->area + b->area,                       a->serves & b->serves,
    };
}

/* What is saved when groups a and b are decoded together. */
static double gain_of(const image *im, const groups *g, int64_t a, int64_t b) {
    need both = join(&g->joint[a], &g->joint[b]);
    double cost;
    cheapest_at(im, &both, &cost);
    return g->costs[a] + g->costs[b] - cost;
}

/* gains[a * views + b] for a < b. */
static void update_gains(const image *im, groups *g, int64_t views, int64_t changed) {
    for (int64_t other = 0; other < g->count; other++) {
        if (other == changed) continue;
        int64_t a = other < changed ? other : changed, b = other < changed ? changed : other;
        g->gains[a * views + b] = gain_of(im, g, a, b);
    }
}

/* Joins the two groups that save most, until joining saves nothing. */
static void join_groups(const image *im, groups *g, int64_t views, int64_t seen) {
    while (g->count > 1) {
        double saved = 0;
        int64_t first = 0, second = 0;
        for (int64_t a = 0; a < g->count; a++)
            for (int64_t b = a + 1; b < g->count; b++)
                if (g->gains[a * views + b] > saved) {
                    saved = g->gains[a * views + b];
                    first = a;
                    second = b;
                }
        if (saved == 0) return;
        g->joint[first] = join(&g->joint[first], &g->joint[second]);
        cheapest_at(im, &g->joint[first], &g->costs[first]);
        int64_t last = --g->count;
        g->joint[second] = g->joint[last];
        g->costs[second] = g->costs[last];
        for (int64_t view = 0; view < seen; view++)
            g->group[view] = g->group[view] == second ? first : g->group[view] == last ? second : g->group[view];
        update_gains(im, g, views, first);
        if (second < last) update_gains(im, g, views, second);
    }
}

int32_t group_views(
    buffer *memory, const image *im, const int64_t *windows, int64_t views, int64_t side, double min_oversampling,
    int filter, groups *g
) {
    size_t size = (size_t)views * (sizeof(need) + sizeof(int64_t) + sizeof(double) + (size_t)views * sizeof(double));
    g->joint = reserve(memory, size);
    if (!g->joint) return NO_ROOM;
    g->group = (int64_t *)(g->joint + views);
    g->costs = (double *)(g->group + views);
    g->gains = g->costs + views;
    g->count = 0;
    int64_t most = TOGETHER;
    for (int64_t view = 0; view < views; view++) {
        if (g->count == most) {
            join_groups(im, g, views, view);
            most = g->count + TOGETHER;
        }
        int64_t alone = g->group[view] = g->count++;
        need_of(im, windows + view * WINDOW, side, min_oversampling, filter, &g->joint[alone]);
        cheapest_at(im, &g->joint[alone], &g->costs[alone]);
        update_gains(im, g, views, alone);
    }
    join_groups(im, g, views, views);
    return DONE;
}
