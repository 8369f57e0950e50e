// A graph keeps the parts of a layer: arrays of its weights are no inputs of the operations, so that there is less to
// make and to look after for each pass. They are evaluated when the layer is made.
#include "layer.h"

#include "operation.h"

namespace osaurus::shim {

struct Layer::Parts {
    Block block;
    std::shared_ptr<Angles> angles;
    // What the block points into.
    Arrays arrays;

    Norm add(const NormParts& parts, size_t size) {
        require(parts.first.dtype() == mx::float32 && parts.first.ndim() == 1 && (size_t)parts.first.shape(0) == size,
                "the weight of a norm must be float32, and as long as what is normalised");
        return {add(parts.first), parts.second};
    }

    Matrix add(const MatrixParts& parts, size_t rows, size_t columns) {
        const PackedWeights& weights = *parts.first;
        require(weights.matrices == 1 && weights.shape.rows == rows && weights.shape.columns == columns,
                "the matrices must fit together");
        arrays.push_back(weights.packed);
        Matrix matrix = weights.first(weights.packed);
        require_bias(parts.second, rows);
        if (parts.second) matrix.bias = add(*parts.second);
        return matrix;
    }

  private:
    const float* add(const mx::array& array) {
        require(array.is_available() && array.flags().row_contiguous, "arrays must be evaluated and contiguous");
        arrays.push_back(array);
        return array.data<float>();
    }
};

Layer::Layer(int heads, float scale, const Rotation& rotation, const std::pair<NormParts, NormParts>& norms,
             const std::optional<std::pair<NormParts, NormParts>>& head_norms,
             const std::vector<MatrixParts>& projections, const std::vector<MatrixParts>& network,
             const std::string& gate) {
    require(projections.size() == 4 && network.size() == 3, "there must be four projections, and three of the network");
    for (const auto* matrices : {&projections, &network})
        for (const MatrixParts& matrix : *matrices) require(matrix.first != nullptr, "the matrices must be there");
    auto parts = std::make_shared<Parts>();
    Block& block = parts->block;
    const Weights &query = projections[0].first->shape, &key = projections[1].first->shape;
    require(heads > 0 && query.rows > 0 && query.rows % heads == 0, "queries must be divided into heads");
    block.heads = heads;
    block.width = query.rows / heads;
    require(key.rows > 0 && key.rows % block.width == 0, "keys must be as wide as queries");
    block.kv_heads = key.rows / block.width;
    require(block.heads % block.kv_heads == 0, "heads must be a multiple of those of keys and values");
    require(block.width <= QUERY_FLOATS, "heads are too wide");
    block.scale = scale;
    block.turned = rotation.width;
    block.neighbours = rotation.neighbours;
    require(block.turned <= block.width, "heads must be as wide as the rotation");
    parts->angles = rotation.angles;
    const size_t size = query.columns, hidden = network[0].first->shape.rows;
    block.before_attention = parts->add(norms.first, size);
    block.before_network = parts->add(norms.second, size);
    if (head_norms) {
        block.query_norm = parts->add(head_norms->first, block.width);
        block.key_norm = parts->add(head_norms->second, block.width);
    }
    block.queries = parts->add(projections[0], query.rows, size);
    block.keys = parts->add(projections[1], key.rows, size);
    block.values = parts->add(projections[2], key.rows, size);
    block.output = parts->add(projections[3], size, query.rows);
    block.kind = gate_of(gate);
    block.gate = parts->add(network[0], hidden, size);
    block.up = parts->add(network[1], hidden, size);
    block.down = parts->add(network[2], size, hidden);
    parts_ = std::move(parts);
}

std::vector<mx::array> Layer::begin(const mx::array& x, const mx::array& keys, const mx::array& values, int first,
                                    int offset, const std::optional<mx::array>& offsets) const {
    const Block& block = parts_->block;
    require(x.dtype() == mx::float32 && x.ndim() == 3 && (size_t)x.shape(2) == block.size(),
            "x must be float32 and have three dimensions, the last that of the weights");
    const int batch = x.shape(0), length = x.shape(1);
    for (const auto* kept : {&keys, &values}) {
        require(kept->dtype() == mx::float16 && kept->ndim() == 4, "keys and values must be float16, of four dimensions");
        require(kept->shape(0) == batch && (size_t)kept->shape(1) == block.kv_heads &&
                    (size_t)kept->shape(3) == block.width,
                "keys and values must fit the layer");
        require(first >= 0 && first + length <= kept->shape(2), "there must be room for keys and values");
    }
    require_offsets(offsets, batch);
    Arrays inputs = {x};
    if (offsets) inputs.push_back(*offsets);
    auto work = [parts = parts_, offset](const Arrays& in, Arrays& out) {
        const size_t batch = in[0].shape(0), length = in[0].shape(1);
        std::deque<std::vector<float>> strays;
        const auto angles = angles_of(*parts->angles, batch, length, offset, in.size() > 1 ? &in[1] : nullptr, strays);
        project(kernels(), pool(), parts->block, floats(in[0]), batch * length, angles, out[0].data<float>());
    };
    const mx::Shape shape = {batch, length, (int)block.projected()};
    const mx::array projected = make("Project", shape, mx::float32, std::move(inputs), std::move(work));
    return {projected, keep(projected, keys, block.heads * block.width, first),
            keep(projected, values, (block.heads + block.kv_heads) * block.width, first)};
}

mx::array Layer::keep(const mx::array& projected, const mx::array& kept, size_t place, int first) const {
    auto work = [parts = parts_, place, first](const Arrays& in, Arrays& out) {
        Kept kept = {out[0].data<uint16_t>(), {}};
        for (int axis = 0; axis < 3; axis++) kept.strides[axis] = out[0].strides(axis);
        osaurus::keep(kernels(), parts->block, in[1].data<float>() + place, parts->block.projected(), in[1].shape(0),
                      in[1].shape(1), kept, first);
    };
    return make("Keep", kept.shape(), mx::float16, {kept, projected}, std::move(work), true);
}

mx::array Layer::finish(const mx::array& x, const mx::array& projected, const mx::array& keys, const mx::array& values,
                        int seen, const std::optional<mx::array>& mask) const {
    const Block& block = parts_->block;
    require(seen >= x.shape(1) && seen <= keys.shape(2), "as many keys as there are, and as queries, can be seen");
    if (mask) require_mask(*mask, {x.shape(0), (int)block.heads, x.shape(1), seen});
    Arrays inputs = {x, projected, keys, values};
    if (mask) inputs.push_back(*mask);
    auto work = [parts = parts_, seen](const Arrays& in, Arrays& out) {
        const Block& block = parts->block;
        Attention a = {};
        a.batch = in[0].shape(0), a.heads = block.heads, a.kv_heads = block.kv_heads;
        a.queries = in[0].shape(1), a.keys = seen, a.width = a.value_width = block.width;
        a.query = in[1].data<float>();
        a.query_strides[2] = block.projected(), a.query_strides[1] = block.width;
        a.query_strides[0] = a.queries * a.query_strides[2];
        a.half = true;
        a.key = in[2].data<uint16_t>(), a.value = in[3].data<uint16_t>();
        for (int axis = 0; axis < 3; axis++) a.key_strides[axis] = in[2].strides(axis), a.value_strides[axis] = in[3].strides(axis);
        a.scale = block.scale;
        a.masking = Masking::causal;
        if (in.size() > 4) put_mask(in[4], a);
        osaurus::finish(kernels(), pool(), block, a, floats(in[0]), out[0].data<float>());
    };
    return make("Finish", x.shape(), mx::float32, std::move(inputs), std::move(work));
}

}  // namespace osaurus::shim
