#include "angles.h"

#include <cmath>

namespace osaurus {
namespace {

constexpr int64_t PAGE = 256;
constexpr int64_t MOST_POSITIONS = 1 << 22;

}  // namespace

std::vector<const float*> Angles::look_up(const std::vector<int64_t>& positions,
                                          std::deque<std::vector<float>>& strays) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<const float*> found;
    found.reserve(positions.size());
    for (int64_t position : positions) {
        if (position >= 0 && position < MOST_POSITIONS) {
            found.push_back(at(position));
        } else {
            strays.emplace_back(2 * frequencies_.size());
            fill(position, strays.back().data());
            found.push_back(strays.back().data());
        }
    }
    return found;
}

const float* Angles::at(int64_t position) {
    while ((int64_t)pages_.size() <= position / PAGE) pages_.emplace_back();
    std::vector<float>& page = pages_[position / PAGE];
    const size_t size = 2 * frequencies_.size();
    if (page.empty()) {
        page.resize(PAGE * size);
        for (int64_t n = 0; n < PAGE; n++) fill(position / PAGE * PAGE + n, page.data() + n * size);
    }
    return page.data() + position % PAGE * size;
}

void Angles::fill(int64_t position, float* to) const {
    const size_t half = frequencies_.size();
    for (size_t pair = 0; pair < half; pair++) {
        to[pair] = (float)std::cos((double)position * frequencies_[pair]);
        to[half + pair] = (float)std::sin((double)position * frequencies_[pair]);
    }
}

}  // namespace osaurus
