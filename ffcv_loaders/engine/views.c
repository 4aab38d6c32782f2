/* A view at its side: an augmentation policy, colour jitter and random erasing.
 *
 * Sources: Cubuk et al. 2019, "AutoAugment: learning augmentation policies from data"; Cubuk et al. 2020, "RandAugment:
 * practical automated data augmentation with a reduced search space"; Mueller and Hutter 2021, "TrivialAugment:
 * tuning-free yet state-of-the-art data augmentation"; Zhong et al. 2020, "Random erasing data augmentation".
 */

#include "engine.h"

#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846
#define LEVELS 10.0
#define ATTEMPTS 10

/* Columns of a policy's table. Of a magnitude m, an operation takes BASE + SCALE m / 10; SIGNED: BASE - SCALE m / 10 as
 * often; WHOLE: without the fraction of the second term; cut to [LEAST, MOST]. */
enum { KIND, PROBABILITY, MAGNITUDE, BASE, SCALE, SIGNED, WHOLE, LEAST, MOST, COLUMNS };
/* Draws of a view's key. Of a layer's: the choice, and four for each operation. */
enum { JITTER_ORDER = 72, JITTER_FACTOR = 75, ERASED = 80, ERASED_PART = 81, POLICY = 128, OF_LAYER = 16 };
enum { APPLIED, MAGNITUDE_RADIUS, MAGNITUDE_ANGLE, SIGN, OF_OPERATION };

/* The matrix of a move in 16.16 fixed point, as Pillow's Image.transform and Image.rotate step through pixels: the source
 * of (x, y) is (m0 x + m1 y + m2, m3 x + m4 y + m5), counted between pixels. */
static void matrix_of(int64_t kind, double argument, int64_t side, double *fixed) {
    double m[6] = {1, 0, 0, 0, 1, 0}, centre = (double)side / 2, angle = -argument * PI / 180;
    double cosine = cos(angle), sine = sin(angle);
    switch (kind) {
        case SHEAR_X: m[1] = argument; break;
        case SHEAR_Y: m[3] = argument; break;
        case TRANSLATE_X: m[2] = floor(argument + 0.5); break;
        case TRANSLATE_Y: m[5] = floor(argument + 0.5); break;
        default:
            m[0] = m[4] = cosine;
            m[1] = sine;
            m[3] = -sine;
            m[2] = centre - cosine * centre - sine * centre;
            m[5] = centre + sine * centre - cosine * centre;
    }
    m[2] += (m[0] + m[1]) / 2;
    m[5] += (m[3] + m[4]) / 2;
    for (int k = 0; k < 6; k++) fixed[k] = floor(m[k] * 65536 + 0.5);
}

static double magnitude_of(const view_changes *c, uint64_t key, uint64_t draw, double magnitude) {
    double u = uniform(key, draw + MAGNITUDE_RADIUS);
    if (isinf(c->magnitude_std))
        magnitude *= u;
    else if (c->magnitude_std > 0)
        magnitude += c->magnitude_std * sqrt(-2 * log(1 - u)) * cos(2 * PI * uniform(key, draw + MAGNITUDE_ANGLE));
    return magnitude < 0 ? 0 : magnitude > c->magnitude_max ? c->magnitude_max : magnitude;
}

static void operate_at_random(
    const view_changes *c, const double *row, uint64_t key, uint64_t draw, int64_t side, uint8_t *pixels, uint8_t *scratch
) {
    if (uniform(key, draw + APPLIED) >= row[PROBABILITY]) return;
    double part = magnitude_of(c, key, draw, row[MAGNITUDE]) / LEVELS * row[SCALE];
    if (row[WHOLE] != 0) part = trunc(part);
    if (row[SIGNED] != 0 && uniform(key, draw + SIGN) < 0.5) part = -part;
    double parameters[6] = {fmin(fmax(row[BASE] + part, row[LEAST]), row[MOST])};
    int64_t kind = (int64_t)row[KIND];
    if (kind >= SHEAR_X) {
        matrix_of(kind, parameters[0], side, parameters);
        kind = AFFINE;
    }
    mixsize_operate(pixels, side, side, kind, parameters, c->fill, scratch);
}

