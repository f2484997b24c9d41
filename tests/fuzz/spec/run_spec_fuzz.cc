// Any bytes as a run spec, followed by any bytes as --set assignments: nothing may crash, and what
// was read without a fault must print and read back the same.
//
// With clang: -fsanitize=fuzzer and this file. With gcc the driver beside it feeds bounded,
// repeatable mutations.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "worker/train/spec/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using lemo::Violations;
  // JSON text, then assignments, each behind a byte that JSON cannot hold.
  const std::string input(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> parts = absl::StrSplit(input, '\x01');
  Violations violations;
  lemo::v1::RunSpec spec = lemo::train::ParseRunSpec(parts[0], "fuzz.json", &violations);
  parts.erase(parts.begin());
  lemo::train::ApplyOverrides(parts, &spec, &violations);
  const bool read_well = violations.empty();
  lemo::train::FillDefaults(&spec);
  lemo::train::ValidateRunSpec(spec, &violations);
  (void)violations.ToStatus();

  const std::string printed = lemo::train::RunSpecToJson(spec);
  Violations again;
  const lemo::v1::RunSpec copy = lemo::train::ParseRunSpec(printed, "printed", &again);
  if (read_well && (!again.empty() || lemo::train::RunSpecToJson(copy) != printed)) std::abort();
  return 0;
}
