/* Bytes to normalised floats: (value - mean) * scale, in float32. */

#include "engine.h"

#ifdef HAS_X86
#include <immintrin.h>
#endif

static void normalize_pixels(
    const uint8_t *pixels, int64_t from, int64_t count, const float *mean, const float *scale, int64_t plane,
    int64_t step, float *out
) {
    for (int64_t i = from; i < count; i++)
        for (int c = 0; c < 3; c++) out[c * plane + i * step] = ((float)pixels[3 * i + c] - mean[c]) * scale[c];
}

#ifdef HAS_X86
/* Eight pixels at a time, into three planes; returns how many it did. */
AVX2 static int64_t normalize_planes(
    const uint8_t *pixels, int64_t count, const float *mean, const float *scale, int64_t plane, float *out
) {
    const __m128i low[3] = {
        _mm_setr_epi8(0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
    };
    const __m128i high[3] = {
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1),
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        /* 24 bytes: 0 to 15, and 8 to 23. */
        __m128i a = _mm_loadu_si128((const __m128i *)(pixels + 3 * i));
        __m128i b = _mm_loadu_si128((const __m128i *)(pixels + 3 * i + 8));
        for (int c = 0; c < 3; c++) {
            __m128i bytes = _mm_or_si128(_mm_shuffle_epi8(a, low[c]), _mm_shuffle_epi8(b, high[c]));
            __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            values = _mm256_mul_ps(_mm256_sub_ps(values, _mm256_set1_ps(mean[c])), _mm256_set1_ps(scale[c]));
            _mm256_storeu_ps(out + c * plane + i, values);
        }
    }
    return i;
}
#endif

/* images x count RGB pixels to as many of three floats: plane by plane, or, where channels_last is not 0, side by
 * side. */
EXPORT void mixsize_normalize(
    const uint8_t *pixels, int64_t images, int64_t count, const float *mean, const float *scale, int64_t channels_last,
    float *out
) {
    for (int64_t n = 0; n < images; n++, pixels += 3 * count, out += 3 * count) {
        int64_t done = 0;
#ifdef HAS_X86
        if (!channels_last && has_avx2)
            done = normalize_planes(pixels, count, mean, scale, count, out);
#endif
        if (channels_last)
            normalize_pixels(pixels, 0, count, mean, scale, 1, 3, out);
        else
            normalize_pixels(pixels, done, count, mean, scale, count, 1, out);
    }
}