/* One of the choices; by weight, one that is not in the set `taken`, which it joins. */
static int64_t draw_choice(const view_changes *c, double u, uint64_t *taken) {
    if (!c->weights) return (int64_t)(u * (double)c->choices);
    double total = 0;
    int64_t drawn = 0;
    for (int64_t i = 0; i < c->choices; i++) total += *taken >> i & 1 ? 0 : c->weights[i];
    u *= total;
    for (int64_t i = 0; i < c->choices; i++) {
        if (*taken >> i & 1) continue;
        drawn = i;
        u -= c->weights[i];
        if (u < 0) break;
    }
    *taken |= (uint64_t)1 << drawn;
    return drawn;
}

static void apply_layers(const view_changes *c, uint64_t key, int64_t side, uint8_t *pixels, uint8_t *scratch) {
    uint64_t taken = 0, draw = POLICY;
    for (int64_t layer = 0; layer < c->layers; layer++, draw += OF_LAYER) {
        const double *choice = c->table + draw_choice(c, uniform(key, draw), &taken) * c->length * COLUMNS;
        for (int64_t k = 0; k < c->length; k++) {
            uint64_t own = draw + 1 + (uint64_t)k * OF_OPERATION;
            operate_at_random(c, choice + k * COLUMNS, key, own, side, pixels, scratch);
        }
    }
}

/* Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter. */
static void jitter(const view_changes *c, uint64_t key, int64_t side, uint8_t *pixels, uint8_t *scratch) {
    const int64_t kinds[4] = {BRIGHTNESS, CONTRAST, COLOUR, HUE};
    int order[4] = {0, 1, 2, 3};
    for (int last = 3; last > 0; last--) {
        int other = (int)(uniform(key, JITTER_ORDER + (uint64_t)(3 - last)) * (last + 1)), moved = order[last];
        order[last] = order[other];
        order[other] = moved;
    }
    for (int k = 0; k < 4; k++) {
        int which = order[k];
        double most = c->jitter[which], centre = kinds[which] == HUE ? 0 : 1;
        if (most == 0) continue;
        double low = centre == 1 && most > 1 ? 0 : centre - most, high = centre + most;
        double parameters[6] = {low + (high - low) * uniform(key, JITTER_FACTOR + (uint64_t)which)};
        mixsize_operate(pixels, side, side, kinds[which], parameters, c->fill, scratch);
    }
}

/* Fill a rectangle of 1/50 to 1/3 of the area, 0.3 to 1 / 0.3 as high as wide, as timm's RandomErasing. */
static void erase(const view_changes *c, uint64_t key, int64_t side, uint8_t *pixels) {
    const double least = 0.02, most = 1.0 / 3, low = log(0.3), high = log(1 / 0.3);
    for (uint64_t draw = ERASED_PART; draw < ERASED_PART + 4 * ATTEMPTS; draw += 4) {
        double area = (double)(side * side) * (least + (most - least) * uniform(key, draw));
        double ratio = exp(low + (high - low) * uniform(key, draw + 1));
        int64_t height = (int64_t)rint(sqrt(area * ratio)), width = (int64_t)rint(sqrt(area / ratio));
        if (height >= side || width >= side) continue;
        int64_t top = (int64_t)(uniform(key, draw + 2) * (double)(side - height + 1));
        int64_t left = (int64_t)(uniform(key, draw + 3) * (double)(side - width + 1));
        for (int64_t row = top; row < top + height; row++)
            for (int64_t column = left; column < left + width; column++)
                memcpy(pixels + (row * side + column) * 3, c->fill, 3);
        return;
    }
}

void mixsize_change_view(
    const view_changes *c, uint64_t sample, uint64_t duplicate, int64_t side, uint8_t *pixels, uint8_t *scratch
) {
    uint64_t key = view_key(c->seed, c->epoch, sample, duplicate);
    apply_layers(c, key, side, pixels, scratch);
    jitter(c, key, side, pixels, scratch);
    if (uniform(key, ERASED) < c->erasing) erase(c, key, side, pixels);
}
