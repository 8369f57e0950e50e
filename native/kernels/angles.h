// The angles of a rotary embedding, by position.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace osaurus {

// Cosines and sines; they grow as longer texts come. Any thread may look them up.
class Angles {
  public:
    // `frequencies`: the angle that each pair is turned by with every position, [width / 2].
    explicit Angles(std::vector<double> frequencies) : frequencies_(std::move(frequencies)) {}

    // The cosines and, behind them, the sines of positions, each [width / 2]; they stay where they are. Those of
    // positions that no text has (rows that are filled up stand before their beginning) are put into `strays`.
    std::vector<const float*> look_up(const std::vector<int64_t>& positions, std::deque<std::vector<float>>& strays);

  private:
    const float* at(int64_t position);
    void fill(int64_t position, float* to) const;

    std::vector<double> frequencies_;
    std::mutex mutex_;
    std::deque<std::vector<float>> pages_;
};

}  // namespace osaurus
