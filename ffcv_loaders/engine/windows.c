/* Where each view is cut from, and whether it is mirrored.
 *
 * Every draw is a hash of (seed, epoch, sample, duplicate): the finaliser of SplitMix64 (Steele et al. 2014), in which
 * every bit of the input moves every bit of the output. Draw 0 of a view mirrors it; crops take the next ones.
 */

#include "engine.h"

#include <math.h>

#define GOLDEN 0x9E3779B97F4A7C15ull
#define ATTEMPTS 10

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

uint64_t view_key(uint64_t seed, uint64_t epoch, uint64_t sample, uint64_t duplicate) {
    uint64_t key = mix(seed + GOLDEN);
    key = mix((key ^ epoch) + GOLDEN);
    key = mix((key ^ sample) + GOLDEN);
    return mix((key ^ duplicate) + GOLDEN);
}

double uniform(uint64_t key, uint64_t draw) {
    return (double)(mix(key + (draw + 1) * GOLDEN) >> 11) * (1.0 / 9007199254740992.0);
}

/* A random part of the frame, as torchvision's RandomResizedCrop. parameters: least and greatest area, logarithms of the
 * least and the greatest width / height. */
static void random_resized(int64_t *window, int64_t height, int64_t width, uint64_t key, const double *parameters) {
    double least = parameters[0], most = parameters[1], low = parameters[2], high = parameters[3];
    for (uint64_t attempt = 0; attempt < ATTEMPTS; attempt++) {
        double area = (double)(height * width) * (least + (most - least) * uniform(key, 4 * attempt + 1));
        double ratio = exp(low + (high - low) * uniform(key, 4 * attempt + 2));
        int64_t w = (int64_t)rint(sqrt(area * ratio)), h = (int64_t)rint(sqrt(area / ratio));
        if (0 < w && w <= width && 0 < h && h <= height) {
            window[TOP] = (int64_t)(uniform(key, 4 * attempt + 3) * (double)(height - h + 1));
            window[LEFT] = (int64_t)(uniform(key, 4 * attempt + 4) * (double)(width - w + 1));
            window[HEIGHT] = h;
            window[WIDTH] = w;
            return;
        }
    }
    /* No fit (a very long frame): the largest central part whose ratio is allowed, as torchvision does. */
    int64_t h = height, w = width;
    double ratio = log((double)width / (double)height);
    if (ratio < low)
        h = (int64_t)rint((double)width / exp(low));
    else if (ratio > high)
        w = (int64_t)rint((double)height * exp(high));
    window[HEIGHT] = h = h > 1 ? h : 1;
    window[WIDTH] = w = w > 1 ? w : 1;
    window[TOP] = (height - h) / 2;
    window[LEFT] = (width - w) / 2;
}

/* The frame shifted by up to parameters[0] pixels. */
static void padded(int64_t *window, int64_t height, int64_t width, uint64_t key, const double *parameters) {
    int64_t padding = (int64_t)parameters[0];
    double shifts = (double)(2 * padding + 1);
    window[TOP] = (int64_t)(uniform(key, 1) * shifts) - padding;
    window[LEFT] = (int64_t)(uniform(key, 2) * shifts) - padding;
    window[HEIGHT] = height;
    window[WIDTH] = width;
}

/* The centre of the frame resized so that its shorter side has ceil(side / parameters[0]) pixels; torchvision rounds
 * halves to even. */
static void central(int64_t *window, int64_t height, int64_t width, int64_t side, const double *parameters) {
    int64_t shorter = height < width ? height : width, resized = (int64_t)ceil((double)side / parameters[0]);
    window[FRAME_HEIGHT] = resized * height / shorter;
    window[FRAME_WIDTH] = resized * width / shorter;
    window[TOP] = (int64_t)rint((double)(window[FRAME_HEIGHT] - side) / 2);
    window[LEFT] = (int64_t)rint((double)(window[FRAME_WIDTH] - side) / 2);
    window[HEIGHT] = window[WIDTH] = side;
}

void mixsize_draw_windows(
    int64_t kind, const double *parameters, int64_t flip, const int64_t *heights, const int64_t *widths,
    const int64_t *samples, int64_t count, int64_t duplicates, int64_t side, uint64_t seed, uint64_t epoch,
    int64_t *windows
) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < duplicates; d++) {
            uint64_t key = view_key(seed, epoch, (uint64_t)samples[i], (uint64_t)d);
            int64_t *window = windows + (i * duplicates + d) * WINDOW;
            window[FRAME_HEIGHT] = window[FRAME_WIDTH] = 0;
            if (kind == 0)
                random_resized(window, heights[i], widths[i], key, parameters);
            else if (kind == 1)
                padded(window, heights[i], widths[i], key, parameters);
            else
                central(window, heights[i], widths[i], side, parameters);
            window[FLIP] = flip && uniform(key, 0) < 0.5;
        }
}
