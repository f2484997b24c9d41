// Messages of agents out of bytes: names come from small sets, so that they meet real jobs, workers
// and attempts; numbers are near what is true, or anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "coordinator/core/core.h"

namespace lemo::coordinator::fuzz {

// The input, byte by byte; zeros behind its end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  uint8_t Next() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  int Below(int bound) { return Next() % bound; }
  std::string Take(size_t count);
  // `truth` mostly, else a neighbour of it, or an end of the type.
  int64_t Near(int64_t truth);

 private:
  const uint8_t* data_;
  size_t left_;
};

std::string JobName(Bytes& bytes);
std::string WorkerName(Bytes& bytes);
lemo::v1::Hello MakeHello(const Core& core, Bytes& bytes);
// Whatever the agent `worker` may say after its hello; mostly of attempts that are its own.
lemo::v1::AgentMessage MakeMessage(const Core& core, const std::string& worker, Bytes& bytes);

}  // namespace lemo::coordinator::fuzz
