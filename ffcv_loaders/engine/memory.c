/* Memory that grows and is used again. */

#include "engine.h"

#include <stdlib.h>

void *reserve(buffer *b, size_t size) {
    if (b->size < size + SLACK) {
        /* With room to grow from the second time on. */
        b->size = size + SLACK + (b->bytes ? size / 4 : 0);
        free(b->bytes);
        b->bytes = malloc(b->size);
        if (!b->bytes) b->size = 0;
    }
    return b->bytes;
}

void release(buffer *b) {
    free(b->bytes);
    b->bytes = NULL;
    b->size = 0;
}
