/* The compiled engine: from stored bytes to the views of a batch.
 *
 * Its parts, each of which knows only those above it:
 *
 *   processor.c what the processor can do
 *   memory.c    memory that grows and is used again
 *   jpeg.c      decode a part of a JPEG, whole or reduced
 *   jpegwrite.c write the smaller copies of an image
 *   resize.c    resize with Pillow's antialiased filters
 *   windows.c   where each view is cut from: the random draws
 *   sources.c   which stored copy each view is read from, and which views share a decode
 *   policy.c    AutoAugment's operations; a policy and cutout at the stored size
 *   views.c     policies, colour jitter and random erasing of a view at its side
 *   batch.c     a piece of a batch: read, decode, cut, resize, mirror, change
 *   normalize.c bytes to normalised floats
 *
 * native.py binds the exported functions through ctypes; nothing here knows of Python.
 *
 * Nothing here keeps state between calls: a result depends on the arguments alone. ctypes makes the calls without the
 * interpreter lock.
 */

#ifndef MIXSIZE_ENGINE_H
#define MIXSIZE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Wide vectors are used where the processor has them. Results are the same without: the arithmetic is in integers, or
 * in floats that are neither reordered nor fused. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(MIXSIZE_PLAIN)
#define HAS_X86 1
#define AVX2 __attribute__((target("avx2")))
/* processor.c: whether functions marked AVX2 may be called. */
extern int has_avx2;
#endif

enum {
    DONE = 0,
    BROKEN = 1,      /* libjpeg gave an error or a warning */
    OTHER_SIZE = 2,  /* the file's header contradicts the expected height and width */
    UNSUPPORTED = 3, /* not 8 bit, or neither grey, YCbCr nor RGB */
    NO_ROOM = 4,     /* the buffer is too small, or no memory is left */
    BAD_CALL = 5,    /* arguments out of range */
    UNREADABLE = 6,  /* the file's bytes could not be read */
};

/* The limits that a JPEG or .beton file can declare; libjpeg itself refuses a little less. */
#define MAX_SIDE 65535
/* Room for libjpeg's words on a broken file. */
#define MESSAGE_BYTES 200
/* Bytes behind the last pixel that may be read, though they never count: vectors are loaded whole. */
#define SLACK 64

/* -------------------------------------------------------------------------------------------------------- memory.c */

typedef struct {
    void *bytes;
    size_t size;
} buffer;

/* At least `size` bytes and the slack; NULL where there is no memory. What it held before is lost. */
void *reserve(buffer *b, size_t size);
void release(buffer *b);

/* Part of an image: `rows` x `cols` RGB pixels from (`row`, `col`) on, in rows `stride` pixels apart. */
typedef struct {
    const uint8_t *pixels;
    int64_t stride, row, col, rows, cols;
} part;

/* ---------------------------------------------------------------------------------------------------------- jpeg.c */

/* Decode `rows` x `cols` pixels at (`top`, `left`), counted in the image reduced by `denom`, as 8-bit RGB.
 *
 * jpeg, size: the file. height, width: what its header must say. denom: 1, 2, 4 or 8.
 * dst, capacity: where rows are written one after the other, each `placed[1]` pixels long and starting at column
 * `placed[0]` of the reduced image: more columns than asked for, as whole blocks are decoded. capacity is in bytes;
 * rows * reduced width * 3 always suffice.
 * message: MESSAGE_BYTES for libjpeg's own words on what is wrong, or NULL. */
EXPORT int32_t mixsize_jpeg_crop(
    const uint8_t *jpeg, uint64_t size, int64_t height, int64_t width, int64_t denom, int64_t top, int64_t left,
    int64_t rows, int64_t cols, uint8_t *dst, uint64_t capacity, int64_t *placed, char *message
);

/* ----------------------------------------------------------------------------------------------------- jpegwrite.c */

/* height x width RGB pixels as a JPEG with chroma at full resolution and optimised Huffman tables. *data is to be given to
 * mixsize_free, whatever the result. */
EXPORT int32_t mixsize_encode(
    const uint8_t *pixels, int64_t height, int64_t width, int64_t quality, uint8_t **data, uint64_t *size
);
EXPORT void mixsize_free(void *bytes);

/* -------------------------------------------------------------------------------------------------------- resize.c */

enum { BILINEAR = 0, BICUBIC = 1, AREA = 2 };

/* How one axis of an image is resized.
 *
 * The cells `from` to `to` become `resized` cells, of which `count` are wanted, from `first` on. The filter sees cells
 * from `least` to `most`: all of an axis, or a window's, where the window is cut out before it is resized.
 *
 * unit: 1 where cells are pixels of the full image. In a smaller copy each cell is an average over several of them;
 * unit is then the size of a pixel of the full image in cells, below 1, and bounds may fall within cells. */
