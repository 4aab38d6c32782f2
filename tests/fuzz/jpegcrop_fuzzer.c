/* libFuzzer harness of ffcv_loaders/decode/jpegcrop.c; tests/fuzz/run builds and runs it.
 *
 * An input is a JPEG file, whose last bytes are also the arguments of the calls, so that any JPEG file is an input.
 * Buffers have exactly the size that is declared, for AddressSanitizer to watch. Besides, two properties are checked:
 * a crop has the pixels of the same crop of the whole image, and a mirrored resize those of the mirrored image. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../ffcv_loaders/decode/jpegcrop.c"

#define ARGUMENTS 16
/* Small images reach every line that large ones do, a hundred times as fast. */
#define MAX_PIXELS (1 << 16)

typedef struct {
    const uint8_t *at, *end;
} arguments;

static uint32_t take(arguments *a, int bytes) {
    uint32_t value = 0;
    for (; bytes > 0 && a->at < a->end; bytes--) value = value << 8 | *a->at++;
    return value;
}

/* From 0 to limit - 1. */
static int64_t below(arguments *a, int64_t limit) {
    return take(a, 2) % (limit > 0 ? limit : 1);
}

static void require(int holds) {
    if (!holds) abort();
}

/* What the first frame header says, so that not every input is refused at once; 0 where there is none. */
static void declared_size(const uint8_t *data, size_t size, int64_t *height, int64_t *width) {
    *height = *width = 0;
    for (size_t i = 2; i + 9 < size && data[i] == 0xFF;) {
        uint8_t marker = data[i + 1];
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
            *height = data[i + 5] << 8 | data[i + 6];
            *width = data[i + 7] << 8 | data[i + 8];
            return;
        }
        i += 2 + (size_t)(data[i + 2] << 8 | data[i + 3]);
    }
}

static void try_decode(const uint8_t *data, size_t size, arguments *a) {
    int64_t height, width, placed[2] = {-1, -1};
    char message[JMSG_LENGTH_MAX];
    declared_size(data, size, &height, &width);
    uint32_t odd = take(a, 1);
    if (odd % 16 == 0) height = below(a, 65536);
    if (odd % 16 == 1) width = below(a, 65536);
    if (height * width > MAX_PIXELS) return;
    int64_t denom = odd % 16 == 2 ? take(a, 1) : 1 << (odd >> 4) % 4;
    int64_t divisor = denom ? denom : 1;
    int64_t full_height = (height + divisor - 1) / divisor, full_width = (width + divisor - 1) / divisor;
    int64_t top = below(a, full_height), left = below(a, full_width);
    int64_t rows = 1 + below(a, full_height - top), cols = 1 + below(a, full_width - left);
    uint64_t room = (uint64_t)(rows * full_width * 3);
    if (odd % 16 == 3) top = (int32_t)take(a, 4);
    if (odd % 16 == 4) cols = (int32_t)take(a, 4);
    if (odd % 16 == 5) room = (uint64_t)below(a, (int64_t)room + 1);
    uint8_t *part = malloc(room ? room : 1);
    if (!part) return;
    int32_t code = mixsize_jpeg_crop(
        data, size, height, width, denom, top, left, rows, cols, part, room, placed, odd & 1 ? message : NULL
    );
    require(code >= DONE && code <= BAD_CALL);
    if (code == DONE) {
        require(placed[0] >= 0 && placed[0] <= left && left + cols <= placed[0] + placed[1]);
        require(placed[0] + placed[1] <= full_width);
        int64_t whole_placed[2];
        uint64_t whole_room = (uint64_t)(full_height * full_width * 3);
        uint8_t *whole = malloc(whole_room);
        if (whole && mixsize_jpeg_crop(data, size, height, width, denom, 0, 0, full_height, full_width, whole, whole_room,
                                       whole_placed, message) == DONE)
            for (int64_t r = 0; r < rows; r++)
                require(!memcmp(
                    part + (r * placed[1] + left - placed[0]) * 3, whole + ((top + r) * full_width + left) * 3,
                    (size_t)cols * 3
                ));
        free(whole);
    }
    free(part);
}

static void require_mirrored(const uint8_t *a, const uint8_t *b, int64_t side) {
    for (int64_t r = 0; r < side; r++)
        for (int64_t c = 0; c < side; c++)
            require(!memcmp(a + (r * side + c) * 3, b + (r * side + side - 1 - c) * 3, 3));
}

static void try_resize(const uint8_t *data, size_t size, arguments *a) {
    uint32_t odd = take(a, 1);
    int64_t height = 1 + below(a, 200), width = 1 + below(a, 200), side = 1 + below(a, 130);
    int64_t row = below(a, height), col = below(a, width);
    if (odd & 1) row = col = 0;
    int64_t rows = odd & 1 ? height : 1 + below(a, height - row), cols = odd & 1 ? width : 1 + below(a, width - col);
    if (odd % 8 == 2) rows = (int32_t)take(a, 4) % 300;
    int64_t stride = cols + (odd & 2 ? below(a, 5) : 0);
    int64_t room = rows > 0 ? ((rows - 1) * stride + cols) * 3 : 0;
    uint8_t *src = malloc(room ? (size_t)room : 1), *once = malloc((size_t)(side * side * 3)),
            *mirrored = malloc((size_t)(side * side * 3));
    if (src && once && mirrored) {
        for (int64_t i = 0; i < room; i++) src[i] = data[(size_t)i % size];
        int32_t code, again;
        if (odd & 4) {
            int64_t resized_height = side + below(a, 100), resized_width = side + below(a, 100);
            int64_t top = below(a, resized_height - side + 1), left = below(a, resized_width - side + 1);
            if (odd & 8) resized_height = (int32_t)take(a, 4);
            code = mixsize_area(src, stride, row, col, rows, cols, height, width, resized_height, resized_width, top, left,
                                0, once, side);
            again = mixsize_area(src, stride, row, col, rows, cols, height, width, resized_height, resized_width, top, left,
                                 1, mirrored, side);
        } else {
            double edges[4];
            for (int k = 0; k < 4; k++) edges[k] = (double)take(a, 2) / 65535 * (double)(k < 2 ? height : width);
            if (odd & 8) memcpy(&edges[odd >> 4 & 3], a->end - 8, 8);
            code = mixsize_resample(src, stride, row, col, rows, cols, height, width, edges[0], edges[1], edges[2], edges[3],
                                    0, once, side);
            again = mixsize_resample(src, stride, row, col, rows, cols, height, width, edges[0], edges[1], edges[2],
                                     edges[3], 1, mirrored, side);
        }
        require(code == again && code >= DONE && code <= NOT_HERE);
        if (code == DONE) require_mirrored(once, mirrored, side);
    }
    free(src);
    free(once);
    free(mirrored);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < ARGUMENTS + 1) return 0;
    arguments a = {data + size - ARGUMENTS, data + size};
    if (take(&a, 1) % 8 == 0)
        try_resize(data, size, &a);
    else
        try_decode(data, size, &a);
    return 0;
}
