// The kernels for one instruction set. CMakeLists.txt compiles this file once for each, with the flags that it takes and
// its name as OSAURUS_KERNELS.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace osaurus {
namespace OSAURUS_KERNELS {

#include "lanes.h"

// Sixteen registers hold fewer sums than thirty-two.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t PANEL_ROWS = 8;
#elif defined(__AVX2__)
constexpr size_t PANEL_ROWS = 6;
#else
constexpr size_t PANEL_ROWS = 4;
#endif

#include "matmul_kernel.h"
#include "elementwise_kernel.h"
#include "attention_kernel.h"

#define AS_TEXT(name) #name
#define TEXT(name) AS_TEXT(name)

extern const Kernels kernels;
const Kernels kernels = {TEXT(OSAURUS_KERNELS), PANEL_ROWS, WIDTH, quantise, multiply, glu, rms_norm, rotate, narrow,
                         attend, log_sum_exp, block_maxima, divide, argmax};

}  // namespace OSAURUS_KERNELS
}  // namespace osaurus
