#include "operation.h"

#include <stdexcept>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/utils.h"

namespace osaurus::shim {

Operation::Operation(const char* name, Work work, bool keeps)
    : mx::Primitive(mx::to_stream(std::monostate{}, mx::Device::cpu)),
      name_(name),
      work_(std::make_shared<const Work>(std::move(work))),
      keeps_(keeps) {}

void Operation::eval_cpu(const Arrays& inputs, Arrays& outputs) {
    Arrays from, to;
    from.reserve(inputs.size());
    to.reserve(outputs.size());
    for (const auto& input : inputs) from.push_back(mx::array::unsafe_weak_copy(input));
    // Of what was broadcast several elements are one in memory.
    const bool whole = keeps_ && inputs[0].data_size() >= inputs[0].size() && inputs[0].strides(-1) == 1;
    const bool taken = whole && inputs[0].is_donatable();
    if (taken) outputs[0].copy_shared_buffer(inputs[0]);
    for (auto& output : outputs) {
        if (!taken) output.set_data(mx::allocator::malloc(output.nbytes()));
        to.push_back(mx::array::unsafe_weak_copy(output));
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const bool copied = keeps_ && !taken;
    encoder.dispatch([work = work_, from = std::move(from), to = std::move(to), copied]() mutable {
        // What is kept is float16.
        if (copied) copy_flat(from[0], to[0].data<uint16_t>());
        (*work)(from, to);
    });
}

void Operation::eval_gpu(const Arrays&, Arrays&) {
    throw std::runtime_error("the kernels of osaurus_cpu run on the CPU only");
}

mx::array make(const char* name, mx::Shape shape, mx::Dtype type, Arrays inputs, Work work, bool keeps) {
    return mx::array(std::move(shape), type, std::make_shared<Operation>(name, std::move(work), keeps),
                     std::move(inputs));
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

const float* floats(const mx::array& array, int which) { return flat<float>(array, spare<float>(which)); }

Gate gate_of(const std::string& name) {
    if (name == "silu") return Gate::silu;
    if (name == "gelu") return Gate::gelu;
    throw std::invalid_argument("gate must be silu or gelu");
}

std::vector<const float*> angles_of(Angles& angles, size_t batch, size_t length, int offset, const mx::array* offsets,
                                    std::deque<std::vector<float>>& strays) {
    const int32_t* begins = offsets ? flat<int32_t>(*offsets, spare<int32_t>(1)) : nullptr;
    std::vector<int64_t> positions;
    positions.reserve(batch * length);
    for (size_t row = 0; row < batch; row++) {
        const int64_t begin = begins ? begins[offsets->size() == 1 ? 0 : row] : offset;
        for (size_t step = 0; step < length; step++) positions.push_back(begin + (int64_t)step);
    }
    return angles.look_up(positions, strays);
}

void require_offsets(const std::optional<mx::array>& offsets, int batch) {
    require(!offsets || (offsets->dtype() == mx::int32 && (offsets->size() == 1 || offsets->size() == (size_t)batch)),
            "offsets must be int32, one for each row");
}

void require_bias(const std::optional<mx::array>& bias, size_t rows) {
    require(!bias || (bias->dtype() == mx::float32 && bias->size() == rows), "a bias must be float32, one for each row");
}

void put_mask(const mx::array& shown, Attention& a) {
    a.masking = shown.dtype() == mx::bool_ ? Masking::boolean : Masking::additive;
    a.mask = shown.data<uint8_t>();
    for (int axis = 0; axis < 4; axis++) {
        const int own = axis - 4 + (int)shown.ndim();
        a.mask_strides[axis] = own < 0 || shown.shape(own) == 1 ? 0 : shown.strides(own);
    }
}

void require_mask(const mx::array& mask, const mx::Shape& scores) {
    require(mask.dtype() == mx::bool_ || mask.dtype() == mx::float32, "a mask must be bool or float32");
    require(mx::broadcast_shapes(mask.shape(), scores) == scores, "the mask must broadcast to the scores");
}

}  // namespace osaurus::shim
