// Wakes the agent's loop from other threads.
#pragma once

namespace lemo::agent {

// An eventfd. Wake is thread-safe; the rest belongs to the loop.
class Waker {
 public:
  Waker();
  ~Waker();
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;

  void Wake();
  // Readable after Wake until Clear.
  int fd() const { return fd_; }
  void Clear();

 private:
  int fd_;
};

}  // namespace lemo::agent
