#include "block.h"

#include "scratch.h"

namespace osaurus {

void project(const Kernels& kernels, Pool& pool, const Block& block, const float* x, size_t rows,
             const std::vector<const float*>& angles, float* projected) {
    const size_t width = block.width, stride = block.projected();
    float* const keys = projected + block.heads * width;
    matmul(kernels, pool, x, rows, block.size(),
           {{block.queries, projected, stride},
            {block.keys, keys, stride},
            {block.values, keys + block.kv_heads * width, stride}},
           &block.before_attention);
    pool.run(rows, 1 + 8192 / stride, [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; row++) {
            for (size_t head = 0; head < block.heads + block.kv_heads; head++) {
                float* const own = projected + row * stride + head * width;
                const Norm& norm = head < block.heads ? block.query_norm : block.key_norm;
                if (norm.weight) kernels.rms_norm(own, norm.weight, norm.epsilon, own, width);
                kernels.rotate(own, angles[row], angles[row] + block.turned / 2, block.neighbours, block.turned, width, own);
            }
        }
    });
}

void keep(const Kernels& kernels, const Block& block, const float* from, size_t stride, size_t batch, size_t length,
          const Kept& kept, size_t first) {
    for (size_t row = 0; row < batch * length; row++) {
        uint16_t* const to = kept.heads + row / length * kept.strides[0] + (first + row % length) * kept.strides[2];
        for (size_t head = 0; head < block.kv_heads; head++)
            kernels.narrow(from + row * stride + head * block.width, to + head * kept.strides[1], block.width);
    }
}

void finish(const Kernels& kernels, Pool& pool, const Block& block, Attention a, const float* x, float* out) {
    const size_t rows = a.batch * a.queries, attended = block.heads * block.width, size = block.size();
    thread_local Scratch scratch;
    float* const attention_out = (float*)scratch.get(rows * (attended + size + block.gate.weights.rows) * sizeof(float));
    a.out = attention_out;
    a.out_strides[0] = a.queries * attended, a.out_strides[1] = block.width, a.out_strides[2] = attended;
    attention(kernels, pool, a);
    float* const between = attention_out + rows * attended;
    float* const gated = between + rows * size;
    matmul(kernels, pool, a.out, rows, attended, {{block.output, between, size, x}});
    gated_matmul(kernels, pool, block.kind, between, rows, size, block.gate, block.up, gated, &block.before_network);
    matmul(kernels, pool, gated, rows, block.gate.weights.rows, {{block.down, out, size, between}});
}

}  // namespace osaurus
