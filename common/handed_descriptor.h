// A descriptor that processes of one machine have of one thing between them: for memory that has a
// descriptor and no name, as a GPU's has. Whoever has it hands it to who asks, so that it is there
// as long as anybody has it and no longer; nobody has to outlive the others.
//
//   DIR/{name}.{letters}.socket   of each who has it: hands it to whom connects (SCM_RIGHTS)
//   DIR/{name}.lock               held by who asks, or makes it (making_lock.h)
//
// A process that dies leaves its socket behind; who asks there next finds that nobody listens, and
// removes it. The same name must always mean the same thing.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/descriptor.h"

namespace lemo {

// Hands the descriptor on until it is destroyed.
class HandedDescriptor {
 public:
  HandedDescriptor(Descriptor descriptor, Descriptor socket, std::filesystem::path path);
  ~HandedDescriptor();
  HandedDescriptor(const HandedDescriptor&) = delete;
  HandedDescriptor& operator=(const HandedDescriptor&) = delete;

  int get() const { return descriptor_.get(); }

 private:
  void Serve() const;

  const Descriptor descriptor_, socket_;
  const std::filesystem::path path_;
  std::thread thread_;
};

// The descriptor of that name, from one who has it, or else from `make`, whose errors are passed
// on. `directory` is made if need be. Whoever comes while it is made waits, `patience` at most
// (DeadlineExceeded).
absl::StatusOr<std::unique_ptr<HandedDescriptor>> TakeDescriptor(
    const std::filesystem::path& directory, const std::string& name,
    const std::function<absl::StatusOr<Descriptor>()>& make, std::chrono::milliseconds patience);

}  // namespace lemo
