// A file descriptor that is closed, and with it a lock that it holds.
#pragma once

#include <unistd.h>

#include <utility>

namespace lemo {

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }  // below 0: none
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace lemo
