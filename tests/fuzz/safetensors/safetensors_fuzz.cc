// Any bytes: the check either refuses them or gives tensors that lie inside them and fill their
// shapes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "common/safetensors.h"

namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  std::map<std::string, lemo::TensorView> tensors;
  std::map<std::string, std::string> metadata;
  const absl::Status status = lemo::ParseSafetensors(bytes, &tensors, &metadata);
  if (!status.ok()) {
    Require(absl::IsInvalidArgument(status), "the status is InvalidArgument");
    Require(!status.message().empty() && status.message().size() < 2000, "the message is short");
    Require(tensors.empty() && metadata.empty(), "nothing is given with a fault");
    return 0;
  }
  size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, view] : tensors) {
    Require(view.bytes.empty() || (view.bytes.data() >= bytes.data() &&
                                   view.bytes.data() + view.bytes.size() <= bytes.data() + size),
            "a tensor lies inside the file");
    size_t expected = static_cast<size_t>(lemo::ElementBytes(view.type));
    for (const int64_t dimension : view.shape) expected *= static_cast<size_t>(dimension);
    Require(expected == view.bytes.size(), "a tensor fills its shape");
    total += view.bytes.size();
    for (const char byte : view.bytes) sum += static_cast<unsigned char>(byte);
  }
  [[maybe_unused]] static volatile unsigned sink;
  sink = sum;  // so that every byte is read
  Require(total + 8 <= size, "tensors do not overlap");
  return 0;
}
