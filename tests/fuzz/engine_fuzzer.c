/* libFuzzer harness of the engine (ffcv_loaders/engine); tests/fuzz/run builds and runs it.
 *
 * An input is a JPEG file, whose last bytes are also the arguments of the calls, so that any JPEG file is an input.
 * Buffers have exactly the size that is declared, for AddressSanitizer to watch. One call in four decodes a part of the
 * JPEG; the others fill a batch: several images, stored as JPEG or raw, with smaller copies or without, in any window,
 * size, filter and number of duplicates, with a policy and changes of the views or without. Besides, three properties are checked: a crop has the
 * pixels of the same crop of the whole image, a view has the same pixels alone as among others, and what is announced to
 * be read is among what is stored. */

#define _GNU_SOURCE
#include "../../ffcv_loaders/engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARGUMENTS 64
/* Small images reach every line that large ones do, a hundred times as fast. */
#define MAX_PIXELS (1 << 14)
#define IMAGES 3
#define LEVELS 3

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
    char message[MESSAGE_BYTES];
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

/* The tables of a file. */
typedef struct {
    int64_t heights[LEVELS * IMAGES], widths[LEVELS * IMAGES];
    uint8_t is_jpeg[LEVELS * IMAGES];
    uint64_t ptr[LEVELS * IMAGES], size[LEVELS * IMAGES];
} tables;

static int file_of_all = -1;

/* Appends bytes to the file. */
static void store(tables *t, int64_t at, const uint8_t *bytes, uint64_t size, uint64_t *end) {
    t->ptr[at] = *end;
    t->size[at] = size;
    require(pwrite(file_of_all, bytes, size, (off_t)*end) == (ssize_t)size);
    *end += size;
}

/* A smaller copy of a JPEG, as the converter makes it; 0 where the JPEG does not decode. */
static int store_copy(tables *t, int64_t from, int64_t at, const uint8_t *data, size_t size, uint64_t *end) {
    int64_t height = t->heights[from], width = t->widths[from], placed[2];
    int64_t rows = (height + 1) / 2, cols = (width + 1) / 2;
    uint8_t *whole = malloc((size_t)(height * width * 3)), *small = malloc((size_t)(rows * cols * 3)), *jpeg = NULL;
    uint64_t count = 0;
    int made = whole && small &&
               mixsize_jpeg_crop(data, size, height, width, 1, 0, 0, height, width, whole, (uint64_t)(height * width * 3),
                                 placed, NULL) == DONE &&
               mixsize_resize(whole, height, width, 0, (double)height, 0, (double)width, 1, rows, cols, AREA, 0, small) ==
                   DONE &&
               mixsize_encode(small, rows, cols, 85, &jpeg, &count) == DONE;
    if (made) {
        t->heights[at] = rows;
        t->widths[at] = cols;
        t->is_jpeg[at] = 1;
        store(t, at, jpeg, count, end);
    }
    mixsize_free(jpeg);
    free(whole);
    free(small);
    return made;
}

