// A whole layer of a network (block.h) as operations of MLX's graph.
#pragma once

#include <utility>

#include "primitives.h"

namespace osaurus::shim {

// A weight, and what is added to the mean of squares.
using NormParts = std::pair<mx::array, float>;
// A matrix and its bias.
using MatrixParts = std::pair<std::shared_ptr<PackedWeights>, std::optional<mx::array>>;

class Layer {
  public:
    // `projections`: those of queries, keys and values, and of what was attended to; `network`: gate, up and down.
    // Raises std::invalid_argument where they do not go together.
    Layer(int heads, float scale, const Rotation& rotation, const std::pair<NormParts, NormParts>& norms,
          const std::optional<std::pair<NormParts, NormParts>>& head_norms, const std::vector<MatrixParts>& projections,
          const std::vector<MatrixParts>& network, const std::string& gate);

    // Keep the keys and values of x [batch, length, size] in `keys` and `values`, float16 [batch, kv_heads, room, width],
    // from place `first` on: in their very memory, if nobody else needs them as they were. Return what was projected,
    // the keys and the values. Positions are as those of `rotate`.
    std::vector<mx::array> begin(const mx::array& x, const mx::array& keys, const mx::array& values, int first,
                                 int offset, const std::optional<mx::array>& offsets) const;

    // The output, of what `begin` was given and returned. Queries see the first `seen` keys: those up to their own, or
    // those that the mask shows.
    mx::array finish(const mx::array& x, const mx::array& projected, const mx::array& keys, const mx::array& values,
                     int seen, const std::optional<mx::array>& mask) const;

  private:
    struct Parts;

    mx::array keep(const mx::array& projected, const mx::array& kept, size_t place, int first) const;

    std::shared_ptr<const Parts> parts_;
};

}  // namespace osaurus::shim
