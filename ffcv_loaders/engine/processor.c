/* What the processor can do, found out when the library is loaded. */

#include "engine.h"

#ifdef HAS_X86
#include <cpuid.h>

int has_avx2;

/* Not __builtin_cpu_supports: built with zig, it answers no to everything. */
__attribute__((constructor)) static void find_out(void) {
    unsigned a, b, c, d, saved, unused;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
    /* Whether the system saves the registers' lower and upper halves. */
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    has_avx2 = (saved & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
#endif
