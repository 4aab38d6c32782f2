/* JPEG: decode a part of an image, whole or reduced, with libjpeg-turbo.
 *
 * A decompressor is made for each call: one that is used again would hand one file's tables to the next, and making it
 * takes 5 microseconds.
 */

#include "engine.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo 1.5 or newer is needed: other libjpegs have no jpeg_crop_scanline"
#endif

_Static_assert(MESSAGE_BYTES >= JMSG_LENGTH_MAX, "libjpeg's words need room");

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

int32_t mixsize_jpeg_crop(
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
        /* libjpeg-turbo 2 refuses other depths itself; 3 leaves that to the check below. */
        return info.data_precision == 0 || info.data_precision == 8 ? BROKEN : UNSUPPORTED;
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
    /* All else is libjpeg's default, as Pillow has it: the accurate transform, smooth upsampling of chroma. */
    info.out_color_space = JCS_EXT_RGB;
    info.dct_method = JDCT_ISLOW;
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