typedef struct {
    double from, to, least, most, unit;
    int64_t resized, first, count;
} axis;

/* How the results along an axis are made of cells. */
typedef struct {
    /* The arguments that it was made for. */
    axis axis;
    int64_t length, low, high;
    int filter;
    int64_t taps, room;
    int32_t *first;   /* of each result, the first of its cells, counted from the first at hand */
    int16_t *weights; /* `taps` for each result, those that do not count 0 */
    float *exact;     /* the same before they are rounded, `room` for each result */
    int bits;         /* behind the point of a weight */
    buffer memory;
} weights;

/* Memory of `resize`. Weights are kept, of plain and mirrored rows: images of one size often need the same ones again. */
typedef struct {
    weights y, x[2];
    buffer rows, row;
} resizer;

void release_resizer(resizer *r);

/* A whole image's part from (top, left) to (bottom, right), resized to rows x cols pixels; unit: as in `axis`. */
EXPORT int32_t mixsize_resize(
    const uint8_t *pixels, int64_t height, int64_t width, double top, double bottom, double left, double right,
    double unit, int64_t rows, int64_t cols, int64_t filter, int64_t mirror, uint8_t *dst
);

/* Resizes a part of an image of height x width to y->count x x->count RGB pixels, mirrored left to right where mirror
 * is not 0. The part must hold every cell that counts. Returns BAD_CALL where it does not. */
int32_t resize(
    resizer *memory, const part *from, int64_t height, int64_t width, const axis *y, const axis *x, int filter,
    int mirror, uint8_t *dst
);

/* Cells that count: the first, and the one behind the last. */
void cells_of(const axis *a, int64_t length, int filter, int64_t *begin, int64_t *end);

/* ------------------------------------------------------------------------------------------------------- windows.c */

/* Windows of the views of a batch, (count * duplicates, 7); kind: 0 a random resized crop, 1 a shifted frame, 2 a central
 * crop. parameters: see each in windows.c. */
EXPORT void mixsize_draw_windows(
    int64_t kind, const double *parameters, int64_t flip, const int64_t *heights, const int64_t *widths,
    const int64_t *samples, int64_t count, int64_t duplicates, int64_t side, uint64_t seed, uint64_t epoch,
    int64_t *windows
);

/* Columns of a window. */
enum { TOP, LEFT, HEIGHT, WIDTH, FLIP, FRAME_HEIGHT, FRAME_WIDTH, WINDOW };

/* The key that all draws of a view derive from. */
uint64_t view_key(uint64_t seed, uint64_t epoch, uint64_t sample, uint64_t duplicate);
/* The draw-th number in [0, 1) of a view. Each number belongs to one use:
 *   0           mirroring (windows.c)
 *   1 to 40     the crop (windows.c)
 *   64 to 70    policy and cutout at the stored size (policy.c)
 *   72 to 78    colour jitter (views.c)
 *   80 to 120   random erasing (views.c)
 *   from 128    policy of the view at its side, 16 for each layer (views.c) */
double uniform(uint64_t key, uint64_t draw);

/* ------------------------------------------------------------------------------------------------------- sources.c */

/* Ratios at which a level can be decoded: source s is level s / RATIOS at 1 / 2^(s % RATIOS). */
#define RATIOS 4
#define MAX_LEVELS 8

/* One image's row of every level; level 0 is the full image. */
typedef struct {
    int64_t levels;
    int64_t height[MAX_LEVELS], width[MAX_LEVELS];
    uint64_t ptr[MAX_LEVELS], size[MAX_LEVELS];
    uint8_t is_jpeg[MAX_LEVELS];
} image;

/* The part of the full image that a view, or several, are made of, in its pixels; the area that is resized, summed over
 * the views; and a bit for each source with enough pixels. */
typedef struct {
    double top, bottom, left, right, area;
    uint64_t serves;
} need;

/* How the views of one image share decodes: `joint` has `count` entries, `group` one for each view. */
typedef struct {
    need *joint;
    int64_t *group;
    int64_t count;
    double *costs, *gains;
} groups;

/* The axes that a window is resized along, in pixels of the full image. */
void axes_of(const int64_t *window, int64_t height, int64_t width, int64_t side, axis *y, axis *x);
/* The same axis in cells of a source, which has `length` of them where the full image has `full`. */
axis axis_in(const axis *a, int64_t full, int64_t level_side, int ratio);
void source_size(const image *im, int source, int64_t *height, int64_t *width);
int cheapest(const image *im, const need *n);
/* The rows and columns of a source that must be decoded. */
void crop_in(const image *im, int source, const need *n, int64_t *top, int64_t *rows, int64_t *left, int64_t *cols);
/* Groups the views of an image. Returns DONE or NO_ROOM. */
int32_t group_views(
    buffer *memory, const image *im, const int64_t *windows, int64_t views, int64_t side, double min_oversampling,
    int filter, groups *g
);

