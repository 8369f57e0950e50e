// Memory to work in, kept from call to call: what is given back to the system comes as empty pages the next time, and
// these took a tenth of the time in which a prompt is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace osaurus {

// Belongs to one thread.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { release(); }

    // So many bytes, aligned for a vector's loads, good until the next call.
    uint8_t* get(size_t bytes) {
        if (bytes > size_) {
            release();
            data_ = (uint8_t*)::operator new(bytes, std::align_val_t(64));
            size_ = bytes;
        }
        return data_;
    }

  private:
    void release() {
        if (data_) ::operator delete(data_, std::align_val_t(64));
        data_ = nullptr;
        size_ = 0;
    }

    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace osaurus
