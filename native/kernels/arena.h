// Memory for the weights of one network, side by side in large pages.
//
// A step with one row waits for the weights to come from memory. With pages of four KiB it waits for their addresses as
// well, a third longer; so the system is asked for large ones, which single matrices would not fill.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace osaurus {

class Arena {
  public:
    // So many bytes, aligned for a vector's loads; they stay until the last pointer to them has gone.
    std::shared_ptr<uint8_t> take(size_t bytes);

  private:
    std::shared_ptr<uint8_t> chunk_;
    size_t taken_ = 0, size_ = 0;
};

}  // namespace osaurus
