#include "arena.h"

#include <algorithm>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace osaurus {
namespace {

constexpr size_t ALIGNMENT = 64;
// Of what is asked for only the pages that are written to are taken.
constexpr size_t LARGE_PAGE = 2 << 20, CHUNK = 64 << 20;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

std::shared_ptr<uint8_t> chunk_of(size_t bytes) {
#if defined(__linux__)
    // Room to begin at a whole page.
    const size_t mapped = bytes + LARGE_PAGE;
    void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* const first = (uint8_t*)rounded((size_t)memory, LARGE_PAGE);
    // Where there are no large pages, small ones do.
    (void)madvise(first, bytes, MADV_HUGEPAGE);
    return {first, [memory, mapped](uint8_t*) { munmap(memory, mapped); }};
#else
    auto* const memory = (uint8_t*)::operator new(bytes, std::align_val_t(LARGE_PAGE));
    return {memory, [](uint8_t* given) { ::operator delete(given, std::align_val_t(LARGE_PAGE)); }};
#endif
}

}  // namespace

std::shared_ptr<uint8_t> Arena::take(size_t bytes) {
    bytes = rounded(bytes, ALIGNMENT);
    if (!chunk_ || bytes > size_ - taken_) {
        const size_t size = std::max(CHUNK, rounded(bytes, LARGE_PAGE));
        chunk_ = chunk_of(size);
        size_ = size;
        taken_ = 0;
    }
    taken_ += bytes;
    return {chunk_, chunk_.get() + taken_ - bytes};
}

}  // namespace osaurus
