// Which kernels this processor can run.
#include <cstdlib>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

#if defined(__x86_64__) && !defined(OSAURUS_PORTABLE_ONLY)
#define OSAURUS_X86
#elif defined(__aarch64__) && !defined(OSAURUS_PORTABLE_ONLY)
#define OSAURUS_ARM
#endif

namespace osaurus {

namespace portable {
extern const Kernels kernels;
}
#if defined(OSAURUS_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512vnni {
extern const Kernels kernels;
}
#elif defined(OSAURUS_ARM)
namespace neon {
extern const Kernels kernels;
}
#endif

namespace {

constexpr int MOST = 5;

struct Runnable {
    const Kernels* kernels[MOST] = {};
    const char* names[MOST + 1] = {};
    int count = 0;

    void add(const Kernels& one) {
        kernels[count] = &one;
        names[count++] = one.name;
    }

    Runnable() {
#if defined(OSAURUS_X86)
        __builtin_cpu_init();
        const bool has_avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        if (has_avx512 && __builtin_cpu_supports("avx512vnni")) add(avx512vnni::kernels);
        if (has_avx512) add(avx512::kernels);
        if (has_avx2) add(avx2::kernels);
#elif defined(OSAURUS_ARM) && defined(__linux__)
        constexpr unsigned long DOT_PRODUCT = 1ul << 20;  // HWCAP_ASIMDDP
        if (getauxval(AT_HWCAP) & DOT_PRODUCT) add(neon::kernels);
#elif defined(OSAURUS_ARM)
        add(neon::kernels);
#endif
        add(portable::kernels);
    }
};

const Runnable& runnable() {
    static const Runnable here;
    return here;
}

}  // namespace

const Kernels* find(const char* name) {
    for (int index = 0; index < runnable().count; index++)
        if (!std::strcmp(runnable().names[index], name)) return runnable().kernels[index];
    return nullptr;
}

const Kernels* best() {
    const char* wanted = std::getenv("OSAURUS_CPU_KERNELS");
    return wanted && *wanted ? find(wanted) : runnable().kernels[0];
}

const char* const* names() { return runnable().names; }

}  // namespace osaurus