/* -------------------------------------------------------------------------------------------------------- policy.c */

/* Changes of an image's pixels. Those from SHEAR_X on are moves by a matrix that views.c makes of one number. */
enum {
    AFFINE, AUTO_CONTRAST, BRIGHTNESS, COLOUR, CONTRAST, EQUALIZE, INVERT, POSTERIZE, SHARPNESS, SOLARIZE, SOLARIZE_ADD,
    HUE, IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE
};

/* Change height x width pixels in place.
 *
 * kind: AFFINE to IDENTITY. parameters: six; the matrix of AFFINE, else the first alone: the factor of BRIGHTNESS, COLOUR,
 * CONTRAST and SHARPNESS (1 changes nothing), the bits that POSTERIZE keeps, the value that SOLARIZE inverts from, what
 * SOLARIZE_ADD adds to values below 128, the part of the circle that HUE turns by.
 * fill: the colour that AFFINE moves in from outside. scratch: as many bytes as there are pixels'. */
EXPORT void mixsize_operate(
    uint8_t *pixels, int64_t height, int64_t width, int64_t kind, const double *parameters, const uint8_t *fill,
    uint8_t *scratch
);

/* What changes a view between its crop and its resize.
 *
 * table: (sub_policies, 2 operations, 2 signs, 8) doubles: kind, probability, six parameters. */
typedef struct {
    const double *table;
    int64_t sub_policies, cutout_px;
    uint64_t seed, epoch;
    uint8_t fill[4];
} policy;

/* Changes height x width RGB pixels in place; scratch has as many. */
EXPORT void mixsize_apply_policy(
    const policy *p, uint64_t sample, uint64_t duplicate, int64_t height, int64_t width, uint8_t *pixels,
    uint8_t *scratch
);

/* --------------------------------------------------------------------------------------------------------- views.c */

/* What changes a view after its resize, in this order: a policy, colour jitter, random erasing.
 *
 * table: (choices, length, columns of views.c). A policy draws one of `choices` in each of `layers`, and its `length`
 * operations follow each other. weights: of the choices, none of which is then drawn twice, or NULL: all alike.
 * magnitude_std: of the normal distribution about an operation's magnitude; infinite: uniform from 0 to it. Then it is
 * cut to [0, magnitude_max].
 * jitter: greatest change of brightness, contrast, saturation and hue; 0 where there is none.
 * erasing: the probability. fill: the colour of erased pixels and of those moved in from outside. */
typedef struct {
    const double *table, *weights;
    int64_t layers, choices, length;
    double magnitude_std, magnitude_max, jitter[4], erasing;
    uint64_t seed, epoch;
    uint8_t fill[4];
} view_changes;

/* Changes side x side RGB pixels in place; scratch has as many. */
EXPORT void mixsize_change_view(
    const view_changes *changes, uint64_t sample, uint64_t duplicate, int64_t side, uint8_t *pixels, uint8_t *scratch
);

/* --------------------------------------------------------------------------------------------------------- batch.c */

/* One batch; every thread that works on it calls mixsize_fill with the same one. native.py has its twin. */
typedef struct {
    /* The file: its descriptor, and where every copy of every image is, (levels, images) each. */
    int64_t file, levels, images;
    const int64_t *heights, *widths;
    const uint8_t *is_jpeg;
    const uint64_t *ptr, *size;
    /* The views: images (count,), windows (count * duplicates, 7), and where the pixels go. */
    const int64_t *samples, *windows;
    int64_t count, duplicates, side, filter;
    double min_oversampling;
    uint8_t *out;
    /* NULL where views go from their crop straight to their size. */
    const policy *policy;
    /* NULL where views stay as they were resized. */
    const view_changes *changes;
    /* The next image to take; the first that failed, or -1, and why. */
    int64_t next, failed;
    int32_t code;
    char message[MESSAGE_BYTES];
} batch;

/* A thread's memory. */
typedef struct {
    buffer stored, decoded, padded, canvas, groups;
    resizer resizer;
} workspace;

EXPORT workspace *mixsize_new_workspace(void);
EXPORT void mixsize_free_workspace(workspace *w);
/* Takes one image after another until none is left or one has failed. */
EXPORT void mixsize_fill(batch *b, workspace *w);
/* Offsets and lengths of the stored copies that a batch is read from, (count * duplicates, 2) at most. Returns how many
 * there are, or -1 where memory ran out. */
EXPORT int64_t mixsize_copies_to_read(const batch *b, workspace *w, int64_t *copies);

#endif