static void try_batch(const uint8_t *data, size_t size, arguments *a) {
    /* A new one for each input: memory of the size that the input needs, and no more. */
    workspace *memory = mixsize_new_workspace();
    if (file_of_all < 0) file_of_all = memfd_create("fuzz", 0);
    require(file_of_all >= 0 && memory != NULL && ftruncate(file_of_all, 0) == 0);
    tables t = {0};
    uint64_t end = 0;
    uint32_t odd = take(a, 1);
    int64_t levels = 1 + below(a, LEVELS), images = 1 + below(a, IMAGES);
    for (int64_t i = 0; i < images; i++) {
        int raw = below(a, 4) == 0;
        declared_size(data, size, &t.heights[i], &t.widths[i]);
        if (raw || below(a, 16) == 0) {
            t.heights[i] = 1 + below(a, 90);
            t.widths[i] = 1 + below(a, 90);
        }
        if (t.heights[i] * t.widths[i] > MAX_PIXELS || t.heights[i] * t.widths[i] == 0) {
            mixsize_free_workspace(memory);
            return;
        }
        t.is_jpeg[i] = !raw;
        if (raw) {
            uint64_t bytes = (uint64_t)(t.heights[i] * t.widths[i] * 3);
            uint8_t *pixels = malloc(bytes);
            if (!pixels) return;
            for (uint64_t k = 0; k < bytes; k++) pixels[k] = data[k % size];
            store(&t, i, pixels, bytes, &end);
            free(pixels);
        } else {
            store(&t, i, data, size, &end);
        }
        for (int64_t level = 1; level < levels; level++) {
            int64_t at = level * images + i, above = at - images;
            int own = !raw && level == 1 && store_copy(&t, above, at, data, size, &end);
            if (own) continue;
            t.heights[at] = t.heights[above];
            t.widths[at] = t.widths[above];
            t.is_jpeg[at] = t.is_jpeg[above];
            t.ptr[at] = t.ptr[above];
            t.size[at] = t.size[above];
        }
    }
    /* A file that was cut short. */
    if (odd % 16 == 1) require(ftruncate(file_of_all, (off_t)below(a, (int64_t)end)) == 0);

    int64_t duplicates = 1 + below(a, 4), side = 1 + below(a, 80), views = images * duplicates;
    int64_t samples[IMAGES], *windows = malloc((size_t)(views * WINDOW) * sizeof *windows);
    uint8_t *out = malloc((size_t)(views * side * side * 3)), *alone = malloc((size_t)(side * side * 3));
    int64_t *copies = malloc((size_t)(2 * views) * sizeof *copies);
    if (!windows || !out || !alone || !copies) return;
    for (int64_t i = 0; i < images; i++) samples[i] = below(a, images);
    int64_t heights[IMAGES], widths[IMAGES];
    for (int64_t i = 0; i < images; i++) {
        heights[i] = t.heights[samples[i]];
        widths[i] = t.widths[samples[i]];
    }
    int64_t kind = below(a, 3);
    double parameters[3][4] = {{0.08, 1, -0.29, 0.29}, {(double)below(a, 20)}, {0.5 + (double)below(a, 50) / 100}};
    mixsize_draw_windows(
        kind, parameters[kind], below(a, 2), heights, widths, samples, images, duplicates, side, take(a, 2), take(a, 1),
        windows
    );
    /* Windows that no crop draws. */
    if (odd % 8 == 2) windows[below(a, views * WINDOW)] = (int64_t)(int32_t)take(a, 4) % (odd & 16 ? 300 : 400000);
    if (odd % 8 == 3) windows[below(a, views * WINDOW)] = (int64_t)((uint64_t)take(a, 4) << 32 | take(a, 4));
    for (int64_t v = 0; v < views; v++) /* Not what takes a second. */
        if (windows[v * WINDOW + HEIGHT] > 2000 || windows[v * WINDOW + WIDTH] > 2000) goto end;

    double table[2 * 2 * 2 * 8] = {0};
    policy stored = {table, 2, below(a, 9), take(a, 2), take(a, 1), {9, 99, 200, 0}};
    for (int k = 0; k < 8; k++) {
        double *row = table + 8 * k;
        row[0] = (double)below(a, 10);
        row[1] = (double)below(a, 10) / 9;
        row[2] = row[0] == 0 ? 65536 : row[0] == 7 ? (double)below(a, 9) : (double)below(a, 256) / 100;
        if (row[0] == 0)
            for (int m = 3; m < 8; m++) row[m] = (double)((int32_t)take(a, 3) - (1 << 23));
    }
    /* Columns of a row: kind, probability, magnitude, base, scale, signed, whole, least, most. */
    double rows[4 * 2 * 9], weights[4] = {1, 0.5, 0, 3}, stds[] = {0, 0.5, 30, INFINITY};
    for (int k = 0; k < 8; k++) {
        double *row = rows + 9 * k, kind_of = (double)(1 + below(a, ROTATE));
        double most = kind_of == POSTERIZE ? 8 : kind_of == HUE ? 0.5 : 256, scale = (double)below(a, 500) - 250;
        double values[9] = {kind_of, (double)below(a, 3) / 2, (double)below(a, 20), (double)below(a, 256),
                            kind_of == HUE ? scale / 500 : scale, (double)below(a, 2), (double)below(a, 2),
                            kind_of == HUE ? -0.5 : kind_of >= SHEAR_X ? -256 : 0, most};
        memcpy(row, values, sizeof values);
    }
    view_changes changes = {
        .table = rows, .weights = odd & 8 ? weights : NULL, .layers = below(a, 5), .choices = 4, .length = 2,
        .magnitude_std = stds[below(a, 4)], .magnitude_max = 20, .jitter = {0.4, (double)below(a, 3), 0, 0.5},
        .erasing = (double)below(a, 3) / 2, .seed = take(a, 2), .fill = {9, 99, 200, 0},
    };
    double least[] = {INFINITY, 1, 0.5, 2};
    batch b = {
        .file = file_of_all, .levels = levels, .images = images, .heights = t.heights, .widths = t.widths,
        .is_jpeg = t.is_jpeg, .ptr = t.ptr, .size = t.size, .samples = samples, .windows = windows, .count = images,
        .duplicates = duplicates, .side = side, .filter = below(a, 2), .min_oversampling = least[below(a, 4)],
        .out = out, .policy = kind == 1 && odd & 32 ? &stored : NULL, .changes = odd & 64 ? &changes : NULL, .failed = -1,
    };
    batch announced = b;
    mixsize_fill(&b, memory);
    require(b.failed < images && (b.failed < 0) == (b.code == DONE));
    if (b.failed < 0) {
        int64_t found = mixsize_copies_to_read(&announced, memory, copies);
        require(found >= 0 && found <= views);
        for (int64_t c = 0; c < found; c++) {
            int known = 0;
            for (int64_t k = 0; k < levels * images; k++)
                known |= (uint64_t)copies[2 * c] == t.ptr[k] && (uint64_t)copies[2 * c + 1] == t.size[k];
            require(known);
        }
    }
    if (b.failed < 0 && isinf(b.min_oversampling) && !b.policy && !b.changes) {
        int64_t view = below(a, views);
        batch one = b;
        one.samples = samples + view / duplicates;
        one.windows = windows + view * WINDOW;
        one.count = one.duplicates = 1;
        one.out = alone;
        one.next = 0;
        mixsize_fill(&one, memory);
        require(one.failed < 0 && !memcmp(alone, out + view * side * side * 3, (size_t)(side * side * 3)));
    }
end:
    mixsize_free_workspace(memory);
    free(windows);
    free(out);
    free(alone);
    free(copies);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < ARGUMENTS + 1) return 0;
    arguments a = {data + size - ARGUMENTS, data + size};
    if (take(&a, 1) % 4 == 0)
        try_decode(data, size, &a);
    else
        try_batch(data, size, &a);
    return 0;
}
