// One of our functions as an operation of MLX's graph.
//
// The difficulty is MLX's laziness: shapes are known when an operation is made, memory and strides only when it is
// evaluated, and the work itself runs later, on the thread of its stream. So every operation is one primitive around a
// function that is called on that thread with evaluated arrays. MLX keeps their memory until then.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "angles.h"
#include "kernels.h"
#include "mlx/array.h"
#include "mlx/primitives.h"

namespace osaurus::shim {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;
using Work = std::function<void(const Arrays& inputs, Arrays& outputs)>;

class Operation : public mx::Primitive {
  public:
    // Where the first input is kept, the output begins as that: in its very memory, if nobody else needs it as it was.
    Operation(const char* name, Work work, bool keeps = false);

    void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
    void eval_gpu(const Arrays&, Arrays&) override;
    const char* name() const override { return name_; }

  private:
    const char* name_;
    std::shared_ptr<const Work> work_;
    bool keeps_;
};

mx::array make(const char* name, mx::Shape shape, mx::Dtype type, Arrays inputs, Work work, bool keeps = false);

// Raises std::invalid_argument.
void require(bool condition, const char* message);

// Copy the elements of an array to where they lie behind each other.
template <typename T>
void copy_flat(const mx::array& array, T* to) {
    if (array.flags().row_contiguous) {
        std::copy_n(array.data<T>(), array.size(), to);
        return;
    }
    std::vector<int> place(array.ndim(), 0);
    const T* from = array.data<T>();
    for (size_t n = 0; n < array.size(); n++) {
        to[n] = *from;
        for (int axis = (int)array.ndim() - 1; axis >= 0; axis--) {
            from += array.strides(axis);
            if (++place[axis] < array.shape(axis)) break;
            from -= array.strides(axis) * array.shape(axis);
            place[axis] = 0;
        }
    }
}

// The elements of an array behind each other; copied into `copy` where they lie otherwise.
template <typename T>
const T* flat(const mx::array& array, std::vector<T>& copy) {
    if (array.flags().row_contiguous || array.size() == 0) return array.data<T>();
    copy.resize(array.size());
    copy_flat(array, copy.data());
    return copy.data();
}

template <typename T>
std::vector<T>& spare(int which) {
    thread_local std::vector<T> vectors[3];
    return vectors[which];
}

const float* floats(const mx::array& array, int which = 0);

// What several operations take.

Gate gate_of(const std::string& name);
// The angles of the rows of [batch, length], whose positions begin at `offset`, or at those of `offsets`. Those that do
// not last are put into `strays`.
std::vector<const float*> angles_of(Angles& angles, size_t batch, size_t length, int offset, const mx::array* offsets,
                                    std::deque<std::vector<float>>& strays);
void require_offsets(const std::optional<mx::array>& offsets, int batch);
void require_bias(const std::optional<mx::array>& bias, size_t rows);
// Have an attention see what a mask shows, whose shape broadcasts to that of the scores.
void put_mask(const mx::array& shown, Attention& a);
void require_mask(const mx::array& mask, const mx::Shape& scores);

}  // namespace osaurus::shim
