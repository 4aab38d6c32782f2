/* Writing JPEGs: the smaller copies of an image. */

#include "engine.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf leave;
} errors;

static void leave(j_common_ptr info) {
    longjmp(((errors *)info->err)->leave, 1);
}

void mixsize_free(void *bytes) {
    free(bytes);
}

int32_t mixsize_encode(
    const uint8_t *pixels, int64_t height, int64_t width, int64_t quality, uint8_t **data, uint64_t *size
) {
    struct jpeg_compress_struct info;
    errors err;
    unsigned char *bytes = NULL;
    unsigned long count = 0;

    *data = NULL;
    *size = 0;
    if (height < 1 || width < 1 || height > JPEG_MAX_DIMENSION || width > JPEG_MAX_DIMENSION) return BAD_CALL;
    info.err = jpeg_std_error(&err.base);
    err.base.error_exit = leave;
    if (setjmp(err.leave)) {
        /* Out of memory: only libjpeg knows where it has written to by now. */
        jpeg_destroy_compress(&info);
        return NO_ROOM;
    }
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &bytes, &count);
    info.image_width = (JDIMENSION)width;
    info.image_height = (JDIMENSION)height;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, (int)quality, TRUE);
    for (int c = 0; c < info.num_components; c++) info.comp_info[c].h_samp_factor = info.comp_info[c].v_samp_factor = 1;
    info.optimize_coding = TRUE;
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < info.image_height) {
        JSAMPROW row = (JSAMPROW)(pixels + (size_t)info.next_scanline * (size_t)width * 3);
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    *data = bytes;
    *size = count;
    return DONE;
}
