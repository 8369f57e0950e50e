#include "primitives.h"

#include <atomic>
#include <cmath>

#include "mlx/allocator.h"
#include "mlx/utils.h"
#include "operation.h"
#include "packing.h"

namespace osaurus::shim {
namespace {

mx::Shape with_last(const mx::array& x, size_t last) {
    mx::Shape shape = x.shape();
    shape.back() = (int)last;
    return shape;
}

void require_rows(const mx::array& x, size_t columns) {
    require(x.dtype() == mx::float32, "x must be float32");
    require(x.ndim() > 0 && (size_t)x.shape(-1) == columns, "the last dimension of x must be that of the weights");
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

void use(const std::string& name) {
    const Kernels* found = name.empty() ? best() : find(name.c_str());
    require(found != nullptr, "these kernels cannot run on this processor");
    chosen = found;
}

const Kernels& kernels() {
    if (!chosen) use("");
    return *chosen;
}

PackedWeights pack(const mx::array& values, const mx::array& scales, const mx::array& biases, int bits, int group,
                   Arena& arena) {
    require(values.dtype() == mx::uint32, "values must be uint32");
    require(bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8, "no such number of bits");
    require(group == 32 || group == 64 || group == 128, "no such group size");
    require(values.ndim() == 2 || values.ndim() == 3, "values must have two or three dimensions");
    require(scales.shape() == biases.shape() && scales.dtype() == biases.dtype(), "scales and biases must be alike");
    require(scales.ndim() == values.ndim() && scales.shape(-2) == values.shape(-2), "scales must go with values");
    Weights shape;
    shape.rows = values.shape(-2);
    shape.columns = (size_t)scales.shape(-1) * group;
    shape.bits = bits <= 4 ? 4 : 8;
    shape.group = group;
    if (scales.dtype() == mx::float16) {
        shape.scale = Scale::float16;
    } else if (scales.dtype() == mx::bfloat16) {
        shape.scale = Scale::bfloat16;
    } else {
        require(scales.dtype() == mx::float32, "scales must be floating-point numbers");
        shape.scale = Scale::float32;
    }
    require((size_t)values.shape(-1) * 32 == shape.columns * bits, "values must have as many columns as scales");
    const size_t matrices = values.ndim() == 3 ? values.shape(0) : 1;
    require(matrices > 0 && shape.rows > 0 && shape.columns > 0, "there must be weights");
    require(values.ndim() == 2 || scales.shape(0) == values.shape(0), "scales must go with values");
    for (const auto* array : {&values, &scales, &biases})
        require(array->is_available() && array->flags().row_contiguous, "arrays must be evaluated and contiguous");

    // What GGUF's Q4_0 and Q8_0 become, for one. Of other widths the middle is not that of the packed ones.
    shape.symmetric = shape.bits == bits &&
                      are_symmetric(bits, shape.scale, scales.data<uint8_t>(), biases.data<uint8_t>(), scales.size());

    // MLX's own memory begins eight bytes behind where vectors would have it. It looks for a buffer's size there, too.
    constexpr size_t ALIGNMENT = 64;
    const size_t bytes = matrices * shape.bytes();
    std::shared_ptr<uint8_t> memory = arena.take(bytes + ALIGNMENT);
    auto* header = memory.get() + ALIGNMENT - sizeof(size_t);
    *(size_t*)header = bytes;
    mx::allocator::Data data(mx::allocator::Buffer(header), [memory](mx::allocator::Buffer) mutable { memory.reset(); });
    PackedWeights result{shape, matrices, mx::array(std::move(data), mx::Shape{(int)matrices, (int)shape.tiles(), (int)shape.tile_bytes()}, mx::uint8)};
    const size_t words = values.size() / matrices, numbers = scales.size() / matrices * shape.scale_bytes();
    for (size_t n = 0; n < matrices; n++)
        osaurus::pack(shape, bits, values.data<uint32_t>() + n * words, scales.data<uint8_t>() + n * numbers,
                      biases.data<uint8_t>() + n * numbers, result.packed.data<uint8_t>() + n * shape.bytes());
    return result;
}

std::vector<mx::array> matmul(const mx::array& x, const std::vector<std::shared_ptr<PackedWeights>>& weights,
                              const std::vector<std::optional<mx::array>>& biases) {
    require(!weights.empty() && biases.size() == weights.size(), "there must be a bias, or none, for each of the weights");
    Arrays inputs = {x};
    std::vector<mx::Shape> shapes;
    std::vector<Weights> formats;
    for (const auto& one : weights) {
        require(one != nullptr, "there must be weights");
        require_rows(x, one->shape.columns);
        require(one->matrices == 1, "there must be one matrix");
        inputs.push_back(one->packed);
        shapes.push_back(with_last(x, one->shape.rows));
        formats.push_back(one->shape);
    }
    std::vector<int> places;
    for (size_t n = 0; n < biases.size(); n++) {
        require_bias(biases[n], formats[n].rows);
        places.push_back(biases[n] ? (int)inputs.size() : -1);
        if (biases[n]) inputs.push_back(*biases[n]);
    }
    auto work = [formats, places](const Arrays& in, Arrays& out) {
        const size_t columns = formats[0].columns;
        std::vector<Product> products;
        std::vector<std::vector<float>> copies(formats.size());
        for (size_t n = 0; n < formats.size(); n++) {
            const float* bias = places[n] < 0 ? nullptr : flat<float>(in[places[n]], copies[n]);
            products.push_back({{formats[n], in[1 + n].data<uint8_t>(), bias}, out[n].data<float>(), formats[n].rows});
        }
        osaurus::matmul(kernels(), pool(), floats(in[0]), in[0].size() / columns, columns, products);
    };
    if (weights.size() == 1) return {make("QuantisedMatmul", shapes[0], mx::float32, std::move(inputs), std::move(work))};
    return mx::array::make_arrays(std::move(shapes), std::vector<mx::Dtype>(weights.size(), mx::float32),
                                  std::make_shared<Operation>("QuantisedMatmul", std::move(work)), inputs);
}

mx::array gated_matmul(const mx::array& x, const std::shared_ptr<PackedWeights>& a,
                       const std::shared_ptr<PackedWeights>& b, const std::string& gate,
                       const std::optional<mx::array>& a_bias, const std::optional<mx::array>& b_bias) {
    require_rows(x, a->shape.columns);
    require(a->shape.rows == b->shape.rows && a->shape.columns == b->shape.columns, "a and b must have one shape");
    require(a->matrices == 1 && b->matrices == 1, "there must be one matrix");
    require_bias(a_bias, a->shape.rows);
    require_bias(b_bias, b->shape.rows);
    require(a_bias.has_value() == b_bias.has_value(), "both or neither must have a bias");
    Arrays inputs = {x, a->packed, b->packed};
    if (a_bias) inputs.insert(inputs.end(), {*a_bias, *b_bias});
    const bool biased = a_bias.has_value();
    auto work = [kind = gate_of(gate), first = a->shape, second = b->shape, biased](const Arrays& in, Arrays& out) {
        std::vector<float> copies[2];
        const Matrix x_matrix = {first, in[1].data<uint8_t>(), biased ? flat<float>(in[3], copies[0]) : nullptr};
        const Matrix y_matrix = {second, in[2].data<uint8_t>(), biased ? flat<float>(in[4], copies[1]) : nullptr};
        osaurus::gated_matmul(kernels(), pool(), kind, floats(in[0]), in[0].size() / first.columns, first.columns,
                              x_matrix, y_matrix, out[0].data<float>());
    };
    return make("GatedQuantisedMatmul", with_last(x, a->shape.rows), mx::float32, std::move(inputs), std::move(work));
}

mx::array gather_matmul(const mx::array& x, const std::shared_ptr<PackedWeights>& weights, const mx::array& indices) {
    require_rows(x, weights->shape.columns);
    require(x.ndim() >= 2, "x must have two dimensions or more");
    require(indices.dtype() == mx::uint32, "indices must be uint32");
    const mx::Shape leading(x.shape().begin(), x.shape().end() - 2);
    mx::Shape shape = mx::broadcast_shapes(leading, indices.shape());
    const mx::Shape common = shape;
    const int length = x.shape(-2);
    shape.push_back(length);
    shape.push_back((int)weights->shape.rows);
    auto work = [format = weights->shape, matrices = weights->matrices, common, length](const Arrays& in, Arrays& out) {
        const float* from = floats(in[0]);
        const uint32_t* chosen_experts = flat<uint32_t>(in[2], spare<uint32_t>(0));
        size_t count = 1;
        for (int size : common) count *= size;
        std::vector<uint32_t> sources, experts;
        std::vector<int> place(common.size(), 0);
        for (size_t n = 0; n < count; n++) {
            size_t row = 0, expert = 0;
            for (size_t axis = 0; axis < common.size(); axis++) {
                // Dimensions are counted from the last; those of size one stand still.
                const int own = (int)axis - (int)common.size() + (int)in[0].ndim() - 2;
                if (own >= 0) row = row * in[0].shape(own) + (in[0].shape(own) == 1 ? 0 : place[axis]);
                const int other = (int)axis - (int)common.size() + (int)in[2].ndim();
                if (other >= 0) expert = expert * in[2].shape(other) + (in[2].shape(other) == 1 ? 0 : place[axis]);
            }
            for (int step = 0; step < length; step++) {
                sources.push_back((uint32_t)(row * length + step));
                experts.push_back(chosen_experts[expert]);
            }
            for (int axis = (int)common.size() - 1; axis >= 0; axis--) {
                if (++place[axis] < common[axis]) break;
                place[axis] = 0;
            }
        }
        osaurus::gather_matmul(kernels(), pool(), from, format.columns, sources.data(), experts.data(), sources.size(),
                               {format, in[1].data<uint8_t>(), nullptr}, matrices, out[0].data<float>());
    };
    return make("GatheredQuantisedMatmul", std::move(shape), mx::float32, {x, weights->packed, indices}, std::move(work));
}

mx::array rows_of(const std::shared_ptr<PackedWeights>& weights, const mx::array& indices) {
    require(indices.dtype() == mx::int32 || indices.dtype() == mx::uint32, "indices must be int32 or uint32");
    require(weights->matrices == 1, "there must be one matrix");
    mx::Shape shape = indices.shape();
    shape.push_back((int)weights->shape.columns);
    auto work = [format = weights->shape](const Arrays& in, Arrays& out) {
        const int32_t* rows = in[1].dtype() == mx::int32 ? flat<int32_t>(in[1], spare<int32_t>(0))
                                                         : (const int32_t*)flat<uint32_t>(in[1], spare<uint32_t>(0));
        float* to = out[0].data<float>();
        for (size_t n = 0; n < in[1].size(); n++, to += format.columns) {
            // As in NumPy, negative ones count from the end.
            const int64_t row = rows[n] < 0 ? rows[n] + (int64_t)format.rows : rows[n];
            if (row >= 0 && row < (int64_t)format.rows) {
                unpack_row(format, in[0].data<uint8_t>(), row, to);
            } else {
                std::fill_n(to, format.columns, NAN);
            }
        }
    };
    return make("QuantisedRows", std::move(shape), mx::float32, {weights->packed, indices}, std::move(work));
}

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float epsilon) {
    require(x.dtype() == mx::float32 && x.ndim() > 0, "x must be float32, of one dimension or more");
    require(!weight || (weight->dtype() == mx::float32 && weight->ndim() == 1 && weight->shape(0) == x.shape(-1)),
            "weight must be float32 and go with the last dimension of x");
    Arrays inputs = {x};
    if (weight) inputs.push_back(*weight);
    auto work = [epsilon](const Arrays& in, Arrays& out) {
        const float* from = floats(in[0]);
        const float* by = in.size() > 1 ? floats(in[1], 1) : nullptr;
        float* to = out[0].data<float>();
        const size_t width = in[0].shape(-1);
        pool().run(width ? in[0].size() / width : 0, 1 + 16384 / (width + 1), [&](size_t begin, size_t end) {
            for (size_t row = begin; row < end; row++)
                kernels().rms_norm(from + row * width, by, epsilon, to + row * width, width);
        });
    };
    return make("RmsNorm", x.shape(), mx::float32, std::move(inputs), std::move(work));
}

mx::array glu(const mx::array& x, const mx::array& y, const std::string& gate) {
    require(x.dtype() == mx::float32 && y.dtype() == mx::float32 && x.shape() == y.shape(),
            "x and y must be float32 and of one shape");
    auto work = [kind = gate_of(gate)](const Arrays& in, Arrays& out) {
        const float *a = floats(in[0]), *b = floats(in[1], 1);
        float* to = out[0].data<float>();
        pool().run(in[0].size(), 8192, [&](size_t begin, size_t end) {
            kernels().glu(kind, a + begin, b + begin, to + begin, end - begin);
        });
    };
    return make("Glu", x.shape(), mx::float32, {x, y}, std::move(work));
}

mx::array log_sum_exp(const mx::array& x) {
    require(x.dtype() == mx::float32 && x.ndim() > 0, "x must be float32, of one dimension or more");
    auto work = [](const Arrays& in, Arrays& out) {
        const float* from = floats(in[0]);
        const size_t width = in[0].shape(-1);
        pool().run(out[0].size(), 1, [&](size_t begin, size_t end) {
            for (size_t row = begin; row < end; row++)
                out[0].data<float>()[row] = kernels().log_sum_exp(from + row * width, width);
        });
    };
    return make("LogSumExp", mx::Shape(x.shape().begin(), x.shape().end() - 1), mx::float32, {x}, std::move(work));
}

mx::array argmax(const mx::array& x) {
    require(x.dtype() == mx::float32 && x.ndim() > 0 && x.shape(-1) > 0, "x must be float32, with one number at least");
    auto work = [](const Arrays& in, Arrays& out) {
        const float* from = floats(in[0]);
        const size_t width = in[0].shape(-1);
        pool().run(out[0].size(), 1, [&](size_t begin, size_t end) {
            for (size_t row = begin; row < end; row++)
                out[0].data<uint32_t>()[row] = (uint32_t)kernels().argmax(from + row * width, width);
        });
    };
    return make("ArgMax", mx::Shape(x.shape().begin(), x.shape().end() - 1), mx::uint32, {x}, std::move(work));
}

std::vector<mx::array> candidates(const mx::array& logits, const mx::array& temperatures, int count) {
    require(logits.dtype() == mx::float32 && logits.ndim() == 2, "logits must be float32, of two dimensions");
    require(temperatures.dtype() == mx::float32 && temperatures.ndim() == 1 && temperatures.shape(0) == logits.shape(0),
            "temperatures must be float32, one for each row");
    require(count > 0 && count <= logits.shape(1), "there must be as many logits as are wanted, and one at least");
    auto work = [count](const Arrays& in, Arrays& out) {
        const float* from = floats(in[0]);
        const float* divisors = floats(in[1], 1);
        const size_t width = in[0].shape(1);
        pool().run(in[0].shape(0), 1, [&](size_t begin, size_t end) {
            std::vector<float> tempered(width);
            for (size_t row = begin; row < end; row++) {
                kernels().divide(from + row * width, divisors[row], tempered.data(), width);
                greatest(kernels(), tempered.data(), width, count, out[0].data<float>() + row * count,
                         out[1].data<uint32_t>() + row * count);
                out[2].data<float>()[row] = kernels().log_sum_exp(tempered.data(), width);
            }
        });
    };
    const mx::Shape shape = {logits.shape(0), count};
    return mx::array::make_arrays({shape, shape, {logits.shape(0)}}, {mx::float32, mx::uint32, mx::float32},
                                  std::make_shared<Operation>("Candidates", std::move(work)), {logits, temperatures});
}

Rotation::Rotation(std::vector<double> frequencies, bool neighbours)
    : width(2 * frequencies.size()), neighbours(neighbours) {
    angles = std::make_shared<Angles>(std::move(frequencies));
}

mx::array rotate(const Rotation& rotation, const mx::array& x, int offset, const std::optional<mx::array>& offsets) {
    require(x.dtype() == mx::float32 && x.ndim() == 4, "x must be float32 and have four dimensions");
    require((size_t)x.shape(3) >= rotation.width, "x must be as wide as the rotation");
    require_offsets(offsets, x.shape(0));
    Arrays inputs = {x};
    if (offsets) inputs.push_back(*offsets);
    auto work = [all = rotation.angles, turned = rotation.width, neighbours = rotation.neighbours, offset](const Arrays& in, Arrays& out) {
        const mx::array& from = in[0];
        const size_t batch = from.shape(0), heads = from.shape(1), length = from.shape(2), width = from.shape(3);
        const float* source = from.data<float>();
        size_t strides[3] = {(size_t)from.strides(0), (size_t)from.strides(1), (size_t)from.strides(2)};
        if (from.strides(3) != 1) {
            source = floats(from);
            strides[0] = heads * length * width, strides[1] = length * width, strides[2] = width;
        }
        std::deque<std::vector<float>> strays;
        const auto angles = angles_of(*all, batch, length, offset, in.size() > 1 ? &in[1] : nullptr, strays);
        float* to = out[0].data<float>();
        pool().run(batch * length * heads, 1 + 16384 / (width + 1), [&](size_t begin, size_t end) {
            for (size_t n = begin; n < end; n++) {
                const size_t row = n / (heads * length), head = n / length % heads, step = n % length;
                const float* own = angles[row * length + step];
                kernels().rotate(source + row * strides[0] + head * strides[1] + step * strides[2], own,
                                 own + turned / 2, neighbours, turned, width,
                                 to + n * width);
            }
        });
    };
    return make("Rotate", x.shape(), mx::float32, std::move(inputs), std::move(work));
}

mx::array attention(const mx::array& queries, const mx::array& keys, const mx::array& values, float scale, bool causal,
                    int window, const std::optional<mx::array>& mask, const std::optional<mx::array>& sinks) {
    require(queries.ndim() == 4 && keys.ndim() == 4 && values.ndim() == 4, "there must be four dimensions");
    require(queries.dtype() == mx::float32, "queries must be float32");
    require(keys.dtype() == values.dtype() && (keys.dtype() == mx::float32 || keys.dtype() == mx::float16),
            "keys and values must both be float32 or float16");
    require(keys.shape(0) == queries.shape(0) && values.shape(0) == queries.shape(0), "there must be as many rows");
    require(keys.shape(1) == values.shape(1) && keys.shape(1) > 0 && queries.shape(1) % keys.shape(1) == 0,
            "heads must be a multiple of those of keys and values");
    require(keys.shape(2) == values.shape(2) && keys.shape(3) == queries.shape(3), "keys must fit values and queries");
    require(queries.shape(3) > 0, "heads must have a width");
    require(queries.shape(3) <= (int)QUERY_FLOATS && values.shape(3) <= (int)QUERY_FLOATS, "heads are too wide");
    require(!mask || !causal, "there may be a mask or a causal one, not both");
    require(window >= 0 && (window == 0 || causal), "a window must be positive, and causal");
    require(!sinks || (sinks->dtype() == mx::float32 && sinks->size() == (size_t)queries.shape(1)),
            "sinks must be float32, one for each head");
    const mx::Shape scores = {queries.shape(0), queries.shape(1), queries.shape(2), keys.shape(2)};
    if (mask) require_mask(*mask, scores);
    Arrays inputs = {queries, keys, values};
    if (mask) inputs.push_back(*mask);
    if (sinks) inputs.push_back(*sinks);
    auto work = [scale, causal, window, masked = mask.has_value(), sunk = sinks.has_value()](const Arrays& in,
                                                                                         Arrays& out) {
        Attention a = {};
        const auto strides = [](const mx::array& array, size_t* to) {
            for (int axis = 0; axis < 3; axis++) to[axis] = array.strides(axis);
        };
        a.batch = in[0].shape(0), a.heads = in[0].shape(1), a.queries = in[0].shape(2), a.width = in[0].shape(3);
        a.kv_heads = in[1].shape(1), a.keys = in[1].shape(2), a.value_width = in[2].shape(3);
        a.half = in[1].dtype() == mx::float16;
        strides(in[0], a.query_strides);
        strides(in[1], a.key_strides);
        strides(in[2], a.value_strides);
        a.query = in[0].data<float>();
        const auto packed_strides = [](const mx::array& array, size_t* to) {
            to[2] = array.shape(3), to[1] = to[2] * array.shape(2), to[0] = to[1] * array.shape(1);
        };
        if (in[0].strides(3) != 1) a.query = floats(in[0]), packed_strides(in[0], a.query_strides);
        const auto stored = [&](const mx::array& array, size_t* to, int which) -> const void* {
            if (a.half) {
                if (array.strides(3) == 1) return array.data<uint16_t>();
                packed_strides(array, to);
                return flat<uint16_t>(array, spare<uint16_t>(which));
            }
            if (array.strides(3) == 1) return array.data<float>();
            packed_strides(array, to);
            return floats(array, which);
        };
        a.key = stored(in[1], a.key_strides, 1);
        a.value = stored(in[2], a.value_strides, 2);
        a.out = out[0].data<float>();
        packed_strides(out[0], a.out_strides);
        a.scale = scale;
        a.masking = causal ? Masking::causal : Masking::none;
        a.window = window;
        if (masked) put_mask(in[3], a);
        std::vector<float> own_sinks;
        if (sunk) a.sinks = flat<float>(in.back(), own_sinks);
        osaurus::attention(kernels(), pool(), a);
    };
    return make("Attention", {queries.shape(0), queries.shape(1), queries.shape(2), values.shape(3)}, mx::float32,
                std::move(inputs), std::move(work));
}

mx::array push(const mx::array& kept, const std::vector<int>& places, int end) {
    require(kept.dtype() == mx::float16 && kept.ndim() == 4, "keys and values must be float16, of four dimensions");
    require(end >= 0 && end <= kept.shape(2), "the end must not be behind the room");
    require(places.size() == (size_t)kept.shape(0), "there must be as many places as rows");
    for (const int count : places) require(count >= 0 && count <= end, "places must not be below zero, nor behind the end");
    auto work = [places, end](const Arrays&, Arrays& out) {
        const size_t heads = out[0].shape(1), width = out[0].shape(3), stride = out[0].strides(2);
        pool().run(places.size() * heads, 1, [&](size_t begin, size_t last) {
            for (size_t n = begin; n < last; n++) {
                const size_t row = n / heads, moved = places[row];
                if (moved == 0) continue;
                uint16_t* const own = out[0].data<uint16_t>() + row * out[0].strides(0) + n % heads * out[0].strides(1);
                for (size_t place = end; place > moved; place--)
                    std::copy_n(own + (place - 1 - moved) * stride, width, own + (place - 1) * stride);
            }
        });
    };
    return make("Push", kept.shape(), mx::float16, {kept}, std::move(work), true);
}

}  // namespace osaurus::shim
