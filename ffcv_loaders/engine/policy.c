/* AutoAugment's operations on one uint8 image, bit for bit as Pillow does them, and cutout.
 *
 * Sources: Cubuk et al. 2019, "AutoAugment: learning augmentation policies from data", appendix; DeVries and Taylor 2017,
 * "Improved regularization of convolutional neural networks with cutout".
 */

#include "engine.h"

#include <math.h>
#include <string.h>

/* Columns of a policy's table. */
enum { KIND, PROBABILITY, PARAMETERS, COLUMNS = 8 };
enum { SUB_POLICY = 64, APPLIED = 65, SIGN = 67, CUTOUT_Y = 69, CUTOUT_X = 70 };

static uint8_t clip(int32_t value) {
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* The point on the line through two values, 0 at the degenerate one; in single precision, as Pillow. */
static uint8_t blend(int32_t degenerate, int32_t value, float factor) {
    return clip((int32_t)((float)degenerate + factor * (float)(value - degenerate)));
}

/* ITU-R 601 luma, in Pillow's fixed point. */
static int32_t grey_of(const uint8_t *pixel) {
    return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

/* matrix: 16.16 fixed point, the source of each pixel of the result. */
static void move(
    uint8_t *pixels, int64_t height, int64_t width, const double *matrix, const uint8_t *fill, uint8_t *scratch
) {
    int64_t m[6];
    for (int k = 0; k < 6; k++) m[k] = (int64_t)matrix[k];
    memcpy(scratch, pixels, (size_t)(height * width * 3));
    for (int64_t y = 0; y < height; y++) {
        int64_t x_in = m[2] + y * m[1], y_in = m[5] + y * m[4];
        for (int64_t x = 0; x < width; x++, x_in += m[0], y_in += m[3]) {
            int64_t column = x_in >> 16, row = y_in >> 16;
            int inside = 0 <= column && column < width && 0 <= row && row < height;
            memcpy(pixels + (y * width + x) * 3, inside ? scratch + (row * width + column) * 3 : fill, 3);
        }
    }
}

static void map_values(uint8_t *pixels, int64_t count, int kind, double strength) {
    int mask = kind == POSTERIZE ? ~((1 << (8 - (int)strength)) - 1) & 0xFF : 0xFF;
    double inverted_from = kind == INVERT ? 0 : kind == SOLARIZE ? strength : 256;
    uint8_t to[256];
    for (int value = 0; value < 256; value++) {
        int added = kind == SOLARIZE_ADD && value < 128 ? (int)strength : 0;
        to[value] = (uint8_t)(clip((value < inverted_from ? value : 255 - value) + added) & mask);
    }
    for (int64_t i = 0; i < 3 * count; i++) pixels[i] = to[pixels[i]];
}

static void stretch_contrast(uint8_t *pixels, int64_t count) {
    for (int c = 0; c < 3; c++) {
        int low = 255, high = 0;
        for (int64_t i = c; i < 3 * count; i += 3) {
            low = pixels[i] < low ? pixels[i] : low;
            high = pixels[i] > high ? pixels[i] : high;
        }
        if (high <= low) continue;
        double scale = 255.0 / (high - low), offset = -low * scale;
        uint8_t to[256];
        for (int value = low; value <= high; value++) to[value] = clip((int32_t)(value * scale + offset));
        for (int64_t i = c; i < 3 * count; i += 3) pixels[i] = to[pixels[i]];
    }
}

static void equalize(uint8_t *pixels, int64_t count) {
    for (int c = 0; c < 3; c++) {
        int64_t counts[256] = {0}, last = 255;
        for (int64_t i = c; i < 3 * count; i += 3) counts[pixels[i]]++;
        while (counts[last] == 0) last--;
        int64_t step = (count - counts[last]) / 255;
        if (step == 0) continue;
        int64_t below = step / 2;
        uint8_t to[256];
        for (int value = 0; value < 256; value++) {
            to[value] = (uint8_t)(below / step < 255 ? below / step : 255);
            below += counts[value];
        }
        for (int64_t i = c; i < 3 * count; i += 3) pixels[i] = to[pixels[i]];
    }
}

/* Blend with black, with each pixel's own grey, or with the mean grey. */
static void blend_with_grey(uint8_t *pixels, int64_t count, int kind, float factor) {
    int32_t grey = 0;
    if (kind == CONTRAST) {
        int64_t sum = 0;
        for (int64_t i = 0; i < count; i++) sum += grey_of(pixels + 3 * i);
        grey = (int32_t)((double)sum / (double)count + 0.5);
    }
    for (int64_t i = 0; i < count; i++) {
        if (kind == COLOUR) grey = grey_of(pixels + 3 * i);
        for (int c = 0; c < 3; c++) pixels[3 * i + c] = blend(grey, pixels[3 * i + c], factor);
    }
}

/* Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; pixels at the border have no smoothed value. */
static void sharpen(uint8_t *pixels, int64_t height, int64_t width, float factor, uint8_t *scratch) {
    int64_t row = 3 * width;
    memcpy(scratch, pixels, (size_t)(height * row));
    for (int64_t y = 1; y < height - 1; y++)
        for (int64_t i = y * row + 3; i < (y + 1) * row - 3; i++) {
            const uint8_t *at = scratch + i;
            int32_t total = 4 * at[0];
            for (int dy = -1; dy <= 1; dy++) total += at[dy * row - 3] + at[dy * row] + at[dy * row + 3];
            pixels[i] = blend((2 * total + 13) / 26, at[0], factor);
        }
}

/* The place on the circle of hues in 256 steps, after Smith 1978; in Pillow's precision. */
static uint8_t hue_of(const uint8_t *pixel, uint8_t most, uint8_t least) {
    float range = (float)(most - least), place;
    float r = (float)(most - pixel[0]) / range, g = (float)(most - pixel[1]) / range, b = (float)(most - pixel[2]) / range;
    if (pixel[0] == most)
        place = b - g;
    else if (pixel[1] == most)
        place = (float)(2.0 + r - b);
    else
        place = (float)(4.0 + g - r);
    place = (float)fmod(place / 6.0 + 1.0, 1.0);
    return clip((int32_t)(place * 255.0));
}

/* Turn the hues and leave saturation and value, all rounded to 8 bits in between, as Pillow's mode HSV is. */
static void turn_hues(uint8_t *pixels, int64_t count, double turn) {
    uint8_t steps = (uint8_t)(int32_t)(turn * 255);
    for (int64_t i = 0; i < count; i++) {
        uint8_t *pixel = pixels + 3 * i;
        uint8_t most = pixel[0] > pixel[1] ? pixel[0] : pixel[1], least = pixel[0] < pixel[1] ? pixel[0] : pixel[1];
        most = pixel[2] > most ? pixel[2] : most;
        least = pixel[2] < least ? pixel[2] : least;
        uint8_t saturation = most ? clip((int32_t)((float)(most - least) / (float)most * 255.0)) : 0;
        if (saturation == 0) {
            memset(pixel, most, 3);
            continue;
        }
        uint8_t hue = (uint8_t)(hue_of(pixel, most, least) + steps);
        int sector = (int)((float)hue * 6.0 / 255.0);
        float within = (float)((float)hue * 6.0 / 255.0 - (float)sector), share = (float)((float)saturation / 255.0);
        uint8_t p = clip((int32_t)round((float)most * (1.0 - share)));
        uint8_t q = clip((int32_t)round((float)most * (1.0 - share * within)));
        uint8_t t = clip((int32_t)round((float)most * (1.0 - share * (1.0 - within))));
        const uint8_t colours[6][3] = {{most, t, p}, {q, most, p}, {p, most, t}, {p, q, most}, {t, p, most}, {most, p, q}};
        memcpy(pixel, colours[sector % 6], 3);
    }
}

void mixsize_operate(
    uint8_t *pixels, int64_t height, int64_t width, int64_t kind, const double *parameters, const uint8_t *fill,
    uint8_t *scratch
) {
    int64_t count = height * width;
    float factor = (float)parameters[0];
    switch (kind) {
        case AFFINE: move(pixels, height, width, parameters, fill, scratch); break;
        case AUTO_CONTRAST: stretch_contrast(pixels, count); break;
        case BRIGHTNESS:
        case COLOUR:
        case CONTRAST: blend_with_grey(pixels, count, (int)kind, factor); break;
        case EQUALIZE: equalize(pixels, count); break;
        case HUE: turn_hues(pixels, count, parameters[0]); break;
        case IDENTITY: break;
        case SHARPNESS: sharpen(pixels, height, width, factor, scratch); break;
        default: map_values(pixels, count, (int)kind, parameters[0]);
    }
}

/* Fill a square about a pixel; its part outside is lost. */
static void cut_out(
    uint8_t *pixels, int64_t height, int64_t width, double y, double x, int64_t side, const uint8_t *fill
) {
    int64_t top = (int64_t)(y * (double)height) - side / 2, left = (int64_t)(x * (double)width) - side / 2;
    for (int64_t row = top < 0 ? 0 : top; row < top + side && row < height; row++)
        for (int64_t column = left < 0 ? 0 : left; column < left + side && column < width; column++)
            memcpy(pixels + (row * width + column) * 3, fill, 3);
}

void mixsize_apply_policy(
    const policy *p, uint64_t sample, uint64_t duplicate, int64_t height, int64_t width, uint8_t *pixels,
    uint8_t *scratch
) {
    uint64_t key = view_key(p->seed, p->epoch, sample, duplicate);
    if (p->sub_policies > 0) {
        int64_t drawn = (int64_t)(uniform(key, SUB_POLICY) * (double)p->sub_policies);
        for (uint64_t k = 0; k < 2; k++) {
            int64_t sign = (int64_t)(uniform(key, SIGN + k) * 2);
            const double *row = p->table + ((drawn * 2 + (int64_t)k) * 2 + sign) * COLUMNS;
            if (uniform(key, APPLIED + k) < row[PROBABILITY])
                mixsize_operate(pixels, height, width, (int64_t)row[KIND], row + PARAMETERS, p->fill, scratch);
        }
    }
    if (p->cutout_px > 0)
        cut_out(pixels, height, width, uniform(key, CUTOUT_Y), uniform(key, CUTOUT_X), p->cutout_px, p->fill);
}
