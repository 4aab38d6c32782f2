/* A page of a mapped file that is gone, as somebody cut the file short or its disk failed, sends SIGBUS to the thread that
 * touches it, which ends the process. Pages of guarded mappings read as zeros instead, and are counted: whoever reads from
 * one asks afterwards whether all of it was there. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* Mapped files that are open at one time; those beyond go unguarded. */
#define MAX_GUARDED 256

static struct {
    _Atomic uintptr_t begin, end;
    _Atomic int64_t missing;
} guarded[MAX_GUARDED];
static struct sigaction before;
static atomic_flag handed_on = ATOMIC_FLAG_INIT;
static uintptr_t page_bytes;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    int is_fault = info->si_code > 0; /* and not sent by a process, which gives no address */
    for (int i = 0; is_fault && i < MAX_GUARDED; i++) {
        if (at < atomic_load(&guarded[i].begin) || at >= atomic_load(&guarded[i].end)) continue;
        /* A system call without a lock: safe in a handler, though POSIX does not list it. */
        void *page = (void *)(at / page_bytes * page_bytes);
        if (mmap(page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) break;
        atomic_fetch_add(&guarded[i].missing, 1);
        return; /* and read again */
    }
    /* Not ours: whose turn it was before has it when the access is repeated, and the system after that. */
    if (atomic_flag_test_and_set(&handed_on)) signal(SIGBUS, SIG_DFL);
    else sigaction(SIGBUS, &before, NULL);
    if (!is_fault) raise(number);
}

/* Also where somebody else has taken the signal since the last time, as Python's faulthandler does when it is enabled. */
static int catch_bus_errors(void) {
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now)) return -1;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error) return 0;
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    before = now;
    atomic_flag_clear(&handed_on);
    return sigaction(SIGBUS, &action, NULL);
}

/* Guard a mapping; returns what to release it with, or -1 where it cannot be guarded. Not for several threads at once. */
EXPORT int32_t mixsize_guard(uint64_t address, uint64_t size) {
    if (catch_bus_errors()) return -1;
    for (int32_t i = 0; i < MAX_GUARDED; i++) {
        if (atomic_load(&guarded[i].end)) continue;
        atomic_store(&guarded[i].missing, 0);
        atomic_store(&guarded[i].begin, (uintptr_t)address);
        atomic_store(&guarded[i].end, (uintptr_t)(address + size));
        return i;
    }
    return -1;
}

/* Pages that were touched and not there. */
EXPORT int64_t mixsize_missing(int32_t guard) {
    return atomic_load(&guarded[guard].missing);
}

EXPORT void mixsize_release(int32_t guard) {
    atomic_store(&guarded[guard].end, 0);
    atomic_store(&guarded[guard].begin, 0);
}
